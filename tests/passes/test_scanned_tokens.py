"""Tokens dropped and merged where they are scanned: a program equals the model run by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prunepass.models.vim import Vim

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.backends.aot_inductor import AotInductorBackend
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_operator import FILE
from prunepass.capturing import capture
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.graph.edit import seal
from prunepass.planners.budget import plan
from prunepass.rules.scan_output import scan_output
from tests.kept_indices import with_kept
from tests.reference.eager_ssm import Twin
from tests.steps import step
from tests.tiny_ssm import MODELS, model_and_program, pictures, pruned

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def importance(_: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return scan_output(y[None])[0]


@pytest.mark.parametrize("alignment", ["decay0", "decay", "hold"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_model_run_by_hand(name: str, alignment: str) -> None:
    """SS2 and SS3 in a whole program: the twin walks all places and decays where none is left."""
    model, program = model_and_program(name)
    keep = {1: 17} if "plain" in name else {0: 19, 1: 11}
    program = pruned(program, dict(keep), alignment=alignment)
    twin = Twin(model, keep, importance, alignment)
    x = pictures(3, seed=5)
    torch.testing.assert_close(program.module()(x), twin(x), **EXACT)
    if name == "vim":
        # SS8: the class token stays, once, in every picture, and is the one that is read.
        assert all(kept.count(model.middle) == 1 for kept in twin.kept)


def test_convolutions_can_see_the_gaps() -> None:
    model, program = model_and_program("vim")
    x = pictures(2, seed=6)
    scattered = pruned(program, {0: 19, 1: 11}, convolution="scatter").module()(x)
    twin = Twin(model, {0: 19, 1: 11}, importance, convolution="scatter")
    torch.testing.assert_close(scattered, twin(x), **EXACT)
    compact = pruned(program, {0: 19, 1: 11}, convolution="compact").module()(x)
    assert (compact - scattered).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_keeping_all_is_the_identity(name: str) -> None:
    """SS1: nothing pruned equals the dense program, to the bit."""
    _, program = model_and_program(name)
    x = pictures(2)
    same = pruned(program, {1: 1.0}, alignment="decay0")
    assert torch.equal(same.module()(x), program.module()(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("action", ["drop", "merge"])
def test_a_batch_is_its_pictures(name: str, action: str) -> None:
    _, program = model_and_program(name)
    module = pruned(program, {1: 0.5}, action=action).module()
    x = pictures(4, seed=7)
    singles = torch.cat([module(one[None]) for one in x])
    torch.testing.assert_close(module(x), singles, **EXACT)


def test_gaps_change_the_result_and_no_gaps_do_not() -> None:
    """SS4 in a whole program: with gaps, `hold` and `decay0` are two things."""
    _, program = model_and_program("vim")
    x = pictures(2, seed=8)
    held = pruned(program, {0: 0.5}, alignment="hold").module()(x)
    aligned = pruned(program, {0: 0.5}, alignment="decay0").module()(x)
    assert (held - aligned).abs().max() > 1e-3


class _Dense(torch.nn.Module):
    """A Vim that hands out what it makes of every token, as a segmentation head would take it."""

    def __init__(self, vim: Any) -> None:
        super().__init__()
        self.vim = vim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches, vim = self.vim.patch_embed(images), self.vim
        own = vim.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([patches[:, : vim.middle], own, patches[:, vim.middle :]], 1) + vim.pos_embed
        for layer in vim.layers:
            x = layer(x)
        normed: torch.Tensor = vim.norm_f(x)
        return normed


def test_all_tokens_come_back_for_dense_outputs() -> None:
    """Tokens that stay are what they would be; those that went are as they last were."""
    model = _Dense(MODELS["vim"]()).eval()
    program = capture(model, (pictures(2),))
    with pytest.raises(UnsupportedGraph, match="carries the tokens"):
        pruned(program, {0: 0.7})
    x = pictures(2, seed=11)
    fewer = pruned(program, {0: 19, 1: 11}, restore="block[2].output").module()(x)
    assert fewer.shape == model(x).shape
    twin = Twin(model.vim, {0: 19, 1: 11}, importance)
    twin(x)
    for picture, (first, second) in enumerate(zip(twin.kept[::2], twin.kept[1::2], strict=True)):
        state = twin.states[picture]
        gone_first = [t for t in range(26) if t not in first]
        gone_second = [t for t in first if t not in second]
        expected = torch.zeros_like(fewer[picture])
        expected[gone_first] = model.vim.norm_f(state[0][gone_first])
        expected[gone_second] = model.vim.norm_f(state[1][gone_second])
        expected[second] = model.vim.norm_f(state[2][second])
        torch.testing.assert_close(fewer[picture], expected, **EXACT)
    with pytest.raises(PlanError, match="come back"):
        pruned(program, {1: 0.5}, restore="block[0].output")


class _Segmenter(torch.nn.Module):
    """Dense outputs with a head that costs as much as a block."""

    def __init__(self, vim: Any) -> None:
        super().__init__()
        self.dense = _Dense(vim)
        self.head = torch.nn.Linear(vim.pos_embed.shape[-1], 200)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.dense(images))
        return found


def test_a_budget_counts_what_is_dense_behind_the_tokens_return() -> None:
    program = capture(_Segmenter(MODELS["vim"]()).double().eval(), (pictures(2),))
    with pytest.raises(UnsupportedGraph, match=r"--option restore=block\[2\]\.output"):
        plan(program, method="ssm-align", flops=0.8)
    made = plan(program, method="ssm-align", flops=0.8, options={"restore": "block[2].output"})
    fewer = apply_plan(program, made)
    assert macs(fewer) / macs(program) == pytest.approx(0.8, rel=0.01)
    assert made.notes["macs_ratio"] == pytest.approx(macs(fewer) / macs(program), abs=1e-4)
    assert fewer.module()(pictures(3)).shape == program.module()(pictures(3)).shape
    with pytest.raises(PlanError, match="cannot come back"):
        plan(program, method="ssm-align", flops=0.8, options={"restore": "block[9].output"})


@pytest.mark.parametrize("rule", ["random", "similar-hidden"])
def test_other_rules_prune_scans_too(rule: str) -> None:
    _, program = model_and_program("vim")
    fewer = pruned(program, {0: 0.5}, rule=rule)
    assert macs(fewer) < 0.8 * macs(program)
    assert torch.isfinite(fewer.module()(pictures(2))).all()


@pytest.mark.parametrize(
    ("name", "action", "options"),
    [
        ("vim", "drop", {"alignment": "decay", "convolution": "scatter"}),
        ("vim", "merge", {}),
        ("plain_mamba", "drop", {}),
    ],
)
def test_onnx_runtime_says_the_same(
    name: str, action: Any, options: dict[str, Any], tmp_path: Any
) -> None:
    """The same numbers and the same tokens, with the compiled scan and with that of ONNX."""
    model = MODELS[name]().float()
    program = capture(model, (pictures(2).float(),))
    module = with_kept(program, [step("block[1].output", "scan-output", 0.6, action, **options)])
    backend = OnnxBackend(threads=1)
    backend.write(seal(module, program), tmp_path)
    engines = [backend.load(tmp_path)]
    if (tmp_path / FILE).exists():
        (tmp_path / FILE).unlink()
        engines.append(backend.load(tmp_path))
    x = pictures(3, seed=9).float()
    expected, kept = module(x)
    for engine in engines:
        logits, same = engine(x)
        near = 1e-4 * float(expected.detach().abs().max())
        torch.testing.assert_close(logits, expected, rtol=0, atol=near)
        assert torch.equal(same, kept)


@pytest.mark.slow
@pytest.mark.skipif(AotInductorBackend().unavailable() is not None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["vim", "plain_mamba"])
def test_aot_inductor_says_the_same(name: str, tmp_path: Any) -> None:
    model = MODELS[name]().float()
    program = capture(model, (pictures(2).float(),))
    fewer = pruned(program, {1: 0.6})
    engine = AotInductorBackend().build(fewer, tmp_path)
    for count in (1, 3):
        x = pictures(count, seed=9).float()
        expected = fewer.module()(x).detach()
        near = 1e-4 * float(expected.detach().abs().max())
        torch.testing.assert_close(engine(x)[0], expected, rtol=0, atol=near)


def test_the_budget_counts_what_the_program_does() -> None:
    for name in MODELS:
        _, program = model_and_program(name)
        made = plan(program, method="ssm-align", keep=0.6, at=(1,))
        fewer = pruned(program, {1: 0.6})
        predicted = made.notes["macs_ratio"]
        assert predicted == pytest.approx(macs(fewer) / macs(program), abs=5e-5)


def test_a_budget_is_met() -> None:
    model = Vim(image_size=96, patch=8, channels=16, depth=12, states=4, classes=5).eval()
    program = capture(model, (torch.randn(2, 3, 96, 96),))
    made = plan(program, method="ssm-align", flops=0.6)
    assert made.notes["macs_ratio"] == pytest.approx(0.6, abs=0.006)


def test_refusals() -> None:
    _, program = model_and_program("vim")
    with pytest.raises(PlanError, match="cannot keep 1 tokens"):
        pruned(program, {0: 1})
    with pytest.raises(PlanError, match="alignment called 'hol'") as found:
        pruned(program, {0: 9}, alignment="hol")
    assert "hold" in str(found.value)
    with pytest.raises(PlanError, match="needs"):
        pruned(program, {0: 9}, rule="page-rank")
    with pytest.raises(PlanError, match="already"):
        pruned(pruned(program, {0: 20}), {1: 12})
    _, grid = model_and_program("plain_mamba")
    with pytest.raises(UnsupportedGraph):
        pruned(grid, {0: 12})  # its first layer ends with a convolution over the whole grid
    assert sites(program).fixed_tokens == (12,)
