"""Which sizes shrink with the tokens, what has to be gathered, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn import functional

from prunepass.analyse.token_positions import Refusal
from prunepass.analyse.token_trace import TokenTrace, trace_tokens
from prunepass.capturing import capture
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.passes.reduce_tokens import draft
from tests.conftest import Captured
from tests.steps import step
from tests.tiny_models import CHANNELS, PATCHES

PREFIX = {"mean": 0, "attention_pool": 0, "late_class": 0, "windows": 0, "convolved": 0,
          "distilled": 2, "prefix_slice": 2, "registers": 5}  # fmt: skip
T = PATCHES + 1


def at(program: ExportedProgram, site: str) -> tuple[GraphModule, Node]:
    module = open_module(program)
    return module, meta.labelled(module.graph)[f"{site}:output"]


def trace(captured: Captured, name: str, site: str) -> TokenTrace:
    module, node = at(captured(name), site)
    return trace_tokens(module, node, prefix=PREFIX.get(name, 1))


@pytest.mark.parametrize(
    ("name", "frozen", "offsets"),
    [
        ("class", 4, {0}),
        ("mean", 4, {0}),
        ("distilled", 4, {0}),
        ("registers", 4, {0}),
        ("rotary", 4, {0}),
        ("biased", 4, {0}),
        ("unfused", 4, {0}),
        ("talking", 4, {0}),
        ("post_norm", 4, {0}),
        ("parallel", 4, {0}),
        ("adversary", 4, {0}),
        ("attention_pool", 5, {0}),
        ("late_class", 6, {0, 1}),
    ],
)
def test_frozen_sizes(captured: Captured, name: str, frozen: int, offsets: set[int]) -> None:
    """Two a block (heads apart, heads together), one for each pooling attention."""
    found = trace(captured, name, "block[0].attention").frozen
    assert len(found) == frozen
    assert {size.offset for size in found} == offsets
    assert {size.path[:2] for size in found} == {("args", 1)}
    tokens = T - 1 + PREFIX.get(name, 1) if name != "adversary" else 16
    for size in found:
        assert size.node.args[1][size.path[2]] == tokens + size.offset


def test_fewer_frozen_sizes_further_down(captured: Captured) -> None:
    counts = [len(trace(captured, "class", f"block[{i}].output").frozen) for i in range(3)]
    assert counts == [4, 2, 0]


@pytest.mark.parametrize(
    ("name", "axes", "shape"),
    [
        ("rotary", ((0, -1),), (PATCHES, 14)),
        ("biased", ((2, 0), (3, 0)), (1, 2, T, T)),
        ("unfused", ((2, 0), (3, 0)), (1, 2, T, T)),
        ("adversary", ((2, 0), (3, 0)), (1, 4, 16, 16)),
    ],
)
def test_live_ins(
    captured: Captured, name: str, axes: tuple[tuple[int, int], ...], shape: tuple[int, ...]
) -> None:
    """cos and sin for queries and keys of two blocks; a bias for each of two blocks."""
    found = trace(captured, name, "block[0].output").live_ins
    assert len(found) == (8 if name == "rotary" else 2)
    for item in found:
        assert item.axes == axes
        assert meta.concrete_shape(item.source, 3) == shape


@pytest.mark.parametrize("name", ["class", "mean", "distilled", "registers", "attention_pool"])
def test_no_live_ins(captured: Captured, name: str) -> None:
    assert trace(captured, name, "block[0].attention").live_ins == ()


def test_a_branch_made_before_the_site_is_a_live_in(captured: Captured) -> None:
    """x + attention + mlp: behind the first addition, what the MLP computed from x is gathered."""
    found = trace(captured, "sum_of_three", "block[0].attention")
    (branch,) = (item for item in found.live_ins if item.axes == ((1, 0),))
    assert meta.concrete_shape(branch.source, 3) == (3, T, CHANNELS)
    assert meta.labels(branch.node) == (
        "block[0].mlp:output",
        "block[0].output:output",
        "block[1].attention:input",
    )


def test_axes_follow_the_tokens(captured: Captured) -> None:
    found = trace(captured, "rotary", "block[1].output")
    shapes = {(axes, meta.concrete_shape(node, 3)) for node, axes in found.axes.items() if axes}
    assert (((1, 0),), (3, T, CHANNELS)) in shapes
    assert (((2, -1),), (3, 2, T - 1, 14)) in shapes
    assert (((2, 0),), (3, 2, T, 14)) in shapes


def test_the_last_site_has_nothing_frozen(captured: Captured) -> None:
    found = trace(captured, "class", "block[2].output")
    assert found.frozen == ()
    assert found.live_ins == ()
    assert not found.reaches_output


def test_an_output_that_carries_tokens(captured: Captured) -> None:
    assert trace(captured, "tokens_out", "block[0].attention").reaches_output


REFUSALS = {
    "windows": ("aten.view.default", "no change of one size", "blocks.1"),
    "mixer": ("aten.linear.default", "tied to token positions", "blocks.0.mix"),
    "convolved": ("aten.reshape.default", "a grid of 4 x 5", "blocks.0"),
    "reads_patch": ("aten.select.int", "reads token 5", "the model itself"),
    "fixed_slice": ("aten.slice.Tensor", "tokens 3 to 17 of 21", "the model itself"),
    "without_last": ("aten.slice.Tensor", "from the end", "the model itself"),
    "strided": ("aten.slice.Tensor", "strides", "the model itself"),
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_refusals_name_operation_reason_module_and_sizes(captured: Captured, name: str) -> None:
    operation, reason, module = REFUSALS[name]
    with pytest.raises(Refusal) as e:
        trace(captured, name, "block[0].attention")
    assert e.value.what == f"cannot remove tokens before {module}"
    assert str(e.value.found).startswith(f"{operation} on [B, ")
    assert reason in str(e.value.found)
    assert str(e.value.node.target) == operation


ENDINGS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "split in the middle": (lambda x: x.split([5, 16], dim=1)[1].mean(1), "splits tokens into"),
    "narrow": (lambda x: x.narrow(1, 3, 15).mean(1), "slices tokens 3 to 18 of 21"),
    "unbind": (lambda x: x.unbind(1)[0], "by their position"),
    "chunk": (lambda x: x.chunk(3, 1)[0].mean(1), "by their position"),
    "pooling to seven": (
        lambda x: functional.adaptive_avg_pool1d(x.mT, 7).flatten(1),
        "by their position",
    ),
    "pooling pairs": (lambda x: functional.max_pool1d(x.mT, 2).mean(-1), "by their position"),
    "convolution": (
        lambda x: functional.conv1d(x.mT, torch.ones(4, CHANNELS, 3, dtype=x.dtype)).mean(-1),
        "by their position",
    ),
    "padded convolution": (
        lambda x: functional.conv1d(
            x.mT, torch.ones(4, CHANNELS, 3, dtype=x.dtype), padding="same"
        ).mean(-1),
        "by their position",
    ),
    "padding": (lambda x: functional.pad(x, (0, 0, 0, 1))[:, 0], "by their position"),
    "token behind": (lambda x: torch.cat([x, x[:, :1]], 1)[:, 0], "behind the tokens"),
    "sum and count": (lambda x: x.sum(1) / x.shape[1], "divides a sum by the number of tokens"),
    "sum and share": (lambda x: x.sum(1) * (1 / x.shape[1]), "divides a sum by the number"),
    "scrambled": (lambda x: x.reshape(x.shape[0], CHANNELS, -1).mean(-1), "mixes tokens"),
    "scrambled, frozen": (
        lambda x: x.reshape(x.shape[0], CHANNELS, T).mean(-1),
        "no change of one size",
    ),
    "running sum": (lambda x: x.cumsum(1)[:, 0], "by their position"),
    "reversed": (lambda x: x.flip(1)[:, 0], "by their position"),
    "rolled": (lambda x: x.roll(1, 1)[:, 0], "by their position"),
    "sorted": (lambda x: x.sort(dim=1).values[:, 0], "by their position"),
    "differences": (lambda x: x.diff(dim=1).mean(1), "not known to treat all tokens alike"),
    "resized": (
        lambda x: functional.interpolate(x.mT, size=10).mean(-1),
        "not known to treat all tokens alike",
    ),
    "written into": (
        lambda x: x.select_scatter(x[:, 0] * 0, 1, 5).mean(1),
        "not known to treat all tokens alike",
    ),
    "picked": (lambda x: x[:, torch.tensor([0, 7])].mean(1), "by their position"),
    "last": (lambda x: x[:, -1], "reads token -1"),
    "flattened": (lambda x: x.flatten(1)[:, :9], "does not shrink by one entry a token"),
    "twice": (lambda x: x.repeat(1, 2, 1).mean(1), "does not shrink by one entry a token"),
    "linear": (
        lambda x: functional.linear(x.mT, torch.ones(1, T, dtype=x.dtype))[..., 0],
        "tied to token positions",
    ),
    "matrix": (lambda x: (torch.ones(3, T, dtype=x.dtype) @ x).mean(1), "tied to token positions"),
}
ADMITTED: dict[str, Callable[[Tensor], Tensor]] = {
    "first of a split": lambda x: x.split([1, PATCHES], dim=1)[0].mean(1),
    "rest of a split": lambda x: x.split([1, PATCHES], dim=1)[1].mean(1),
    "narrowed to the patches": lambda x: x.narrow(1, 1, PATCHES).amax(1),
    "flipped channels": lambda x: x.flip(2)[:, 0],
    "padded channels": lambda x: functional.pad(x, (0, 3))[:, 0],
    "pooled to one": lambda x: functional.adaptive_avg_pool1d(x.mT, 1).flatten(1),
    "convolved one by one": lambda x: functional.conv1d(
        x.mT, torch.ones(4, CHANNELS, 1, dtype=x.dtype)
    ).mean(-1),
    "position weights": lambda x: (x * torch.linspace(0, 1, T, dtype=x.dtype)[:, None]).mean(1),
    "largest": lambda x: x.max(dim=1).values,
    "grams": lambda x: torch.einsum("btc,btd->bcd", x, x)[:, 0],
    "chosen by a mask": lambda x: torch.where(torch.arange(T)[:, None] > 3, x, 0 * x).mean(1),
    "one more in front": lambda x: torch.cat([x[:, :1], x], 1)[:, 0],
}


class _Stub(torch.nn.Module):
    """Just enough of a transformer to have one attention site, then the operation in question."""

    def __init__(self, ending: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        heads = x.unflatten(2, (2, 14)).transpose(1, 2)
        out = functional.scaled_dot_product_attention(heads, heads, heads)
        return self.ending(x + out.transpose(1, 2).flatten(2))


def stub(ending: Callable[[Tensor], Tensor]) -> tuple[_Stub, ExportedProgram]:
    model = _Stub(ending).eval()
    return model, capture(model, (stub_input(2),))


def stub_input(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(50 + batch)
    return torch.randn(batch, PATCHES, CHANNELS, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", list(ENDINGS))
def test_what_reads_tokens_by_position_is_refused(name: str) -> None:
    ending, reason = ENDINGS[name]
    _, program = stub(ending)
    module, node = at(program, "block[0].attention")
    with pytest.raises(Refusal) as e:
        trace_tokens(module, node, prefix=1)
    assert reason in str(e.value.found)


@pytest.mark.parametrize("name", list(ADMITTED))
def test_what_treats_tokens_alike_is_admitted(name: str) -> None:
    """And computes what the same operation computes on the kept tokens alone."""
    model, program = stub(ADMITTED[name])
    keep = 13
    module, record = draft(program, [step("block[0].attention", "random", keep, seed=6)])
    assert record.tokens == {"block[0].attention": (T, keep)}
    x = stub_input(3)
    result = module(x)
    assert result.shape == model(x).shape
    # Random scores are the same for all images, so the kept tokens can be told from one of them.
    if name in ("first of a split", "flipped channels", "padded channels", "one more in front"):
        torch.testing.assert_close(result, model(x), rtol=1e-12, atol=1e-12)
    else:
        assert not torch.allclose(result, model(x), rtol=1e-6, atol=1e-6)


def test_too_few_tokens(captured: Captured) -> None:
    module, node = at(captured("late_class"), "block[3].attention")
    with pytest.raises(Refusal, match="too few tokens") as e:
        trace_tokens(module, node, prefix=0)
    assert "1 tokens, 0 prefix" in str(e.value.found)


def test_a_site_must_be_a_token_stream(captured: Captured) -> None:
    module = open_module(captured("class"))
    with pytest.raises(Refusal, match=r"\[B, T, C\]"):
        trace_tokens(module, next(n for n in module.graph.nodes if n.name == "conv2d"), prefix=1)
