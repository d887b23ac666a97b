from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunepass import capture
from prunepass.analyse.sites import sites
from prunepass.errors import CaptureError
from prunepass.graph import meta
from tests.conftest import Captured
from tests.tiny_models import images, tiny

NAMES = ["class", "registers", "rotary", "talking", "late_class", "adversary"]


@pytest.mark.parametrize("name", NAMES)
def test_program_equals_model_at_every_batch(captured: Captured, name: str) -> None:
    module, model = captured(name).module(), tiny(name)
    for batch in (1, 2, 5):
        x = images(batch, seed=60, name=name)
        torch.testing.assert_close(module(x), model(x), rtol=1e-12, atol=1e-12)


def test_one_example_is_enough() -> None:
    program = capture(tiny("class"), (images(1),))
    assert program.module()(images(3)).shape == (3, 11)


def test_a_fixed_batch() -> None:
    program = capture(tiny("class"), (images(3),), dynamic_batch=False)
    sizes = [s for n in program.graph.nodes for s in meta.shape(n) or ()]
    assert all(isinstance(size, int) for size in sizes)
    assert sites(program)["block[1].attention"].tokens == 21
    assert all(site.refusal is None for site in sites(program))


def test_the_program_is_not_decomposed(captured: Captured) -> None:
    targets = [str(n.target) for n in captured("class").graph.nodes]
    assert targets.count("aten.scaled_dot_product_attention.default") == 3
    assert targets.count("aten.layer_norm.default") == 7


def test_parameters_keep_their_names(captured: Captured) -> None:
    model = tiny("class")
    state = captured("class").state_dict
    assert set(state) == {name for name, _ in model.named_parameters()}


def test_a_program_exported_elsewhere_is_labelled() -> None:
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        tiny("class"), (images(2),), dynamic_shapes=({0: batch},), strict=False
    )
    program = capture(exported, ())
    assert sites(program) == sites(capture(tiny("class"), (images(2),)))


def test_training_mode_is_refused() -> None:
    model = tiny("class")
    model.blocks[1].train()
    with pytest.raises(CaptureError, match="training mode") as e:
        capture(model, (images(2),))
    assert "eval()" in str(e.value.fix)


@pytest.mark.parametrize("wrong", [lambda x: x, "vit", None])
def test_what_is_no_module_is_refused(wrong: object) -> None:
    with pytest.raises(CaptureError, match=r"only a torch\.nn\.Module"):
        capture(wrong, (images(2),))  # type: ignore[arg-type]


def test_inputs_must_be_a_tuple_of_tensors() -> None:
    for wrong in (images(2), [images(2)], (images(2), 3)):
        with pytest.raises(CaptureError, match="tuple of tensors"):
            capture(tiny("class"), wrong)  # type: ignore[arg-type]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


@pytest.mark.parametrize("model", [Branching(), FixedBatch()])
def test_what_torch_cannot_export_is_told(model: nn.Module) -> None:
    with pytest.raises(CaptureError, match=f"could not capture {type(model).__name__}") as e:
        capture(model.eval(), (images(2),))
    assert e.value.found
    assert e.value.__cause__ is not None
