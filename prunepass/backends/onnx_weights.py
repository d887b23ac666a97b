"""One file of weights for several ONNX files: tensors that are equal lie there once."""

from __future__ import annotations

import hashlib
import mmap
import shutil
from pathlib import Path
from typing import Any

from prunepass.backends.onnx_operator import FILE as OPERATORS

WEIGHTS = "weights.data"
_SMALL = 1024
"""Bytes of a tensor below which it stays in its ONNX file."""
_PAGE = 4096
"""Tensors begin at multiples of it, so that they can be read where the file is mapped."""


class SharedWeights:
    """Weights of the engines of a folder, beside their ONNX files.

    ONNX Runtime reads weights from the folder of an ONNX file only, so the files move there, with
    the operators that they call.

    Args:
        folder: Where `weights.data` is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[bytes, tuple[int, int]] = {}

    def take_in(self, engine: Path) -> Path:
        """Moves an engine that `OnnxBackend.build` wrote into a folder: FOLDER to FOLDER.onnx."""
        import onnx

        source = next(engine.glob("*.onnx"))
        model = onnx.load(str(source), load_external_data=False)
        with (self.folder / WEIGHTS).open("ab") as weights:
            for tensor in model.graph.initializer:
                self._move(tensor, engine, weights)
        target = engine.with_name(f"{engine.name}.onnx")
        target.write_bytes(model.SerializeToString())
        if (engine / OPERATORS).exists():
            (engine / OPERATORS).replace(self.folder / OPERATORS)
        shutil.rmtree(engine)
        return target

    def _move(self, tensor: Any, engine: Path, weights: Any) -> None:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            if len(tensor.raw_data) >= _SMALL:
                _point(tensor, *self._put(tensor.raw_data, weights))
            return
        with (engine / place["location"]).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with mapped, memoryview(mapped) as whole:
                start = int(place.get("offset", 0))
                length = int(place.get("length", len(whole) - start))
                with whole[start : start + length] as content:
                    found = self._put(content, weights)
        _point(tensor, *found)

    def _put(self, content: bytes | memoryview, weights: Any) -> tuple[int, int]:
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            weights.write(b"\0" * (-weights.tell() % _PAGE))
            self._places[key] = (weights.tell(), len(content))
            weights.write(content)
        return self._places[key]


def _point(tensor: Any, offset: int, length: int) -> None:
    """Has an `onnx.TensorProto` lie in the file of weights."""
    import onnx

    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
