"""How an engine is built: the words of `compile` about it, and the backend they mean."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prunepass.backends.protocol import Backend
from prunepass.backends.table import backend as find_backend
from prunepass.backends.tensorrt import TensorRTBackend
from prunepass.backends.tensorrt_settings import Range, TensorRTSettings
from prunepass.errors import UsageError

_SETTINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tensorrt": ("precision", "via", "opset", "profile", "profile_lengths", "workspace"),
        "onnx": ("opset", "portable"),
        "aot_inductor": ("device",),
    }
)
"""Backend -> options that say how it builds."""
_ALL = tuple(dict.fromkeys(name for names in _SETTINGS.values() for name in names))


def backend_arguments(parser: ArgumentParser) -> None:
    """The backend and its settings."""
    parser.add_argument(
        "--backend", default="onnx", help="onnx (default), aot_inductor, tensorrt or eager"
    )
    parser.add_argument(
        "--precision", metavar="P", help="of TensorRT: fp32 (default), fp16 or bf16"
    )
    parser.add_argument(
        "--via", metavar="WAY", help="to TensorRT: onnx (default), or torch for torch-tensorrt"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of the ONNX file, 17 to 25")
    parser.add_argument(
        "--device", metavar="D", help="of AOTInductor: where it computes, cpu (default) or cuda"
    )
    parser.add_argument(
        "--portable", action="store_true", default=None,
        help="nothing compiled beside the ONNX file: scans and sparse products in ONNX's own "
        "operators, which is slower",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="MIN,OPT,MAX",
        help="of TensorRT: batches that an engine takes, tuned for the middle one (1,8,64)",
    )  # fmt: skip
    parser.add_argument(
        "--profile-lengths", metavar="MIN,OPT,MAX",
        help="of TensorRT and models of text: the same for tokens and caches (1,256,2048)",
    )  # fmt: skip
    parser.add_argument(
        "--workspace", type=float, metavar="GIB",
        help="of TensorRT: GPU memory that a layer may use while it is built and run (4)",
    )  # fmt: skip


def backend_of(words: Namespace, *, text: bool) -> Backend | str:
    """The backend that the words ask for, with its settings.

    Args:
        words: Those of `backend_arguments`, and `batch`.
        text: Whether the model takes text, so that lengths are free.

    Raises:
        UsageError: A setting is of another backend, out of range, or says nothing here.
    """
    settings = {n: getattr(words, n) for n in _ALL if getattr(words, n) is not None}
    wrong = [name for name in settings if name not in _SETTINGS.get(words.backend, ())]
    if wrong:
        fits = [name for name, takes in _SETTINGS.items() if wrong[0] in takes]
        raise UsageError(
            f"{_word(wrong[0])} is no setting of --backend {words.backend}",
            found=", ".join(map(_word, wrong)), fix=f"--backend {' or '.join(fits)}",
        )  # fmt: skip
    if words.backend != "tensorrt":
        return find_backend(words.backend, **settings) if settings else words.backend
    if "profile" in settings and words.batch != "dynamic":
        raise UsageError(
            "--profile is for a batch that is free", found=f"--batch {words.batch}",
            fix="leave out one of them",
        )  # fmt: skip
    if "profile_lengths" in settings and not text:
        raise UsageError(
            "pictures have no length that is free", found="--profile-lengths",
            fix="--profile says which batches an engine takes",
        )  # fmt: skip
    return TensorRTBackend(TensorRTSettings(**_as_settings(settings)))


def _as_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Words as the fields of `TensorRTSettings`."""
    found = dict(given)
    for word, name in (("profile", "batches"), ("profile_lengths", "lengths")):
        if word in found:
            found[name] = _range(_word(word), found.pop(word))
    if "workspace" in found:
        found["workspace"] = _mebibytes(found["workspace"])
    return found


def _range(word: str, text: str) -> Range:
    parts = text.split(",")
    sizes = [int(part) for part in parts if part.strip().isdecimal()]
    if len(parts) != 3 or len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise UsageError(
            f"{word} goes from the smallest size over the usual one to the largest",
            found=text, fix=f"{word} 1,8,64",
        )  # fmt: skip
    return sizes[0], sizes[1], sizes[2]


def _mebibytes(gibibytes: float) -> int:
    if not 1 / 1024 <= gibibytes <= 1024:
        raise UsageError(
            "--workspace is GiB of GPU memory", found=f"{gibibytes:g}", fix="--workspace 4"
        )
    return int(gibibytes * 1024)


def _word(name: str) -> str:
    return f"--{name.replace('_', '-')}"
