"""What a TensorRT engine is built like, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prunepass.backends.archives import check_external
from prunepass.errors import UsageError
from prunepass.user_cache import user_cache

Precision = Literal["fp32", "fp16", "bf16"]
Via = Literal["onnx", "torch"]
Range = tuple[int, int, int]
"""Smallest, usual and largest size; an engine is tuned for the usual one."""
_IMAGES = ("image_positions", 1)
"""Input and axis of how many images the prompts of a vision-language model have."""


@dataclass(frozen=True, kw_only=True)
class TensorRTSettings:
    """How engines are built.

    Attributes:
        precision: Of matrix products, convolutions and attention; everything else, scores and
            norms above all, is computed in fp32.
        via: `onnx`, TensorRT's own parser and builder; `torch`, torch-tensorrt.
        opset: Operator set of the ONNX file; 17 is read by every TensorRT from 8.5 on.
        batches: Sizes of a free batch.
        lengths: Sizes of tokens and caches, and of every other free axis.
        workspace: MiB of GPU memory a layer may use.
        level: Builder optimisation level, 0 to 5.
        tf32: Whether fp32 products may round their inputs to 10 bits.
        cache: Folder of timings and engines, None for one in the user's cache.
    """

    precision: Precision = "fp32"
    via: Via = "onnx"
    opset: int = 17
    batches: Range = (1, 8, 64)
    lengths: Range = (1, 256, 2048)
    workspace: int = 4096
    level: int = 3
    tf32: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("precision", get_args(Precision)), ("via", get_args(Via))):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is none of TensorRT's",
                    found=repr(getattr(self, name)), fix=f"one of {', '.join(known)}",
                )  # fmt: skip
        for name in ("batches", "lengths"):
            least, usual, most = getattr(self, name)
            if not 1 <= least <= usual <= most:
                raise UsageError(
                    f"{name} of a profile go from the smallest to the largest",
                    found=f"{least}, {usual}, {most}", fix="1, 8, 64",
                )  # fmt: skip
        if self.workspace < 1 or not 0 <= self.level <= 5:
            raise UsageError(
                "TensorRT's workspace is at least 1 MiB and its level 0 to 5",
                found=f"workspace={self.workspace}, level={self.level}",
                fix="workspace=4096, level=3",
            )

    @property
    def folder(self) -> Path:
        """Where timings and engines are kept."""
        if self.cache is not None:
            return Path(self.cache)
        return user_cache() / "tensorrt"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without where this machine keeps its cache."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "cache"}

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, cache: str | None = None) -> TensorRTSettings:
        """The settings that `to_dict` wrote.

        Raises:
            UsageError: A value is none that settings have.
            TypeError: A name is unknown.
        """
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain, cache=cache)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The sizes one input of an engine may have."""

    name: str
    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]

    @property
    def free(self) -> bool:
        """Whether any of its sizes is free."""
        return self.least != self.most


def profiles(path: Path, settings: TensorRTSettings) -> tuple[Profile, ...]:
    """The sizes of the inputs of an ONNX file.

    A free axis is a batch where it is that of axis 0 of the first input; how many images a prompt
    has is usually one; all others are lengths.

    Raises:
        BackendError: Its weights lie outside of its folder.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    check_external(model, path.name)
    found: list[Profile] = []
    batch = ""
    for value in model.graph.input:
        sizes = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            batch = batch or ("" if axis else dim.dim_param)
            free = settings.batches if dim.dim_param in ("", batch) else settings.lengths
            if (value.name, axis) == _IMAGES:
                free = (1, 1, max(1, settings.batches[2] // 8))
            sizes.append((dim.dim_value,) * 3 if dim.dim_value else free)
        least, usual, most = zip(*sizes, strict=True) if sizes else ((), (), ())
        found.append(Profile(name=value.name, least=least, usual=usual, most=most))
    return tuple(found)
