"""Fewer image tokens out of an encoder, held against the encoder of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunepass.errors import PlanError
from prunepass.passes.select_image_features import select_image_features
from prunepass.plans import Step
from prunepass.rules.diversity import diverse_tokens
from prunepass.rules.merge import gather_tokens
from prunepass.rules.vision_zip import vision_zip
from prunepass.vlm.programs import capture_vision
from prunepass.vlm.split import split
from tests.tiny_language import IMAGE_TOKENS, pixels, small_llava


def step(rule: str, keep: int) -> Step:
    return Step(kind="select_image_features", site="image_features", rule=rule, keep=keep)


@pytest.fixture(
    scope="module",
    params=[-2, pytest.param(-1, marks=pytest.mark.slow)],
    ids=["last-but-one", "last"],
)
def model(request: pytest.FixtureRequest) -> Any:
    """LLaVA reads the layer before the last one; what lies behind it is traced, too."""
    made = small_llava()
    made.config.vision_feature_layer = request.param
    made.model.config.vision_feature_layer = request.param
    return made


@pytest.fixture(scope="module")
def program(model: Any) -> Any:
    return capture_vision(split(model).vision, pixels(0, images=2).float())[0]


def hidden(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [I, 1 + N, C] of the layer in use, probabilities and keys of its attention."""
    tower = model.model.vision_tower
    found: dict[str, Tensor] = {}
    number = model.config.vision_feature_layer
    layers = getattr(tower, "vision_model", tower).encoder.layers
    attention = layers[number if number == -1 else len(layers) + number].self_attn
    hooks = [
        attention.q_proj.register_forward_hook(lambda m, a, out: found.update(query=out)),
        attention.k_proj.register_forward_hook(lambda m, a, out: found.update(key=out)),
    ]
    with torch.no_grad():
        states = tower(images, output_hidden_states=True).hidden_states[number]
    for hook in hooks:
        hook.remove()
    query, key = (found[name].unflatten(2, (2, -1)).transpose(1, 2) for name in ("query", "key"))
    scores = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
    return states, scores.softmax(-1), key


@pytest.mark.parametrize("rule", ["vision-zip", "diverse"])
def test_the_encoder_gives_what_the_rule_says(model: Any, program: Any, rule: str) -> None:
    keep, images = 7, pixels(3).float()
    smaller, record = select_image_features(program, [step(rule, keep)])
    with torch.no_grad():
        (found,) = smaller.module(check_guards=False)(images)
        states, seen, key = hidden(model, images)
        project = model.model.multi_modal_projector
        if rule == "diverse":
            whole = project(states[:, 1:])
            right = gather_tokens(whole, diverse_tokens(whole, keep=keep))
        else:
            right = project(vision_zip(states, seen, key, keep=keep, contextual=1)[:, 1:])
    assert record.tokens == {"image_features": (IMAGE_TOKENS, keep)}
    assert found.shape[-2:] == (keep, 32)
    torch.testing.assert_close(found.reshape(right.shape), right, rtol=1e-4, atol=1e-4)


def test_all_tokens_are_the_program_itself(program: Any) -> None:
    assert select_image_features(program, [step("vision-zip", IMAGE_TOKENS)])[0] is program


@pytest.mark.parametrize("keep", [0.5, IMAGE_TOKENS + 1])
def test_shares_and_too_many_are_refused(program: Any, keep: float) -> None:
    with pytest.raises(PlanError, match="a count from 1 to 16"):
        select_image_features(program, [step("diverse", keep)])  # type: ignore[arg-type]
