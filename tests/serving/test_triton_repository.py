"""A model repository: read with the schema that Triton documents, by protobuf's own parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

import prunepass
from prunepass.__main__ import main
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.tensorrt import TensorRTBackend
from prunepass.bundle_files import write_digests
from prunepass.errors import BackendError, ModelError, UsageError
from prunepass.serving.text_format import Word, as_text
from prunepass.serving.triton_config import config
from prunepass.serving.triton_repository import Served, export
from tests.tiny_models import images, tiny

SCHEMA: dict[str, dict[str, str]] = {
    "ModelConfig": {
        "name": "string", "platform": "string", "backend": "string",
        "version_policy": "ModelVersionPolicy", "max_batch_size": "int32",
        "input": "*ModelInput", "output": "*ModelOutput",
        "dynamic_batching": "ModelDynamicBatching", "instance_group": "*ModelInstanceGroup",
        "default_model_filename": "string",
    },
    "ModelInput": {
        "name": "string", "data_type": "DataType", "dims": "*int64", "optional": "bool",
    },
    "ModelOutput": {
        "name": "string", "data_type": "DataType", "dims": "*int64", "label_filename": "string",
    },
    "ModelInstanceGroup": {
        "name": "string", "kind": "Kind", "count": "int32", "gpus": "*int32",
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": "*int32", "max_queue_delay_microseconds": "uint64",
        "preserve_ordering": "bool",
    },
    "ModelVersionPolicy": {"latest": "Latest"},
    "Latest": {"num_versions": "uint32"},
}  # fmt: skip
"""Fields of messages, `*` before those that are repeated.

Source: triton-inference-server/common, protobuf/model_config.proto.
"""
ENUMS = {
    "DataType": ["INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16",
                 "INT32", "INT64", "FP16", "FP32", "FP64", "STRING", "BF16"],
    "Kind": ["AUTO", "GPU", "CPU", "MODEL"],
}  # fmt: skip
PREFIX = {"DataType": "TYPE_", "Kind": "KIND_"}


@pytest.fixture(scope="module")
def schema() -> Any:
    """The class of Triton's ModelConfig, made of the documented fields."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="inference")
    file.syntax = "proto3"
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, words in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, word in enumerate(words):
            enum.value.add(name=f"{PREFIX[name]}{word}", number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            made = message.field.add(name=field, number=number)
            made.label = kinds.LABEL_REPEATED if kind[0] == "*" else kinds.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in SCHEMA or kind in ENUMS:
                made.type_name = f".inference.{kind}"
                made.type = kinds.TYPE_ENUM if kind in ENUMS else kinds.TYPE_MESSAGE
            else:
                made.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("inference.ModelConfig")
    return message_factory.GetMessageClass(found)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    model = tiny("class").float()
    prunepass.compile(
        model, (images(2, dtype=torch.float32),), method="tome", flops=0.75, folder=folder,
        name="own/tiny vit", keep_program=False,
    )  # fmt: skip
    return folder


def test_a_repository_is_what_triton_documents(
    bundle: Path, tmp_path: Path, schema: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "models"
    words = ["export", str(bundle), "--triton-repository", str(repository), "--max-batch", "32"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = ["tiny_vit_dense", "tiny_vit_compressed"]
    assert [one["name"] for one in told["models"]] == names
    assert sorted(p.name for p in repository.iterdir()) == sorted(names)
    for name, part in zip(names, ("dense", "compressed"), strict=True):
        folder = repository / name
        assert sorted(p.name for p in folder.iterdir()) == ["1", "config.pbtxt"]
        assert (folder / "1" / "model.onnx").read_bytes() == (
            bundle / part / "model.onnx"
        ).read_bytes()
        held = text_format.Parse((folder / "config.pbtxt").read_text(), schema())
        assert held.name == name
        assert held.backend == "onnxruntime"
        assert held.default_model_filename == "model.onnx"
        assert held.max_batch_size == 32
        assert held.dynamic_batching.max_queue_delay_microseconds == 100
        assert held.version_policy.latest.num_versions == 1
        (taken,), (given,) = held.input, held.output
        assert (taken.name, list(taken.dims)) == ("images", [3, 24, 30])
        assert list(given.dims) == [11]
        assert ENUMS["DataType"][taken.data_type] == ENUMS["DataType"][given.data_type] == "FP32"
        engine = OnnxBackend(threads=1).load(folder / "1")
        assert [i.name for i in engine.session.get_inputs()] == [taken.name]
        assert [o.name for o in engine.session.get_outputs()] == [given.name]
        assert engine(images(5, dtype=torch.float32))[0].shape == (5, 11)
    assert main(words) == 0
    assert sorted(p.name for p in (repository / names[0]).iterdir()) == ["1", "2", "config.pbtxt"]


def test_another_model_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "own_dense").mkdir()
    (tmp_path / "own_dense" / "config.pbtxt").write_text("name: 'own_dense'")
    with pytest.raises(UsageError, match="is another model"):
        export(bundle, tmp_path, name="own")
    assert [p.name for p in tmp_path.iterdir()] == ["own_dense"]
    for wrong in ("../out", "", ".hidden", "a b"):
        if wrong:
            with pytest.raises(UsageError, match="is no name of a model"):
                export(bundle, tmp_path, name=wrong)
    with pytest.raises(UsageError, match="batches of at least one"):
        export(bundle, tmp_path, most=0)
    assert export(bundle, tmp_path, name="other")[0] == Served("other_dense", 1)


def test_what_triton_does_not_serve(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a bundle"):
        export(tmp_path, tmp_path / "models")
    folder = tmp_path / "b"
    folder.mkdir()
    data = json.loads((bundle / "bundle.json").read_text())
    for backend, match in (("eager", "serves no engines"), ("tensorrt", "not built yet")):
        (folder / "bundle.json").write_text(json.dumps(data | {"backend": backend}))
        write_digests(folder)
        with pytest.raises(UsageError, match=match) as caught:
            export(folder, tmp_path / "models")
        assert len(str(caught.value).splitlines()) == 3
    (folder / "bundle.json").write_text(json.dumps(data | {"model": "exchanged"}))
    with pytest.raises(ModelError, match="is damaged"):
        export(folder, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_vision_language_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text('{"kind": "vision-language", "schema": 2}')
    with pytest.raises(ModelError, match="no bundle of a model of pictures") as caught:
        export(tmp_path, tmp_path / "models")
    assert len(str(caught.value).splitlines()) == 3


def small(path: Path, sizes: list[Any], kind: int = onnx.TensorProto.FLOAT) -> Path:
    """An ONNX file of one operator on a tensor of these sizes."""
    values = [onnx.helper.make_tensor_value_info(name, kind, sizes) for name in ("x", "y")]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "small", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


def test_fixed_batches_are_not_batched(tmp_path: Path, schema: Any) -> None:
    path = small(tmp_path / "model.onnx", [8, 3, "width"])
    held = config("m", path, backend="onnx", most=64, delay=7)
    found = text_format.Parse(as_text(held), schema())
    assert found.max_batch_size == 0
    assert list(found.input[0].dims) == [8, 3, -1]
    assert not found.HasField("dynamic_batching")


def test_an_engine_has_its_own_batches(tmp_path: Path, schema: Any) -> None:
    path = small(tmp_path / "model.onnx", ["batch", 3], onnx.TensorProto.FLOAT16)
    held = config("m", path, backend="tensorrt", most=16, delay=7, usual=8)
    found = text_format.Parse(as_text(held), schema())
    assert (found.backend, found.default_model_filename) == ("tensorrt", "model.plan")
    assert list(found.dynamic_batching.preferred_batch_size) == [8]
    assert ENUMS["Kind"][found.instance_group[0].kind] == "GPU"
    assert ENUMS["DataType"][found.input[0].data_type] == "FP16"
    with pytest.raises(BackendError, match="has no type"):
        config("m", small(path, [1], onnx.TensorProto.COMPLEX64), backend="onnx", most=1, delay=0)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(BackendError, match="cannot read"):
        config("m", path, backend="onnx", most=1, delay=0)
    assert TensorRTBackend().name == "tensorrt"


def test_text_is_read_back(schema: Any) -> None:
    name = 'a "quoted" \\ back\nslash\tä'
    held = {
        "name": name, "max_batch_size": -1,
        "input": [{"name": "x", "dims": [], "optional": True, "data_type": Word("TYPE_BOOL")}],
        "output": [],
    }  # fmt: skip
    found = text_format.Parse(as_text(held), schema())
    assert found.name == name
    assert found.max_batch_size == -1
    assert found.input[0].optional
    assert list(found.input[0].dims) == list(found.output) == []
    with pytest.raises(text_format.ParseError):
        text_format.Parse(as_text({"no_such_field": 1}), schema())
