"""The manifest that binds the programs of a rewritten vision-language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram

from prunepass.errors import PlanError, UsageError
from prunepass.passes.bind_image_steps import layer_of, share_of
from prunepass.planners.image_methods import NONE, image_method
from prunepass.plans import Step
from prunepass.vlm.encoder import Encoder
from prunepass.vlm.layers import layers_left
from prunepass.vlm.layout import Layout
from prunepass.vlm.manifest import VlmManifest
from prunepass.vlm.patches import Pictures
from prunepass.vlm.processor import described
from prunepass.vlm.subject import Subject


def manifest_of(
    subject: Subject,
    encoder: Encoder,
    language: ExportedProgram,
    processor_or_layout: Any,
    *,
    method: str,
    steps: Sequence[Step],
    positions: str,
    without: Sequence[str],
    backend: str,
    name: str | None,
    preprocessing: Mapping[str, Any] | None,
    template: str | None,
) -> VlmManifest:
    """The manifest of a bundle.

    Args:
        subject: The model.
        encoder: That of the bundle.
        language: Its language model with the layers that are left, nothing pruned.
        processor_or_layout: See `compile`.
        method: Name of the method.
        steps: What is pruned inside the language model.
        positions: `keep_original` or `compact`.
        without: Layers that were dropped.
        backend: Name of the backend.
        name: What to call the model, None for the name of its class.
        preprocessing: See `compile`.
        template: See `compile`.

    Raises:
        ModelError: How the processor prepares pictures cannot be read.
        PlanError: A share leaves nothing of the smallest pictures.
        UsageError: The layout does not fit the model.
    """
    known, pictures = subject.known, subject.pictures
    output = next(n for n in language.graph.nodes if n.op == "output")
    logits, key = (node.meta["val"] for node in output.args[0][:2])
    shares = _shares(steps, layers_left(known.layers, without), pictures)
    given = processor_or_layout if isinstance(processor_or_layout, Layout) else None
    if given is not None:
        _check_layout(given, subject, encoder)
    pixels = pictures.pixels if pictures.tiling is None else pictures.pixels[1:]
    told = _told(None if given is not None else processor_or_layout, subject, pixels)
    return VlmManifest(
        backend=backend,
        model=name or type(subject.model).__name__,
        method=method,
        positions=positions,
        rows="text" if method == NONE else image_method(method).rows,
        shares=shares,
        cache=(int(key.shape[1]), int(key.shape[3])),
        vocabulary=int(logits.shape[2]),
        image_token=known.image_token if given is None else given.image_token,
        image_tokens=encoder.image_tokens if pictures.tiling is None else None,
        any_images=encoder.any_images,
        grid=encoder.grid,
        padding=known.padding if given is None else given.padding,
        stop=known.stop,
        context=known.context,
        pixels=pixels,
        tiling=pictures.tiling,
        preprocessing=preprocessing or told.get("preprocessing"),
        template=template or told.get("template"),
        image_mark=told.get("image_mark"),
        sees=subject.sees,
        without=tuple(without),
    )


def _shares(steps: Sequence[Step], layers: int, pictures: Pictures) -> tuple[tuple[int, int], ...]:
    """For each layer, which share (part, whole) of an image's tokens is left.

    Raises:
        PlanError: A share leaves nothing of the smallest pictures.
    """
    found = [(1, 1)] * layers
    for step in sorted(steps, key=layer_of):
        share = share_of(step.keep)
        assert isinstance(share, tuple)
        found[layer_of(step) :] = [share] * (layers - layer_of(step))
    part, whole = found[-1]
    # Inside a graph of any number of tokens a share is rounded down to nothing, not to one.
    if pictures.tiling is not None and pictures.tiling.patches**2 * part < whole:
        raise PlanError(
            "nothing would be left of a small picture",
            found=f"keep={part / whole} of {pictures.tiling.patches**2} image tokens or more",
            fix=f"keep={1 / pictures.tiling.patches**2} or more",
        )
    return tuple(found)


def _check_layout(given: Layout, subject: Subject, encoder: Encoder) -> None:
    """Refuses a layout of another number of image tokens; where these are of any number, none."""
    made, left = subject.encoder.image_tokens, encoder.image_tokens
    if subject.pictures.tiling is None and given.image_tokens not in (made, left):
        raise UsageError(
            "the layout does not fit the model",
            found=f"{given.image_tokens} image tokens, the model makes {made}",
            fix=f"Layout(image_tokens={made}, ...)",
        )


def _told(processor: Any, subject: Subject, pixels: tuple[int, ...]) -> dict[str, Any]:
    """What a processor says of pictures and prompts; nothing where there is none."""
    if processor is None:
        return {}
    tiles = subject.pictures.tiling is not None
    return described(processor, pixels, subject.known.image_token, tiles=tiles)
