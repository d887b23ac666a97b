"""One file of weights for several ONNX files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import export

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_weights import WEIGHTS, SharedWeights
from prunepass.errors import BackendError


class Layers(nn.Module):
    """Two products, of which another module may share the first."""

    def __init__(self, first: nn.Linear | None = None, width: int = 64) -> None:
        super().__init__()
        self.first = first or nn.Linear(64, 64)
        self.second = nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).relu())
        return found


def together(folder: Path, *, large: bool = False) -> tuple[Layers, Layers]:
    torch.manual_seed(0)
    one = Layers()
    other = Layers(one.first, width=48)
    shared = SharedWeights(folder)
    for name, module in (("one", one), ("other", other)):
        (folder / name).mkdir()
        OnnxBackend().build(export(module.eval(), (torch.randn(2, 64),)), folder / name)
        if large:
            _outside(folder / name)
        assert shared.take_in(folder / name) == folder / f"{name}.onnx"
    return one, other


def _outside(folder: Path) -> None:
    """Weights beside the ONNX file, as large models have them."""
    import onnx

    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").unlink()
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data",
        size_threshold=1024,
    )  # fmt: skip


@pytest.mark.parametrize("large", [False, True])
def test_equal_tensors_lie_there_once(tmp_path: Path, large: bool) -> None:
    one, other = together(tmp_path, large=large)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "other.onnx", WEIGHTS]
    # Two weights of 64 x 64 and one of 48 x 64, in pages; biases stay where they are.
    assert (tmp_path / WEIGHTS).stat().st_size == 4 * (2 * 64 * 64 + 48 * 64)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    for name, module in (("one", one), ("other", other)):
        (found,) = OnnxBackend().load(tmp_path / name)(x)
        torch.testing.assert_close(found, module(x), rtol=1e-5, atol=1e-5)


def loaded(folder: Path) -> None:
    for name in ("one", "other"):
        OnnxBackend().load(folder / name)


def test_weights_that_are_gone_or_cut_off_are_told(tmp_path: Path) -> None:
    together(tmp_path)
    path = tmp_path / WEIGHTS
    content = path.read_bytes()
    for damaged in (content[:-9000], None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(BackendError, match="ONNX Runtime refuses") as caught:
            loaded(tmp_path)
        assert len(str(caught.value).splitlines()) == 3
        path.write_bytes(content)


def test_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    import onnx

    inside = tmp_path / "bundle"
    inside.mkdir()
    together(inside)
    (tmp_path / WEIGHTS).write_bytes((inside / WEIGHTS).read_bytes())
    model = onnx.load(inside / "one.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"../{WEIGHTS}"
    (inside / "one.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match="ONNX Runtime refuses"):
        OnnxBackend().load(inside / "one")
