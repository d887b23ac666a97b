"""A vision-language model rewritten: the programs of a bundle, and the manifest that binds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.analyse.projections import label_projections
from prunepass.analyse.sites import fingerprint
from prunepass.errors import PlanError, UsageError
from prunepass.passes.bind_image_steps import layer_of, share_of
from prunepass.passes.extend_cache import extend_cache
from prunepass.passes.prune_image_tokens import prune_image_tokens
from prunepass.passes.select_image_features import select_image_features
from prunepass.planners.image_methods import (
    DOWNSAMPLE,
    NONE,
    image_method,
    image_steps,
    picture_share,
)
from prunepass.plans import Plain, Plan, Step
from prunepass.stages import Clock
from prunepass.vlm.cost import PromptCost, check_pays, prompt_cost
from prunepass.vlm.downsample import downsampled
from prunepass.vlm.facts import Facts, facts
from prunepass.vlm.layers import layers_left, numbers_left, without_layers
from prunepass.vlm.layout import Layout
from prunepass.vlm.manifest import ENGINES, VlmManifest
from prunepass.vlm.patches import ImageSize, Pictures, pictures_of
from prunepass.vlm.processor import described
from prunepass.vlm.programs import capture_embedding, capture_language, capture_vision
from prunepass.vlm.sparse_decode import DecodeInputs, read_fewer_inputs
from prunepass.vlm.split import Sees, split
from prunepass.vlm.tiles import Size
from prunepass.vlm.verify import check_programs, example_of, what_tokens_see


class Rewritten(NamedTuple):
    """A model taken apart and rewritten, nothing built.

    Attributes:
        programs: By the name of the engine.
        manifest: What binds them.
        plan: What was done.
        image_tokens: That the encoder made of a picture, as the model was.
        dense: What a prompt costs the model as it was.
        cost: What it costs now.
    """

    programs: dict[str, ExportedProgram]
    manifest: VlmManifest
    plan: Plan
    image_tokens: int
    dense: PromptCost
    cost: PromptCost


def rewrite(
    model: nn.Module,
    processor_or_layout: Any = None,
    *,
    method: str,
    keep: Sequence[float] | str | None = None,
    after: Sequence[int] | None = None,
    positions: str | None = None,
    options: Mapping[str, Plain] | None = None,
    image_size: ImageSize | None = None,
    without: Sequence[str] = (),
    decode_inputs: DecodeInputs | None = None,
    backend: str = "eager",
    name: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    template: str | None = None,
    clock: Clock | None = None,
) -> Rewritten:
    """A model taken apart and rewritten: `compile` unbuilt.

    Raises:
        PrunepassError: See `compile`.
    """
    clock = clock or Clock(None)
    if any(module.training for module in model.modules()):
        raise UsageError(
            "cannot compile a model in training mode", found="model.training is True", fix="eval()"
        )
    pictures = pictures_of(model, image_size)
    parts, known = split(model, pictures), facts(model, pictures)
    with clock("capture"):
        examples = pictures.examples(known.dtype)
        vision, any_images = capture_vision(
            parts.vision, pictures.encoder_inputs(examples[:1] if pictures.tiling else examples),
            alone=pictures.alone and pictures.tiling is None,
        )  # fmt: skip
        image_tokens = _image_tokens(vision, pictures)
    with clock("compare"):
        example = example_of(model, pictures, known, image_tokens=image_tokens)
        sees = what_tokens_see(model, pictures, example)
        language = split(model, pictures, sees=sees).language
        rows = 1 if known.grid_of is None else 3
    with clock("plan"):
        layers = layers_left(known.layers, without)
        steps = image_steps(
            method, layers=layers, image_tokens=image_tokens, keep=keep, after=after,
            positions=_positions(method, positions, rows), options=options,
        )  # fmt: skip
        policy = _policy(steps)
    with clock("rewrite"):
        shipped, grid, chosen = vision, known.grid_of, steps
        if method == DOWNSAMPLE:
            smaller = downsampled(
                model, pictures, image_tokens=image_tokens, share=picture_share(keep),
                options=options,
            )  # fmt: skip
            encoder = split(model, smaller).vision
            shipped, any_images = capture_vision(encoder, examples, alone=smaller.alone)
            grid = smaller.grid
        elif steps and steps[0].kind == "select_image_features":
            _refuse_grid(rows, method)
            _refuse_any_size(pictures, method)
            shipped, _ = select_image_features(vision, steps)
            steps = ()
        tokens = image_tokens if shipped is vision else _image_tokens(shipped, pictures)
        embedding = capture_embedding(parts.embedding)
        # Compared with the model at all of its image tokens, run with what the encoder gives.
        any_number = pictures.tiling is not None or shipped is not vision
        dense = capture_language(
            language, channels=known.channels, image_tokens=image_tokens, position_rows=rows,
            dtype=known.dtype, any_image_tokens=any_number,
        )  # fmt: skip
        whole_model = dense
        if without:
            # Told against the model before layers go: behind that, nothing is left to compare.
            whole = extend_cache(dense, (0,), positions="keep_original")
            captured = (vision, embedding, dense, whole)
            check_programs(captured, pictures, example, first_layers=(0,))
            dense = without_layers(dense, without)
        if decode_inputs is not None:
            dense = label_projections(dense)
        manifest = _manifest(
            model, processor_or_layout, known, dense, backend=backend, method=method,
            positions=policy, shares=_shares(steps, layers, pictures), pictures=pictures,
            image_tokens=(image_tokens, tokens), any_images=any_images, grid=grid,
            name=name or type(model).__name__, preprocessing=preprocessing, template=template,
            sees=sees, without=tuple(without),
        )  # fmt: skip
        prefill, _ = prune_image_tokens(dense, steps) if steps else (dense, None)
        if prefill is not dense:
            check_pays(dense, prefill, image_tokens=image_tokens)
        decode = extend_cache(dense, manifest.first_layers, positions=policy)  # type: ignore[arg-type]
    if not without:
        with clock("compare"):
            captured = (vision, embedding, dense, decode)
            check_programs(captured, pictures, example, first_layers=manifest.first_layers)
    if decode_inputs is not None:
        with clock("read fewer inputs"):
            prefill, decode, told = read_fewer_inputs(prefill, decode, decode_inputs)
        manifest = replace(manifest, decode_inputs=told)
    with clock("count"):
        tiles = len(pictures.encoder_inputs(examples[:1]))
        costs = [
            prompt_cost(encoder, language_part, image_tokens=n, tiles=tiles, layers=numbers)
            for encoder, language_part, n, numbers in (
                (vision, whole_model, image_tokens, range(known.layers)),
                (shipped, prefill, tokens, numbers_left(known.layers, without)),
            )
        ]
    return Rewritten(
        dict(zip(ENGINES, (shipped, embedding, prefill, decode), strict=True)),
        manifest,
        _plan(method, chosen, without, whole_model, manifest),
        image_tokens,
        *costs,
    )


def _plan(
    method: str, steps: Sequence[Step], without: Sequence[str], dense: ExportedProgram,
    manifest: VlmManifest,
) -> Plan:  # fmt: skip
    """What was done, to be read: layers first, then image tokens; sites as they are then."""
    left = [part / whole for part, whole in manifest.shares]
    notes: dict[str, Plain] = {
        "positions": manifest.positions, "cache": round(sum(left) / len(left), 4),
    }  # fmt: skip
    if without:
        notes["dropped"] = list(without)
    if manifest.decode_inputs is not None:
        notes |= {f"decode_{key}": value for key, value in manifest.decode_inputs.items()}
    if method == DOWNSAMPLE:
        notes["pixels"] = list(manifest.pixels)
    drops = [Step(kind="drop_layers", site=site) for site in without]
    return Plan(method=method, steps=(*drops, *steps), fingerprint=fingerprint(dense), notes=notes)


def _image_tokens(vision: ExportedProgram, pictures: Pictures) -> int:
    """How many tokens an encoder makes of a picture."""
    if pictures.tiling is not None:
        assert pictures.size is not None
        return pictures.tiling.tokens(pictures.size)
    output = next(n for n in vision.graph.nodes if n.op == "output")
    features: Tensor = output.args[0][0].meta["val"]
    return int(features.shape[1])


def _positions(method: str, asked: str | None, rows: int) -> str | None:
    """The policy: positions of time, row and column cannot be numbered anew."""
    if rows == 1:
        return asked
    if asked == "compact":
        raise PlanError(
            "positions of time, row and column cannot be numbered anew",
            found="positions='compact' for a model with three rows of positions",
            fix="positions='keep_original'",
        )
    return "keep_original" if method != NONE else asked


def _refuse_grid(rows: int, method: str) -> None:
    if rows > 1:
        raise PlanError(
            f"{method} takes tokens out in front of a model whose positions are rows and columns",
            found="the tokens that stay would lose their places",
            fix="transprune, fastv or another that prunes inside the language model",
        )


def _policy(steps: Sequence[Step]) -> str:
    found = steps[0].options.get("positions") if steps else None
    return str(found) if found else "keep_original"


def _refuse_any_size(pictures: Pictures, method: str) -> None:
    if pictures.tiling is not None:
        raise PlanError(
            f"{method} takes tokens out of a picture whose size is known",
            found="pictures of any size",
            fix="image_size=(height, width), or a method that prunes inside the language model",
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


def _manifest(
    model: nn.Module,
    processor_or_layout: Any,
    known: Facts,
    dense: ExportedProgram,
    *,
    backend: str,
    method: str,
    positions: str,
    shares: tuple[tuple[int, int], ...],
    pictures: Pictures,
    image_tokens: tuple[int, int],
    any_images: bool,
    grid: Size | None,
    name: str,
    preprocessing: Mapping[str, Any] | None,
    template: str | None,
    sees: Sees,
    without: tuple[str, ...],
) -> VlmManifest:
    output = next(n for n in dense.graph.nodes if n.op == "output")
    logits, key = (node.meta["val"] for node in output.args[0][:2])
    given = processor_or_layout if isinstance(processor_or_layout, Layout) else None
    processor = None if given is not None else processor_or_layout
    made, left = image_tokens
    tiling = pictures.tiling
    if given is not None and tiling is None and given.image_tokens not in image_tokens:
        raise UsageError(
            "the layout does not fit the model",
            found=f"{given.image_tokens} image tokens, the model makes {made}",
            fix=f"Layout(image_tokens={made}, ...)",
        )
    pixels = pictures.pixels if tiling is None else pictures.pixels[1:]
    told = (
        described(processor, pixels, known.image_token, tiles=tiling is not None)
        if processor is not None
        else {}
    )
    return VlmManifest(
        backend=backend,
        model=name,
        method=method,
        positions=positions,
        rows="text" if method == NONE else image_method(method).rows,
        shares=shares,
        cache=(int(key.shape[1]), int(key.shape[3])),
        vocabulary=int(logits.shape[2]),
        image_token=known.image_token if given is None else given.image_token,
        image_tokens=left if tiling is None else None,
        any_images=any_images,
        grid=grid,
        padding=known.padding if given is None else given.padding,
        stop=known.stop,
        context=known.context,
        pixels=pixels,
        tiling=tiling,
        preprocessing=preprocessing or told.get("preprocessing"),
        template=template or told.get("template"),
        image_mark=told.get("image_mark"),
        sees=sees,
        without=without,
    )
