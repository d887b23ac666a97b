"""Vision-language models: compiling them with fewer image tokens, and running what comes of it."""

from prunepass.vlm.compile import compile
from prunepass.vlm.generate import Answer, Conversation, VlmBundle
from prunepass.vlm.layout import Layout
from prunepass.vlm.loading import load
from prunepass.vlm.macs import image_token_macs, prefill_macs
from prunepass.vlm.sampling import Sampling

__all__ = [
    "Answer", "Conversation", "Layout", "Sampling", "VlmBundle", "compile", "image_token_macs",
    "load", "prefill_macs",
]  # fmt: skip
