"""What is read, and what is refused in three lines."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from prunepass.doctor.findings import examine
from prunepass.doctor.read import files, read
from prunepass.doctor.read_onnx import read_onnx, view_of_model
from prunepass.doctor.read_program import view_of_program
from prunepass.errors import ModelError, UsageError
from tests.doctor.makers import FUNCTION, RELU, onnx
from tests.doctor.program_graphs import program


def three_lines(error: pytest.ExceptionInfo[ModelError]) -> bool:
    return len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize(
    "content", [None, b"", b"no model at all", b"PK\x03\x04 cut off", bytes(99)]
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="model") as error:
        examine(path)
    assert three_lines(error)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = RELU().SerializeToString()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError) as error:
            read_onnx(path)
        assert three_lines(error)


def test_a_node_that_reads_what_nobody_makes() -> None:
    model = RELU()
    model.graph.node[0].input[0] = "elsewhere"
    with pytest.raises(ModelError, match="'elsewhere', which nothing before it makes") as error:
        view_of_model(model)
    assert three_lines(error)


def test_a_folder_is_all_that_lies_in_it(tmp_path: Path) -> None:
    for name in ("dense/1", "compressed/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.onnx").write_bytes(RELU().SerializeToString())
    assert [str(f.relative_to(tmp_path)) for f in files(tmp_path)] == [
        "compressed/1/model.onnx", "dense/1/model.onnx",
    ]  # fmt: skip
    assert [view.kind for view in read(tmp_path)] == ["onnx", "onnx"]
    assert examine(tmp_path, targets=("onnxruntime==1.31", "tensorrt==10")) == ()
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="holds no graph") as error:
        examine(tmp_path / "none")
    assert three_lines(error)


def test_functions_are_written_out() -> None:
    """Two calls of one function of a file are two additions, and the calls are known."""
    view = view_of_model(
        onnx(
            "g (float[2] x) => (float[2] y) { z = mine.double_it(x) y = mine.double_it(z) }",
            domains=', "mine" : 1',
            functions=FUNCTION,
        )()
    )
    assert [node.op for node in view.nodes] == ["Add", "Add"]
    assert list(view.functions) == [("mine", "double_it")]


def test_large_weights_are_let_go_and_their_extremes_are_kept() -> None:
    from onnx import numpy_helper

    model = onnx("g (int64[5000] x) => (int64[5000] y) <int64[1] w = {1}> { y = Add(x, w) }")()
    large = torch.arange(5000).numpy() - 7
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w"))
    (node,) = view_of_model(model).nodes
    value = node.input(1)
    assert value is not None
    assert value.initializer
    assert value.numbers is None
    assert value.extremes == (-7, 4992)
    assert value.shape == (5000,)
    assert node.outputs[0].dtype == "int64"


def test_a_program_as_a_view() -> None:
    view = view_of_program(
        program(lambda x: torch.topk(x, 3, sorted=False)[0] * 2, torch.randn(4, 9), free=True)()
    )
    top, product = view.nodes
    assert (top.op, top.domain) == ("aten.topk", "aten")
    assert top.attributes["k"] == 3
    assert top.attributes["largest"] is True
    assert top.inputs[0] is not None
    assert top.inputs[0].shape == (None, 9)
    assert [value.dtype for value in top.outputs] == ["float32", "int64"]
    assert product.op == "aten.mul"
    assert view.inputs[0].dynamic


def test_sizes_that_the_data_decide_are_told_apart() -> None:
    view = view_of_program(program(lambda x: x.nonzero(), torch.randn(4, 9))())
    (node,) = [n for n in view.nodes if n.op == "aten.nonzero"]
    assert node.outputs[0].data_dependent
    assert not view.inputs[0].data_dependent


def test_a_program_goes_to_other_targets_than_a_file(tmp_path: Path) -> None:
    made = program(lambda x: x * 2, torch.randn(4, 9))()
    with pytest.raises(UsageError, match="tensorrt does not read a program"):
        examine(made, targets=("tensorrt==10",))
    path = tmp_path / "model.pt2"
    torch.export.save(made, path)
    assert examine(path) == ()
    with pytest.raises(UsageError, match="does not read"):
        examine(path, targets=("onnxruntime",))


def test_modules_of_a_slice_of_layers(tmp_path: Path) -> None:
    model = RELU()
    scopes = "['', 'model', 'model.layers.slice(None, 2, None).0.mlp', 'relu']"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (view,) = read(tmp_path)
    assert [node.module for node in view.nodes] == ["model.layers.0.mlp"]


def test_compiled_code_has_no_graph(tmp_path: Path) -> None:
    """A package of AOTInductor is refused alone, and passed over beside a graph."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", "")
    for subject in (path, tmp_path):
        with pytest.raises(ModelError, match="compiled code") as error:
            examine(subject)
        assert three_lines(error)
    (tmp_path / "model.onnx").write_bytes(RELU().SerializeToString())
    assert [file.name for file in files(tmp_path)] == ["model.onnx"]
