"""What a graph is to be run by: a name and a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from packaging.version import InvalidVersion, Version

from prunepass.errors import UsageError, looked_up


@dataclass(frozen=True, kw_only=True)
class Known:
    """A kind of target.

    Attributes:
        kind: What it reads, `onnx` or `program`.
        package: The Python package whose version counts.
        oldest: The first version that the rules know.
        newest: The last one; what is newer is judged as this one.
        says: What it is.
    """

    kind: str
    package: str
    oldest: str
    newest: str
    says: str


TARGETS: Mapping[str, Known] = MappingProxyType(
    {
        "onnxruntime": Known(
            kind="onnx", package="onnxruntime", oldest="1.19", newest="1.32",
            says="ONNX Runtime, its CPU execution provider",
        ),
        "tensorrt": Known(
            kind="onnx", package="tensorrt", oldest="8.5", newest="11.5",
            says="TensorRT's parser of ONNX files",
        ),
        "onnxscript": Known(
            kind="program", package="onnxscript", oldest="0.5", newest="0.7",
            says="the way from a program to an ONNX file",
        ),
        "torch_tensorrt": Known(
            kind="program", package="torch-tensorrt", oldest="2.8", newest="2.13",
            says="torch-tensorrt, its dynamo front end",
        ),
        "flop_counter": Known(
            kind="program", package="torch", oldest="2.4", newest="2.15",
            says="torch.utils.flop_counter; the version is torch's",
        ),
    }
)  # fmt: skip
DEFAULTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"onnx": ("onnxruntime", "tensorrt"), "program": ("onnxscript", "torch_tensorrt")}
)
"""Targets of a kind of file where nobody names one."""


@dataclass(frozen=True)
class Target:
    """A name of `TARGETS` and a version of it, e.g. `tensorrt==10.13`."""

    name: str
    version: Version

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def kind(self) -> str:
        """What it reads: `onnx` or `program`."""
        return TARGETS[self.name].kind

    @property
    def judged(self) -> Version:
        """The version that rules go by: one that is newer than they are counts as the newest."""
        return min(self.version, Version(f"{TARGETS[self.name].newest}.999"))


def parse_target(text: str) -> Target:
    """The target that `NAME==VERSION` means, or `NAME` alone: what is installed, else the newest.

    A version is meant as it stands: 10 is 10.0.

    Raises:
        UsageError: The name is unknown, the version is none, or older than the rules.
    """
    name, equals, number = text.strip().partition("==")
    name = name.replace("-", "_")
    known = looked_up(TARGETS, name, "target", UsageError)
    found = number if equals else (_installed(known.package) or known.newest)
    try:
        chosen = Version(found)
    except InvalidVersion:
        raise UsageError(
            f"{found!r} is no version of {name}", found=text, fix=f"{name}=={known.newest}"
        ) from None
    if chosen < Version(known.oldest):
        if not equals:
            return Target(name, Version(known.newest))
        raise UsageError(
            f"nothing is known of {name} {chosen}",
            found=f"rules from {known.oldest} to {known.newest}",
            fix=f"{name}=={known.oldest}, or newer",
        )
    return Target(name, chosen)


def default_targets(kind: str) -> tuple[Target, ...]:
    """The targets of a kind of file where nobody names one."""
    return tuple(parse_target(name) for name in DEFAULTS[kind])


def _installed(package: str) -> str | None:
    names = (package, f"{package}-gpu") if package == "onnxruntime" else (package,)
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
