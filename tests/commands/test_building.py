"""The words about how an engine is built, and what they mean."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import pytest

from prunepass.backends.aot_inductor import AotInductorBackend
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.tensorrt import TensorRTBackend
from prunepass.backends.tensorrt_settings import TensorRTSettings
from prunepass.commands.building import backend_arguments, backend_of
from prunepass.errors import UsageError


def words(text: str) -> Namespace:
    parser = ArgumentParser()
    backend_arguments(parser)
    parser.add_argument("--batch", default="dynamic")
    return parser.parse_args(text.split())


def test_settings_of_tensorrt() -> None:
    given = words(
        "--backend tensorrt --precision fp16 --opset 20 --profile 1,4,16 --profile-lengths 1,1,99 "
        "--workspace 0.5"
    )
    made = TensorRTSettings(
        precision="fp16", opset=20, batches=(1, 4, 16), lengths=(1, 1, 99), workspace=512
    )
    assert backend_of(given, text=True) == TensorRTBackend(made)
    assert backend_of(words("--backend tensorrt"), text=False) == TensorRTBackend()


def test_settings_of_onnx_and_none() -> None:
    assert backend_of(words("--opset 17 --portable"), text=True) == OnnxBackend(
        opset=17, portable=True
    )
    assert backend_of(words(""), text=False) == "onnx"
    assert backend_of(words("--backend eager"), text=True) == "eager"
    there = backend_of(words("--backend aot_inductor --device cuda"), text=True)
    assert there == AotInductorBackend(device="cuda")


@pytest.mark.parametrize(
    ("text", "of_text", "found"),
    [
        ("--profile 1,8,64", True, "--backend tensorrt"),
        ("--backend eager --opset 17", False, "--backend tensorrt or onnx"),
        ("--backend tensorrt --portable", False, "--backend onnx"),
        ("--backend onnx --workspace 4", False, "--backend tensorrt"),
        ("--backend onnx --device cuda", False, "--backend aot_inductor"),
        ("--backend aot_inductor --device tpu", False, "one of cpu, cuda"),
        ("--backend tensorrt --profile 8", False, "--profile 1,8,64"),
        ("--backend tensorrt --profile 8,4,64", False, "--profile 1,8,64"),
        ("--backend tensorrt --profile 0,4,64", False, "--profile 1,8,64"),
        ("--backend tensorrt --profile 1,x,64", False, "--profile 1,8,64"),
        ("--backend tensorrt --profile-lengths 1,2", True, "--profile-lengths 1,8,64"),
        ("--backend tensorrt --profile-lengths 1,2,3", False, "no length that is free"),
        ("--backend tensorrt --profile 1,2,3 --batch 8", False, "leave out one of them"),
        ("--backend tensorrt --workspace 0", False, "--workspace 4"),
        ("--backend tensorrt --workspace nan", False, "--workspace 4"),
        ("--backend tensorrt --workspace 4096", False, "--workspace 4"),
    ],
)
def test_wrong_words(text: str, of_text: bool, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        backend_of(words(text), text=of_text)
    assert found in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
