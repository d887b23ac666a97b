"""What a processor of transformers says of pictures and prompts, as plain data for a manifest."""

from __future__ import annotations

from typing import Any

from prunepass.errors import ModelError

_PROMPT = "\u2063prompt\u2063"


def described(
    processor: Any, pixels: tuple[int, ...], image_token: int, *, tiles: bool = False
) -> dict[str, Any]:
    """`preprocessing`, `template` and `image_mark`, as far as the processor tells them.

    Args:
        processor: A processor with a tokenizer and an image processor, or a tokenizer.
        pixels: [3, H, W] of an image, where the processor leaves it open. Pictures that come as
            tiles, [tiles, 3, H, W], are the caller's to prepare.
        image_token: Number of the token that stands for image tokens.
        tiles: Whether these are the pixels of a tile: a picture is then squeezed into one, as it
            is, and cut into others.
    """
    found: dict[str, Any] = {}
    images = getattr(processor, "image_processor", None)
    if images is not None and len(pixels) == 3:
        from prunepass.sources.transformers_processor import from_processor

        stored = images.to_dict()
        try:
            size = stored.get("size")
            if isinstance(size, dict) and {"shortest_edge", "longest_edge"} <= set(size):
                # Bounds of a picture's size, which is fixed here: pictures are resized to that.
                stored |= {"size": {"height": pixels[1], "width": pixels[2]}}
            if tiles:
                stored |= {
                    "size": {"height": pixels[1], "width": pixels[2]},
                    "do_center_crop": False,
                }
            found["preprocessing"] = from_processor(stored, (pixels[1], pixels[2])).to_dict()
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(
                "cannot read how the processor prepares pictures",
                found=f"{type(error).__name__}: {error}",
                fix="give `preprocessing`",
            ) from error
    mark = getattr(processor, "image_token", None)
    fast = fast_tokenizer(processor)
    if not isinstance(mark, str) and fast is not None:
        mark = fast.id_to_token(image_token)
    if isinstance(mark, str):
        found["image_mark"] = mark
    if getattr(processor, "chat_template", None) and isinstance(mark, str):
        found["template"] = _template(processor, mark)
    elif isinstance(mark, str):
        found["template"] = "{image}{prompt}"
    return found


def fast_tokenizer(processor: Any) -> Any:
    """The `tokenizers.Tokenizer` of a processor or tokenizer, or None."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if hasattr(tokenizer, "encode_batch") and hasattr(tokenizer, "to_str"):
        return tokenizer
    return getattr(tokenizer, "backend_tokenizer", None)


def _template(processor: Any, mark: str) -> str | None:
    """One turn of a user with an image, as the chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": _PROMPT}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text.replace(mark, "{image}").replace(_PROMPT, "{prompt}")
