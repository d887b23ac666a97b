"""Decoding that reads fewer inputs, held against the model of transformers with inputs masked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunepass import vlm
from prunepass.errors import PlanError, UnsupportedGraph, UsageError
from prunepass.rules.weight_aware import column_norm, input_score, kept_inputs
from tests.tiny_language import IMAGE_TOKEN, IMAGE_TOKENS, LAYERS, in_memory, pixels, prompt
from tests.vlm.conftest import AFTER, KEEP

HALF = vlm.DecodeInputs(keep=0.5, smallest=0)


@contextmanager
def masked(model: nn.Module, keep: float) -> Iterator[None]:
    """Linear layers of the decoder see the inputs of the largest score, the others as zeros."""

    def hook(layer: Any, given: tuple[Tensor]) -> Tensor:
        x = given[0]
        norm = column_norm(layer.weight) if layer.informed else None
        order = input_score(x, norm).topk(kept_inputs(x.shape[-1], keep), dim=-1).indices
        return x * torch.zeros_like(x).scatter(-1, order, 1.0)

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    hooks = []
    for name, layer in layers:
        layer.informed = name.endswith(("k_proj", "gate_proj"))  # type: ignore[assignment]
        hooks.append(layer.register_forward_pre_hook(hook))
    yield
    for one in hooks:
        one.remove()


def test_a_step_is_the_model_with_inputs_masked(llava: Any) -> None:
    bundle = in_memory(llava, method="none", decode_inputs=HALF)
    tokens, picture = prompt(3), pixels(3)
    talk = bundle.begin([picture], [tokens], room=2)
    (at,) = [i for i, token in enumerate(tokens) if token == IMAGE_TOKEN]
    whole = torch.tensor([tokens[:at] + [IMAGE_TOKEN] * IMAGE_TOKENS + tokens[at + 1 :]])
    with torch.no_grad():
        told = llava(input_ids=whole, pixel_values=picture, use_cache=True)
        torch.testing.assert_close(talk.logits, told.logits[:, -1], rtol=1e-9, atol=1e-9)
        for token in (5, 11):
            said = torch.tensor([[token]])
            bundle.extend(talk, said)
            with masked(llava.model.language_model, 0.5):
                told = llava(input_ids=said, past_key_values=told.past_key_values, use_cache=True)
            torch.testing.assert_close(talk.logits, told.logits[:, -1], rtol=1e-9, atol=1e-9)
    reads = bundle.manifest.decode_inputs
    assert reads is not None
    assert (reads["layers"], reads["dense_layers"]) == (7 * LAYERS, 0)
    assert 0.4 < reads["macs_ratio"] < 0.7


@pytest.mark.slow
def test_beside_pruned_image_tokens(llava: Any, bundle: vlm.VlmBundle) -> None:
    """Prefill says what it says without; where the next layer scores, its layers stay dense."""
    sparse = in_memory(
        llava, method="transprune", keep=KEEP, after=AFTER, decode_inputs=HALF,
        positions=bundle.manifest.positions,
    )  # fmt: skip
    talks = [b.begin([pixels(4)], [prompt(4)], room=2) for b in (bundle, sparse)]
    torch.testing.assert_close(talks[1].logits, talks[0].logits, rtol=1e-12, atol=1e-12)
    assert torch.equal(talks[1].kept[0], talks[0].kept[0])
    reads = sparse.manifest.decode_inputs
    assert reads is not None
    assert reads["dense_layers"] == 2 * len(AFTER)
    for one, talk in zip((bundle, sparse), talks, strict=True):
        one.extend(talk, torch.tensor([[9]]))
    assert (talks[1].logits - talks[0].logits).abs().max() > 1e-3


@pytest.mark.slow
def test_onnx_holds_each_weight_once(tmp_path: Any) -> None:
    from tests.tiny_language import small_llava

    sizes = {}
    for name, asked in (("dense", None), ("sparse", HALF)):
        folder = tmp_path / name
        bundle = vlm.compile(small_llava(), method="none", decode_inputs=asked, folder=folder)
        shared = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".data", ".onnx")]
        sizes[name] = sum(p.stat().st_size for p in shared)
    assert sizes["sparse"] < 1.2 * sizes["dense"]
    assert vlm.load(tmp_path / "sparse").manifest == bundle.manifest
    assert len(bundle.generate(pixels(1).float(), prompt(1), max_new_tokens=4).tokens) == 4


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (vlm.DecodeInputs(keep=0.5), UnsupportedGraph),
        (vlm.DecodeInputs(keep=0.0, smallest=0), PlanError),
        (vlm.DecodeInputs(keep=0.5, method="tome", smallest=0), UsageError),
    ],
)
def test_what_cannot_be(llava: Any, asked: vlm.DecodeInputs, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        in_memory(llava, method="none", decode_inputs=asked)
