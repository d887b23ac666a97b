"""Vision-language models: compiling them with fewer image tokens, and running what comes of it."""

from prunepass.vlm.compile import compile
from prunepass.vlm.conversation import Answer, Conversation
from prunepass.vlm.generate import VlmBundle
from prunepass.vlm.layout import Layout
from prunepass.vlm.loading import load
from prunepass.vlm.macs import image_token_macs, prefill_macs
from prunepass.vlm.sampling import Sampling
from prunepass.vlm.sparse_decode import DecodeInputs
from prunepass.vlm.tiles import Tiles, Tiling

__all__ = [
    "Answer", "Conversation", "DecodeInputs", "Layout", "Sampling", "Tiles", "Tiling", "VlmBundle",
    "compile", "image_token_macs", "load", "prefill_macs",
]  # fmt: skip
