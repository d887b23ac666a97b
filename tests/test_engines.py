"""Engines: built, held against their programs, loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import prunepass
from prunepass.agreement import Limit
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.tensorrt import TensorRTBackend, missing
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle_files import write_digests
from prunepass.compiler import Compiled
from prunepass.doctor.kernels import kernels
from prunepass.engines import available, check_engine, check_kind, load_engines
from prunepass.errors import BackendError, ModelError, UsageError
from tests.conftest import Captured
from tests.tiny_models import images

FLOAT = torch.float32


@dataclass(frozen=True)
class Said:
    """An engine that says what a function does.

    Attributes:
        function: From the input to the output.
        tolerance: What its precision explains.
    """

    function: Callable[[Tensor], Tensor]
    tolerance: float = 0.0
    path: Path | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.function(inputs[0]),)


def off(factor: float, *, examples: int, tolerance: float = 0.0) -> Said:
    """An engine that should say its input, and is off in the first examples."""

    def function(x: Tensor) -> Tensor:
        return torch.cat([factor * x[:examples], x[examples:]])

    return Said(function, tolerance)


ONES = torch.ones(5, 2)


def test_an_engine_is_as_far_off_as_its_farthest_example() -> None:
    engine = off(1.00005, examples=1)
    assert check_engine(engine, "one", (ONES,), [ONES]) == pytest.approx(5e-5, rel=1e-2)
    with pytest.raises(BackendError, match="the one engine disagrees") as caught:
        check_engine(off(1.1, examples=1), "one", (ONES,), [ONES])
    assert (
        str(caught.value)
        .splitlines()[1]
        .endswith("a relative difference of 1.0e-01, at most 1e-04 is right, for inputs [5, 2]")
    )


@pytest.mark.parametrize(("examples", "refused"), [(1, False), (2, False), (3, True), (5, True)])
def test_the_typical_example_counts_where_ties_may_fall_differently(
    examples: int, refused: bool
) -> None:
    engine = off(1.5, examples=examples)
    if refused:
        with pytest.raises(BackendError, match="disagrees"):
            check_engine(engine, "one", (ONES,), [ONES], typical=True)
    else:
        assert check_engine(engine, "one", (ONES,), [ONES], typical=True) == 0.0


def test_precision_and_near_ties_explain_more() -> None:
    wide = off(1.01, examples=5)
    for options in ({}, {"near_ties": 5e-3}):
        with pytest.raises(BackendError, match="disagrees"):
            check_engine(wide, "one", (ONES,), [ONES], **options)
    assert check_engine(wide, "one", (ONES,), [ONES], near_ties=2e-2) > 5e-3
    assert check_engine(wide, "one", (ONES,), [ONES], limit=Limit(single=2e-2, half=1)) > 5e-3
    told = off(1.01, examples=5, tolerance=2e-2)
    assert check_engine(told, "one", (ONES,), [ONES]) > 5e-3
    assert check_engine(Said(lambda x: 1.01 * x), "one", (ONES.half(),), [ONES.half()]) > 5e-3


def test_outputs_of_another_shape_are_named() -> None:
    with pytest.raises(BackendError, match="the one engine disagrees") as caught:
        check_engine(Said(lambda x: x[:, :1]), "one", (ONES,), [ONES])
    assert caught.value.found == "outputs of shapes [[5, 1]], [[5, 2]] are right"
    with pytest.raises(BackendError, match="disagrees"):
        check_engine(Said(lambda x: x), "one", (ONES,), [ONES, ONES])


@pytest.mark.skipif(missing("tensorrt") is None, reason="TensorRT is here")
def test_the_onnx_file_of_an_engine_that_is_not_built_is_run(
    tmp_path: Path, captured: Captured
) -> None:
    program, x = captured("class", FLOAT), images(3, dtype=FLOAT)
    engine = TensorRTBackend().build(program, tmp_path)
    assert isinstance(engine, UnbuiltEngine)
    told = program.module(check_guards=False)(x)
    assert check_engine(engine, "one", (x,), [told]) < 1e-4
    with pytest.raises(BackendError, match="disagrees"):
        check_engine(engine, "one", (x,), [1.5 * told])


def test_onnx_with_a_fixed_batch(tmp_path: Path, captured: Captured) -> None:
    program, x = captured("mean", FLOAT), images(3, dtype=FLOAT)
    engine = prunepass.build(program, backend="onnx", folder=tmp_path / "deep" / "b", batch=3)
    told = program.module(check_guards=False)(x)
    torch.testing.assert_close(engine(x)[0], told, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="dimension"):
        engine(images(4, dtype=FLOAT))


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match="unknown backend"):
        available("tensor")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, captured: Captured) -> Compiled:
    return prunepass.compile(
        captured("class", FLOAT), (images(2, dtype=FLOAT),), flops=0.71, backend="eager",
        folder=tmp_path_factory.mktemp("engines") / "b", name="tiny",
    )  # fmt: skip


def test_parts_of_a_bundle_are_loaded(bundle: Compiled) -> None:
    x = images(3, dtype=FLOAT)
    manifest, engines = load_engines(bundle.folder, parts=("compressed",))
    assert (manifest.model, list(engines)) == ("tiny", ["compressed"])
    assert torch.equal(engines["compressed"](x)[0], bundle.engine(x)[0])


def test_a_bundle_with_a_damaged_engine(tmp_path: Path, bundle: Compiled) -> None:
    (tmp_path / "bundle.json").write_text((bundle.folder / "bundle.json").read_text())
    with pytest.raises(ModelError, match="is damaged"):
        load_engines(tmp_path)
    write_digests(tmp_path)
    with pytest.raises(BackendError, match="cannot load"):
        load_engines(tmp_path)
    with pytest.raises(ModelError, match="not a bundle"):
        load_engines(tmp_path / "none")


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Mul", "Add", "ReduceMean", "Softmax"])
def test_onnx_runtime_has_no_kernel_of_bfloat16_that_computes(operator: str) -> None:
    """What `check_kind` refuses by: where this fails, it refuses too much."""
    assert not any("bfloat16" in t for row in kernels()[operator] for t in row.types.values())


def test_kinds_of_weights_that_nothing_here_computes_with_are_refused() -> None:
    for name in ("onnx", *(["tensorrt"] if missing("tensorrt") else [])):
        check_kind(name, FLOAT)
        with pytest.raises(UsageError, match=f"'{name}' cannot compute in bfloat16") as caught:
            check_kind(name, torch.bfloat16)
        assert len(str(caught.value).splitlines()) == 3
    check_kind("aot_inductor", torch.bfloat16)
    check_kind("eager", torch.bfloat16)
    check_kind(OnnxBackend(providers=("CUDAExecutionProvider",)), torch.bfloat16)
