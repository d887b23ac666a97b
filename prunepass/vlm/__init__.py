"""Vision-language models: what their prefill costs."""

from prunepass.vlm.macs import image_token_macs, prefill_macs

__all__ = ["image_token_macs", "prefill_macs"]
