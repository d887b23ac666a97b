"""Whether the parts of a model, put together again, say what the model says itself.

What a model does besides its parts cannot be listed: scaled embeddings, features that come in
again in later layers, prompts that are read in both directions. It shows in the logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.agreement import TAKEN_APART, difference
from prunepass.backends.eager import EagerEngine
from prunepass.errors import UnsupportedGraph, first_line
from prunepass.vlm.cache import Cache
from prunepass.vlm.facts import Facts
from prunepass.vlm.layout import Layout, Prompts, with_images
from prunepass.vlm.patches import Pictures
from prunepass.vlm.split import Sees, split

ROUNDING = 1e-5
"""Relative difference of logits at which no better is looked for."""

BEFORE, AFTER, ANSWER = 5, 6, 3
"""Tokens of the example: in front of the image, behind it, and of what is said to it."""


@dataclass(frozen=True)
class Example:
    """One prompt with one picture, and what the model itself says to it.

    Attributes:
        pixels: [1, ...], the picture.
        prompt: Its tokens, laid out.
        answer: [1, S] int64, tokens that follow.
        logits: [1, V] behind the prompt.
        after: [1, V] behind the answer.
    """

    pixels: Tensor
    prompt: Prompts
    answer: Tensor
    logits: Tensor
    after: Tensor


@torch.no_grad()
def example_of(model: nn.Module, pictures: Pictures, known: Facts, *, image_tokens: int) -> Example:
    """A prompt with a picture, run through the model as its users run it.

    Raises:
        UnsupportedGraph: The model does not take such a prompt.
    """
    words = _words(model, known.image_token)
    tokens = [*words[:BEFORE], *[known.image_token] * image_tokens, *words[BEFORE:][:AFTER]]
    answer = words[BEFORE + AFTER :][:ANSWER]
    layout = Layout(known.image_token, image_tokens, known.padding, known.grid_of)
    pixels = pictures.examples(known.dtype)[:1]
    whole = torch.tensor([[*tokens, *answer]])
    try:
        asked = _model_logits(model, whole[:, : len(tokens)], len(tokens), pictures, pixels)
        said = _model_logits(model, whole, len(tokens), pictures, pixels)
    except Exception as error:
        raise UnsupportedGraph(
            f"{type(model).__name__} does not take a prompt of text and one picture",
            found=f"{type(error).__name__}: {first_line(error, most=200)}",
            fix="a model that reads image tokens in the places of a token of its own",
        ) from error
    return Example(
        pixels, layout.prompts([tokens], [1]), whole[:, len(tokens) :], asked[:, -1], said[:, -1]
    )


@torch.no_grad()
def what_tokens_see(model: nn.Module, pictures: Pictures, example: Example) -> Sees:
    """What a token of a prompt attends to, found by trying.

    Raises:
        UnsupportedGraph: The parts say something else than the model, whatever they see.
    """
    parts = split(model, pictures)
    features = pictures.features(parts.vision, example.pixels)
    prompt = example.prompt
    embeds = with_images(parts.embedding(prompt.input_ids), features, prompt.image_positions)
    found: dict[Sees, float] = {}
    for sees in get_args(Sees):
        language = split(model, pictures, sees=sees).language
        try:
            logits = language(embeds, *_prompt_inputs(example.prompt))[0][:, -1]
        except Exception as error:
            raise UnsupportedGraph(
                f"the decoder of {type(model).__name__} does not run by itself",
                found=f"{type(error).__name__}: {first_line(error, most=200)}",
                fix="a decoder whose layers are attention with a cache of keys and values",
            ) from error
        found[sees] = difference(logits, example.logits)
        if found[sees] <= ROUNDING:
            return sees
    best = min(found, key=lambda sees: found[sees])
    if found[best] <= TAKEN_APART.of([example.logits]):
        return best
    raise UnsupportedGraph(
        f"{type(model).__name__} does more with an image than its parts do",
        found=f"logits differ by {found[best]:.1e} of the largest when encoder, embedding and "
        f"decoder are put together ({_suspect(model, features)})",
        fix="a model whose image tokens enter at the first layer only, such as LLaVA or Qwen2-VL",
    )


@torch.no_grad()
def check_programs(
    programs: Sequence[ExportedProgram],
    pictures: Pictures,
    example: Example,
    *,
    first_layers: Sequence[int],
) -> None:
    """Nothing, if the programs say what the model says, without pruning.

    Args:
        programs: Encoder, embedding, prefill without pruning, and decoder.
        pictures: What the encoder takes.
        example: What the model says.
        first_layers: The first layer of each stage of the decoder.

    Raises:
        UnsupportedGraph: They do not.
    """
    vision, embedding, prefill, decode = map(EagerEngine.of, programs)
    prompt = example.prompt
    features = pictures.features(lambda pixels: vision(pixels)[0], example.pixels)
    (embeds,) = embedding(prompt.input_ids)
    embeds = with_images(embeds, features, prompt.image_positions)
    logits, *layers = prefill(embeds, *_prompt_inputs(prompt))
    _check("prefill", logits[:, -1], example.logits)
    stages, said = len(first_layers), example.answer
    cache = Cache(
        first_layers, layers, [prompt.attention_mask] * stages, [0] * stages,
        prompt.next_position, room=said.shape[1],
    )  # fmt: skip
    place = prompt.next_position[:, None] + torch.arange(said.shape[1])
    if prompt.position_ids.dim() == 3:
        place = place.expand(3, *place.shape).contiguous()
    (embeds,) = embedding(said)
    logits = decode(
        embeds, torch.ones_like(said), place, cache.dropped, *cache.valid, *cache.layers
    )[0]
    _check("decoder", logits[:, -1], example.after)


def _check(part: str, logits: Tensor, told: Tensor) -> None:
    worst = difference(logits, told)
    if not worst <= TAKEN_APART.of([told]):
        raise UnsupportedGraph(
            f"the captured {part} says something else than the model",
            found=f"logits differ by {worst:.1e} of the largest",
            fix="check that the model computes the same at every length of a prompt",
        )


def _prompt_inputs(prompt: Prompts) -> tuple[Tensor, ...]:
    return (
        prompt.attention_mask, prompt.position_ids, prompt.image_positions,
        prompt.asking_positions, prompt.asking_votes,
    )  # fmt: skip


def _words(model: nn.Module, image_token: int) -> list[int]:
    """Numbers of tokens that stand for nothing special."""
    config: Any = model.config
    special = {v for k, v in config.to_dict().items() if "token" in k and isinstance(v, int)}
    special |= {image_token, *range(4)}
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    plain = [n for n in range(rows) if n not in special] or [0]
    count = BEFORE + AFTER + ANSWER
    return [plain[(1 + 7 * i) % len(plain)] for i in range(count)]


def _model_logits(
    model: nn.Module, ids: Tensor, prompt: int, pictures: Pictures, pixels: Tensor
) -> Tensor:
    """[1, T, V]: a prompt of so many tokens and what was said to it, with one picture.

    Models that tell tokens apart by their kind are told it as their processors do. Where the kind
    is `mm_token_type_ids`, images are 1. `token_type_ids` has two meanings. Where a prompt is read
    in both directions, what is no more of the prompt is 1; else images are.
    """
    given = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False,
        **pictures.inputs(pixels),
    }  # fmt: skip
    takes = inspect.signature(model.forward).parameters
    token = getattr(model.config, "image_token_id", None)
    image = (ids == (model.config.image_token_index if token is None else token)).long()  # type: ignore[union-attr]
    if "mm_token_type_ids" in takes:
        return _logits(model, {**given, "mm_token_type_ids": image})
    if "token_type_ids" in takes:
        answer = (torch.arange(ids.shape[1]) >= prompt).long()[None]
        told = _logits(model, {**given, "token_type_ids": answer})
        start = {"input_ids": ids[:, :BEFORE], "attention_mask": torch.ones_like(ids[:, :BEFORE])}
        alone = _logits(model, {**start, "use_cache": False})
        causal = difference(told[:, BEFORE - 1], alone[:, -1]) <= TAKEN_APART.of([told])
        return _logits(model, {**given, "token_type_ids": image}) if causal else told
    return _logits(model, given)


def _logits(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    found: Tensor = model(**given).logits
    return found


def _suspect(model: nn.Module, features: Tensor) -> str:
    """A guess at the reason, from what configs tell."""
    config: Any = model.config
    text = config.get_text_config()
    for name in (
        "final_logit_softcapping",
        "logit_scale",
        "logits_scaling",
        "cross_attention_layers",
    ):
        if getattr(text, name, None):
            return f"its config has {name}"
    return "such as masks, scales or features that come in later"
