"""What a processor of transformers says of pictures and prompts, as plain data for a manifest."""

from __future__ import annotations

from typing import Any

from prunepass.errors import ModelError

_PROMPT = "\u2063prompt\u2063"


def described(processor: Any, pixels: tuple[int, int, int]) -> dict[str, Any]:
    """`preprocessing`, `template` and `image_mark`, as far as the processor tells them.

    Args:
        processor: A processor with a tokenizer and an image processor, or a tokenizer.
        pixels: [3, H, W] of an image, where the processor leaves it open.
    """
    found: dict[str, Any] = {}
    images = getattr(processor, "image_processor", None)
    if images is not None:
        from prunepass.sources.transformers_processor import from_processor

        stored = images.to_dict()
        try:
            found["preprocessing"] = from_processor(stored, pixels[1:]).to_dict()
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(
                "cannot read how the processor prepares pictures",
                found=f"{type(error).__name__}: {error}",
                fix="give `preprocessing`",
            ) from error
    mark = getattr(processor, "image_token", None)
    if isinstance(mark, str):
        found["image_mark"] = mark
    if getattr(processor, "chat_template", None) and isinstance(mark, str):
        found["template"] = _template(processor, mark)
    elif isinstance(mark, str):
        found["template"] = "{image}{prompt}"
    return found


def _template(processor: Any, mark: str) -> str | None:
    """One turn of a user with an image, as the chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": _PROMPT}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text.replace(mark, "{image}").replace(_PROMPT, "{prompt}")
