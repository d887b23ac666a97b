"""A small bundle of each kind that is made here: its engines as programs, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.apply import apply_plan
from prunepass.capturing import capture
from prunepass.planners.budget import plan as plan_tokens
from prunepass.planners.sparsity import plan_inputs
from tests import tiny_decoders
from tests.tiny_language import small_llava
from tests.tiny_models import images, tiny
from tests.tiny_ssm import MODELS, pictures, pruned

Engines = Mapping[str, ExportedProgram]


@cache
def vit() -> Engines:
    """Tokens merged by similarity, and dropped by page rank."""
    program = capture(tiny("class").float(), (images(2, dtype=torch.float32),))
    found = {"dense": program}
    for method, flops in (("tome", 0.8), ("zero-tprune", 0.8)):
        found[method] = apply_plan(program, plan_tokens(program, method=method, flops=flops))
    return found


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=pixel_values).logits
        return found


def _hf() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=32, patch_size=8, num_labels=5,
    )  # fmt: skip
    return _Logits(ViTForImageClassification(config)).eval()


@cache
def hf() -> Engines:
    """A ViT of transformers."""
    program = capture(_hf(), (torch.randn(2, 3, 32, 32),))
    made = plan_tokens(program, method="weighted-merge", flops=0.8)
    return {"compressed": apply_plan(program, made)}


@cache
def downsample() -> Engines:
    """The baseline that shrinks pictures in front of a model."""
    from prunepass.downsample import Downsampled

    program = capture(Downsampled(_hf(), 48, 32).eval(), (torch.randn(2, 3, 48, 48),))
    return {"compressed": program}


def state_space(name: str, *, block: int) -> Callable[[], Engines]:
    """A state-space model with tokens dropped behind a block."""

    @cache
    def make() -> Engines:
        program = capture(MODELS[name]().float(), (pictures(2).float(),))
        return {"compressed": pruned(program, {block: 0.6})}

    return make


@cache
def language() -> Engines:
    """Linear layers that read half of their inputs, and inputs above a threshold."""
    program = tiny_decoders.captured("llama")
    found = {"dense": program}
    for method in ("wina", "cats"):
        made = plan_inputs(program, method=method, keep=0.5, smallest=0)
        found[method] = apply_plan(program, made)
    return found


@cache
def vision_language() -> Engines:
    """A LLaVA that prunes image tokens in its layers and decodes with half of the inputs."""
    from prunepass.vlm.rewrite import rewrite
    from prunepass.vlm.sparse_decode import DecodeInputs

    programs, *_ = rewrite(
        small_llava(), method="transprune", keep=(0.75, 0.5, 0.25), after=(1, 2, 3),
        decode_inputs=DecodeInputs(keep=0.5, smallest=0),
    )  # fmt: skip
    return programs


KINDS: Mapping[str, Callable[[], Engines]] = {
    "ViT": vit,
    "ViT of transformers": hf,
    "smaller picture": downsample,
    "Vim": state_space("vim", block=0),
    "PlainMamba": state_space("plain_mamba", block=1),
    "language model": language,
    "vision-language model": vision_language,
}
ENGINES: Mapping[str, tuple[str, ...]] = {
    "ViT": ("dense", "tome", "zero-tprune"),
    "ViT of transformers": ("compressed",),
    "smaller picture": ("compressed",),
    "Vim": ("compressed",),
    "PlainMamba": ("compressed",),
    "language model": ("dense", "wina", "cats"),
    "vision-language model": ("vision", "embedding", "prefill", "decode"),
}
"""Kind -> its engines, for naming tests before anything is captured."""
