from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_operator import FILE, register_operator
from prunepass.errors import BackendError
from prunepass.kernels.native import FOR_ONNX, compiled
from prunepass.kernels.sparse_linear import gated_linear
from prunepass.ops.selective_scan import scan_steps, selective_scan

INPUTS, OUTPUTS, KEEP = 70, 1100, 30


class Gated(nn.Module):
    def __init__(self, threshold: float | None = None, rows: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(INPUTS, OUTPUTS, generator=generator))
        self.threshold, self.rows = threshold, rows

    def forward(self, x: Tensor) -> Tensor:
        return gated_linear(x, x.abs(), self.weight, KEEP, self.threshold, self.rows)


def program(module: nn.Module, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    x = torch.randn(2, 3, INPUTS, dtype=dtype)
    shapes = ({0: Dim("batch", min=1), 1: Dim("tokens", min=1)},)
    return torch.export.export(module.eval(), (x,), dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_operator_equals_the_program(threshold: float | None, tmp_path: Path) -> None:
    module = Gated(threshold, rows=2)
    made = program(module)
    engine = OnnxBackend(threads=2).build(made, tmp_path)
    assert (tmp_path / FILE).is_file()
    # One and two rows are sparse, more are ONNX Runtime's own product; any shape is taken.
    for shape in ((1, 1), (2, 1), (1, 2), (2, 3), (1, 50)):
        x = torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.no_grad():
            right = module(x)
        torch.testing.assert_close(engine(x)[0], right, rtol=1e-5, atol=1e-4)


def test_equal_scores_keep_lower_indices(tmp_path: Path) -> None:
    module = Gated()
    engine = OnnxBackend().build(program(module), tmp_path)
    x = torch.ones(1, 1, INPUTS)
    right = module.weight[:KEEP].sum(0)
    torch.testing.assert_close(engine(x)[0][0, 0], right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "score", "weight", "keep", "why"),
    [
        ([1, 70], [1, 70], [70, 20], 0, "keep must lie between"),
        ([1, 70], [1, 70], [70, 20], 71, "keep must lie between"),
        ([1, 70], [1, 30], [70, 20], 30, "must be"),
        ([1, 60], [1, 60], [70, 20], 30, "must be"),
        ([1, 70], [1, 70], [70], 30, "must be"),
        ([], [], [70, 20], 30, "must be"),
    ],
)
def test_operator_refuses_what_it_would_read_past(
    x: list[int], score: list[int], weight: list[int], keep: int, why: str, tmp_path: Path
) -> None:
    """A file that no exporter of ours wrote: memory of something else was read."""
    shapes = {"x": x, "score": score, "weight": weight}
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    node = helper.make_node(
        "GatedLinear", list(shapes), ["y"], domain="prunepass", keep=keep, rows=1, threshold=-1.0
    )
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", given, [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("prunepass", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    shutil.copyfile(compiled(FOR_ONNX), tmp_path / FILE)
    options = onnxruntime.SessionOptions()
    register_operator(options, tmp_path)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(Exception, match=why):
        session.run(None, feeds)


def test_sparse_products_of_other_numbers_are_refused_before_a_file_is_written(
    tmp_path: Path,
) -> None:
    made = program(Gated().half(), torch.float16)
    with pytest.raises(BackendError, match="computes in float32") as caught:
        OnnxBackend().build(made, tmp_path)
    assert len(str(caught.value).splitlines()) == 3
    assert not list(tmp_path.iterdir())
    assert OnnxBackend(portable=True).build(made, tmp_path).path is not None


def test_a_folder_without_its_operator_or_with_a_damaged_one(tmp_path: Path) -> None:
    OnnxBackend().build(program(Gated()), tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(BackendError, match=f"cannot load {FILE}"):
        OnnxBackend().load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(BackendError, match="refuses"):
        OnnxBackend().load(tmp_path)


def test_no_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = program(Gated())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BackendError, match="cannot build the sparse operator") as caught:
        OnnxBackend().build(made, tmp_path)
    assert "no C++ compiler" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


class Scanned(nn.Module):
    def forward(self, *operands: Tensor) -> Tensor:
        return selective_scan(*operands)


def operands(batch: int, tokens: int, channels: int, states: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)

    def drawn(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator)

    wide, narrow = (batch, tokens, channels), (batch, tokens, states)
    return (
        drawn(*wide) - 0.5, drawn(*wide), 3 * drawn(*wide), -8 * drawn(channels, states),
        drawn(*narrow) - 0.5, drawn(*narrow) - 0.5, drawn(channels),
    )  # fmt: skip


def scanned(given: tuple[Tensor, ...]) -> ExportedProgram:
    any_batch, any_length = Dim("batch", min=1), Dim("tokens", min=1)
    long: dict[int, Dim] = {0: any_batch, 1: any_length}
    shapes = ((long, long, long, {}, long, long, {}),)
    return torch.export.export(Scanned(), given, dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize("channels", [3, 64, 70])
def test_a_scan_is_the_compiled_one_and_a_function_without_it(
    channels: int, tmp_path: Path
) -> None:
    backend = OnnxBackend(threads=2)
    backend.write(scanned(operands(2, 7, channels)), tmp_path)
    compiled = backend.load(tmp_path)
    (tmp_path / FILE).unlink()
    plain = backend.load(tmp_path)
    for batch, tokens in ((1, 1), (2, 7), (3, 500)):
        given = operands(batch, tokens, channels)
        right = scan_steps(*(part.double() for part in given))[0].float()
        torch.testing.assert_close(plain(*given)[0], right, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(compiled(*given)[0], right, rtol=1e-5, atol=1e-5)
    # Sums are not taken in the same order, so two kernels are told apart by their last bits.
    assert not torch.equal(plain(*given)[0], compiled(*given)[0])


def test_exponents_out_of_range_are_zero_and_finite(tmp_path: Path) -> None:
    x, delta, _, A, B, C, D = operands(2, 40, 64)
    far = torch.full_like(x, 1e6)
    engine = OnnxBackend().build(scanned((x, delta, far, A, B, C, D)), tmp_path)
    right = scan_steps(x, delta, far, A, B, C, D)[0]
    torch.testing.assert_close(engine(x, delta, far, A, B, C, D)[0], right, rtol=1e-5, atol=1e-6)


def test_portable_files_have_nothing_beside_them(tmp_path: Path) -> None:
    import onnx

    given = operands(2, 6, 10)
    engine = OnnxBackend(portable=True).build(scanned(given), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert {n.domain for n in onnx.load(tmp_path / "model.onnx").graph.node} == {""}
    torch.testing.assert_close(engine(*given)[0], scan_steps(*given)[0], rtol=1e-5, atol=1e-5)


def test_without_a_compiler_a_scan_is_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = operands(2, 6, 10)
    made = scanned(given)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = OnnxBackend().build(made, tmp_path)
    assert not (tmp_path / FILE).exists()
    torch.testing.assert_close(engine(*given)[0], scan_steps(*given)[0], rtol=1e-5, atol=1e-5)


def test_scans_of_other_numbers_are_functions(tmp_path: Path) -> None:
    given = tuple(part.double() for part in operands(2, 6, 10))
    engine = OnnxBackend().build(scanned(given), tmp_path)
    assert not (tmp_path / FILE).exists()
    torch.testing.assert_close(engine(*given)[0], scan_steps(*given)[0], rtol=1e-9, atol=1e-9)


def test_a_folder_may_be_built_into_while_an_engine_of_it_is_used(tmp_path: Path) -> None:
    """The library and the weights of the first engine are mapped: they are not written over."""
    backend = OnnxBackend(threads=1)
    engines, modules = [], [Gated(), Gated(threshold=0.6), Gated(rows=6)]
    x = torch.randn(1, 1, INPUTS)
    for module in modules:
        engines.append(backend.build(program(module), tmp_path))
        for engine, built in zip(engines, modules, strict=False):
            torch.testing.assert_close(engine(x)[0], built(x), rtol=1e-4, atol=1e-4)
