"""Models from a user's Python file: what works, and whose fault it is where it does not."""

import sys
from pathlib import Path

import pytest
import torch

from prunepass.errors import ModelError, UsageError
from prunepass.sources.model import load_model

GOOD = """
from dataclasses import dataclass
import torch
from torch import nn
from beside import CLASSES

@dataclass
class Size:
    classes: int = CLASSES

def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, Size().classes))

def build_half(classes=2, **rest):
    return build().half()

def configured():
    model = build()
    model.pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    return model

def asks(size, *, depth):
    return build()

def fails():
    model = build()
    return model(torch.ones(1, 5, 5))

def leaves():
    raise SystemExit("bye")

def number():
    return 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("CLASSES = 5\n")
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_a_function_builds_the_model(file: Path) -> None:
    before = [*sorted(path.name for path in file.parent.iterdir())]
    path_before, modules_before = list(sys.path), set(sys.modules)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loaded = load_model(f"{file}:build")
    assert torch.equal(torch.rand(2), expected)
    assert sys.path == path_before
    new = {name for name in set(sys.modules) - modules_before if "mine" in name or "model_" in name}
    assert all(name.startswith("_prunepass_model_") for name in new)
    assert loaded.spec == f"{file}:build"
    assert loaded.weights == "as built"
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert loaded.module(loaded.example()).shape == (2, 5)
    preprocessing = loaded.preprocessing
    assert (preprocessing.height, preprocessing.width) == (224, 224)
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    again = load_model(f"{file}:build", weights="random")
    assert again.weights == "random"
    assert torch.equal(again.module(again.example()), loaded.module(loaded.example()))
    assert sorted(path.name for path in file.parent.iterdir()) == before


def test_half_precision_becomes_float32(file: Path) -> None:
    loaded = load_model(f"{file}:build_half")
    assert {value.dtype for value in loaded.module.parameters()} == {torch.float32}


def test_the_preprocessing_comes_from_the_module(file: Path) -> None:
    preprocessing = load_model(f"{file}:configured", std=[0.3]).preprocessing
    assert (preprocessing.height, preprocessing.resize) == (64, 64)
    assert preprocessing.mean == (0.1, 0.2, 0.3)
    assert preprocessing.std == (0.3, 0.3, 0.3)


def test_weights_from_a_file(file: Path, tmp_path: Path) -> None:
    state = {"2.weight": torch.ones(5, 3), "2.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "w.pt")
    loaded = load_model(f"{file}:build", weights=str(tmp_path / "w.pt"))
    assert loaded.weights == "w.pt"
    assert torch.equal(loaded.module.state_dict()["2.weight"], state["2.weight"])


def test_an_edited_file_is_read_again(file: Path) -> None:
    load_model(f"{file}:build")
    file.write_text(GOOD.replace("Size().classes)", "17            )"))
    loaded = load_model(f"{file}:build")
    assert loaded.module(loaded.example()).shape == (2, 17)


def line_of(file: Path, text: str) -> int:
    return 1 + next(i for i, line in enumerate(file.read_text().splitlines()) if text in line)


def test_errors_of_the_function_carry_file_and_line(file: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(f"{file}:fails")
    line = line_of(file, "return model(torch.ones")
    assert f"RuntimeError at {file}:{line}: " in (caught.value.found or "")
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ModelError, match=r"SystemExit at .*: bye"):
        load_model(f"{file}:leaves")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\nraise KeyError('lost')\n", "KeyError at {file}:2: 'lost'"),
        ("import torch\ndef build(:\n", "SyntaxError at {file}:2"),
        ("import not_there_at_all\n", "ModuleNotFoundError at {file}:1"),
    ],
)
def test_errors_of_the_import_carry_file_and_line(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    modules = set(sys.modules)
    with pytest.raises(ModelError) as caught:
        load_model(f"{file}:build")
    assert found.format(file=file) in (caught.value.found or "")
    assert not {name for name in set(sys.modules) - modules if name.startswith("_prunepass")}


def test_an_unknown_function_is_answered_with_the_known_ones(file: Path) -> None:
    with pytest.raises(ModelError, match="no function 'bulid'") as caught:
        load_model(f"{file}:bulid")
    assert (caught.value.fix or "").startswith("one of build, ")


def test_functions_that_cannot_be_used(file: Path) -> None:
    with pytest.raises(ModelError, match="it asks for size, depth"):
        load_model(f"{file}:asks")
    with pytest.raises(ModelError, match="a int"):
        load_model(f"{file}:number")
    with pytest.raises(ModelError, match="there is no file"):
        load_model("nowhere/mine.py:build")
    with pytest.raises(ModelError, match="has no method set_input_size"):
        load_model(f"{file}:build", image_size=96)


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", "mine.py:a-b", "mine.txt:build", ":build"])
def test_malformed_words_are_usage_errors(spec: str) -> None:
    with pytest.raises(UsageError, match=r"path/to/file\.py:function"):
        load_model(spec)
