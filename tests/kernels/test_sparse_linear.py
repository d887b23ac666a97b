from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prunepass
from prunepass.errors import PrunepassError, UsageError
from prunepass.kernels.native import compiled, dense_product, has_native
from prunepass.kernels.sparse_linear import bagged, gated_linear
from prunepass.rules.weight_aware import (
    column_norm,
    input_score,
    masked_linear,
    threshold_mask,
    threshold_of,
    top_mask,
)

SIZES = [(40, 96), (64, 1200), (7, 5), (513, 1025)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
PRODUCTS: dict[str, Callable[..., Tensor]] = {"operator": gated_linear, "bags": bagged}


def drawn(inputs: int, outputs: int, dtype: torch.dtype, rows: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    return weight, torch.randn(rows, inputs, generator=generator).to(dtype)


def assert_near(found: Tensor, right: Tensor) -> None:
    gap = (found.double() - right.double()).abs().max() / right.double().abs().max()
    assert float(gap) < TOLERANCE[found.dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_equals_mask_and_dense_product(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    weight, x = drawn(inputs, outputs, dtype)
    norm = column_norm(weight)
    count = max(1, inputs // 3)
    found = prunepass.sparse_linear(x, weight.t().contiguous(), norm, count)
    mask = top_mask(input_score(x, norm), count)
    assert_near(found, masked_linear(x.double(), weight.double(), None, mask))
    assert found.dtype is dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_keeping_everything_is_bit_identical(dtype: torch.dtype) -> None:
    weight, x = drawn(64, 48, dtype)
    stored = weight.t().contiguous()
    for keep in (1.0, 64):
        assert torch.equal(prunepass.sparse_linear(x, stored, None, keep), x @ stored)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_more_rows_than_pay_are_dense(dtype: torch.dtype) -> None:
    weight, x = drawn(96, 640, dtype, rows=5)
    found = prunepass.sparse_linear(x.reshape(5, 1, -1), weight.t().contiguous(), None, 0.5)
    assert found.shape == (5, 1, 640)
    assert_near(found.reshape(5, -1), x.double() @ weight.double().t())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_each_row_has_inputs_of_its_own(dtype: torch.dtype) -> None:
    weight, x = drawn(33, 70, dtype, rows=4)
    found = gated_linear(x, x.abs(), weight.t().contiguous(), 11, None, 4)
    right = masked_linear(x.double(), weight.double(), None, top_mask(x.abs(), 11))
    assert_near(found, right)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_threshold_keeps_what_lies_above(dtype: torch.dtype) -> None:
    weight, x = drawn(128, 96, dtype, rows=2)
    limit = threshold_of(x.abs().double(), 0.4)
    found = gated_linear(x, x.abs(), weight.t().contiguous(), 1, limit, 2)
    right = masked_linear(x.double(), weight.double(), None, threshold_mask(x.abs(), limit))
    assert_near(found, right)


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_embedding_bags_say_the_same_as_the_compiled_kernel(threshold: float | None) -> None:
    weight, x = drawn(200, 256, torch.float32, rows=3)
    stored = weight.t().contiguous()
    bags = bagged(x, x.abs(), stored, 90, threshold)
    assert_near(bags, gated_linear(x, x.abs(), stored, 90, threshold, 3))


def test_equal_scores_keep_lower_indices() -> None:
    if not has_native(torch.float32):
        pytest.skip("no C++ compiler: embedding bags take either of two equal scores")
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]])
    found = gated_linear(x, x.abs(), torch.eye(5), 3, None, 1)
    assert found.tolist() == [[1.0, -1.0, 0.0, 0.0, 2.0]]


@pytest.mark.parametrize("keep", [0.0, 1.5, 0, 65, 0.001, True, -3, float("nan"), "0.5", None])
def test_refuses_to_keep_less_than_one_or_more_than_all(keep: Any) -> None:
    weight, x = drawn(64, 48, torch.float32)
    with pytest.raises(PrunepassError, match="between 1 and 64 inputs") as caught:
        prunepass.sparse_linear(x, weight.t().contiguous(), None, keep)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("keep", [np.float32(0.5), np.float64(0.5), np.int64(32)])
def test_numbers_of_numpy_are_numbers(keep: Any) -> None:
    weight, x = drawn(64, 48, torch.float32)
    stored = weight.t().contiguous()
    found = prunepass.sparse_linear(x, stored, None, keep)
    assert torch.equal(found, prunepass.sparse_linear(x, stored, None, 32))


X, STORED = torch.ones(1, 64), torch.ones(64, 48)
MISFITS: dict[str, tuple[Any, ...]] = {
    "x too wide": (torch.ones(1, 128), STORED, None),
    "x too narrow": (torch.ones(1, 32), STORED, None),
    "x without inputs": (torch.tensor(1.0), STORED, None),
    "weight as it was": (X, torch.ones(48, 64), None),
    "weight of one row": (X, torch.ones(64), None),
    "weight narrower numbers": (X, STORED.bfloat16(), None),
    "weight wider numbers": (X, STORED.double(), None),
    "x narrower numbers": (X.half(), STORED, None),
    "whole numbers": (X.long(), STORED.long(), None),
    "weight elsewhere": (X, STORED.to("meta"), None),
    "a list": ([1.0] * 64, STORED, None),
    "norms too few": (X, STORED, torch.ones(63)),
    "norms of outputs": (X, STORED, torch.ones(48)),
    "norms of rows": (X, STORED, torch.ones(2, 64)),
    "norms and share exchanged": (X, STORED, 0.5),
}


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize("name", MISFITS)
def test_refuses_tensors_that_do_not_fit_before_reading_them(name: str, keep: float) -> None:
    with pytest.raises(UsageError) as caught:
        prunepass.sparse_linear(*MISFITS[name], keep)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("score", "keep", "threshold"),
    [
        (torch.ones(1, 32), 8, None),
        (torch.ones(1, 64).double(), 8, None),
        (torch.ones(1, 64), 0, None),
        (torch.ones(1, 64), 65, None),
        (torch.ones(1, 64), 8, float("nan")),
    ],
)
def test_operator_refuses_what_kernels_would_read_past(
    score: Tensor, keep: int, threshold: float | None
) -> None:
    with pytest.raises(PrunepassError) as caught:
        gated_linear(X, score, STORED, keep, threshold, 1)
    assert len(str(caught.value).splitlines()) == 3


def test_norms_may_be_of_a_wider_kind() -> None:
    weight, x = drawn(64, 96, torch.float32)
    stored = weight.t().contiguous()
    found = prunepass.sparse_linear(x, stored, column_norm(weight.double()), 20)
    assert torch.equal(found, prunepass.sparse_linear(x, stored, column_norm(weight), 20))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_weights_may_lie_in_any_order(product: Any, dtype: torch.dtype) -> None:
    weight, x = drawn(64, 96, dtype)
    lies = (x, x.abs(), weight.t(), 20, None)
    found = product(*lies) if product is bagged else product(*lies, 1)
    assert_near(found, masked_linear(x.double(), weight.double(), None, top_mask(x.abs(), 20)))


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_rows_give_no_rows(dtype: torch.dtype, threshold: float | None) -> None:
    weight, x = drawn(64, 96, dtype, rows=0)
    found = gated_linear(x[None], x[None], weight.t().contiguous(), 20, threshold, 1)
    assert found.shape == (1, 0, 96)
    assert found.dtype is dtype


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize(("value", "norm"), [("nan", 1.0), ("inf", 1.0), ("inf", 0.0)])
def test_what_is_no_number_is_not_lost(
    product: Any, threshold: float | None, value: str, norm: float
) -> None:
    """As in a dense product; infinity times a norm of zero is a NaN of negative sign on x86."""
    weight, x = drawn(64, 96, torch.float32)
    norms = torch.ones(64)
    x[0, 5], norms[5] = float(value), norm
    given = (x, input_score(x, norms), weight.t().contiguous(), 20, threshold)
    found = product(*given) if product is bagged else product(*given, 1)
    assert not found.isfinite().any()


def test_several_threads_of_python_get_what_one_gets() -> None:
    weight, x = drawn(256, 2048, torch.float32, rows=32)
    stored = weight.t().contiguous()
    wanted = [prunepass.sparse_linear(row, stored, None, 0.3) for row in x]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda row: prunepass.sparse_linear(row, stored, None, 0.3), x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_operator_is_registered_as_torch_wants_it() -> None:
    weight, x = drawn(40, 96, torch.float32)
    arguments = (x, x.abs(), weight.t().contiguous(), 10, -1.0, 1)
    torch.library.opcheck(
        torch.ops.prunepass.gated_linear.default, arguments,
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_results_do_not_depend_on_threads() -> None:
    weight, x = drawn(64, 3000, torch.float32)
    stored, threads = weight.t().contiguous(), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(gated_linear(x, x.abs(), stored, 20, None, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize("rows", [2, 70])
def test_dense_product_of_bfloat16(rows: int) -> None:
    weight, x = drawn(130, 700, torch.bfloat16, rows=rows)
    assert_near(dense_product(x, weight.t().contiguous()), x.double() @ weight.double().t())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "prunepass"


def test_what_is_compiled_is_kept_under_what_it_was_made_of(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.cpp"
    source.write_text('extern "C" int a() { return 1; }')
    first = compiled(source)
    assert first.parent == cache
    made = first.stat().st_mtime_ns
    assert compiled(source) == first
    assert first.stat().st_mtime_ns == made
    (tmp_path / "b.h").write_text("")
    assert compiled(source, options=("-g",)) != first
    assert len(list(cache.iterdir())) == 2


def test_no_compiler_is_told_in_a_sentence(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.cpp").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no C\\+\\+ compiler"):
        compiled(tmp_path / "a.cpp")


def test_source_that_does_not_compile_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.cpp"
    source.write_text("int a(")
    with pytest.raises(OSError, match="error"):
        compiled(source)
    assert list(cache.iterdir()) == []
