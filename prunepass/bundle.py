"""A bundle: the folder that holds a compiled model and needs no model source to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from prunepass.bundle_files import read_json
from prunepass.errors import ModelError
from prunepass.plans import Plan

SCHEMA = 1
FILE = "bundle.json"
PROGRAM = "program"
"""Folder of a bundle with its programs, as PyTorch saves them."""
_KEYS = {"schema", "backend", "batch", "inputs", "outputs", "preprocessing", "model", "weights",
         "macs_dense", "macs"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        backend: Name of the backend of its engines.
        batch: Fixed batch size, or None.
        inputs: Name -> [shape, dtype]; the batch stands as 0 where it is free.
        outputs: The same for outputs.
        preprocessing: How a picture becomes an input, or None.
        model: What was compiled.
        weights: Where its weights came from.
        macs_dense: Multiply-accumulates of the dense engine, one example.
        macs: Those of the compressed engine.
    """

    backend: str
    batch: int | None
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    preprocessing: Mapping[str, Any] | None
    model: str
    weights: str
    macs_dense: int
    macs: int

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema": SCHEMA, **self.__dict__}, indent=2)

    @property
    def macs_ratio(self) -> float:
        """MACs relative to the dense engine."""
        return self.macs / self.macs_dense if self.macs_dense else 1.0


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        ModelError: The folder is no bundle, or one of another version.
    """
    path = folder / FILE
    if not folder.is_dir() or not path.is_file():
        raise ModelError(
            f"{folder} is not a bundle",
            found="no bundle.json" if folder.is_dir() else "no such folder",
            fix="`prunepass compile MODEL -o DIR` makes one",
        )
    data = read_json(path)
    if isinstance(data, dict) and "kind" in data:
        raise ModelError(
            f"{folder} is no bundle of a model of pictures alone",
            found=f"kind {data['kind']!r}"[:80],
            fix=f"prunepass generate {folder} --prompt TEXT",
        )
    if not isinstance(data, dict) or set(data) != _KEYS:
        raise ModelError(f"{path} is damaged", found="wrong keys", fix="compile again")
    schema = data.pop("schema")
    if not is_count(schema) or schema != SCHEMA:
        raise ModelError(
            f"{path} is of another version",
            found=f"schema {schema!r}"[:80],
            fix=f"compile again: this version reads schema {SCHEMA}",
        )
    for key, value in data.items():
        if not _CHECKS[key](value):
            raise ModelError(
                f"{path} is damaged", found=f"{key}: {value!r}"[:200], fix="compile again"
            )
    return Manifest(**data)


def kind_of(folder: Path) -> str | None:
    """What kind of bundle a folder holds, of whatever version; None for pictures, or no bundle."""
    try:
        data = read_json(folder / FILE)
    except ModelError:
        return None
    kind = data.get("kind") if isinstance(data, dict) else None
    return kind if isinstance(kind, str) else None


def is_count(value: object, least: int = 0) -> bool:
    """Whether it is a whole number that is large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_text(value: object) -> bool:
    """Whether it is text, and not empty."""
    return isinstance(value, str) and value != ""


def _is_signature(value: object) -> bool:
    """Whether it is name -> [shape, dtype]."""
    return isinstance(value, dict) and all(
        isinstance(tensor, list)
        and len(tensor) == 2
        and isinstance(tensor[0], list)
        and all(is_count(size) for size in tensor[0])
        and isinstance(tensor[1], str)
        and isinstance(getattr(torch, tensor[1], None), torch.dtype)
        for tensor in value.values()
    )


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "backend": is_text,
        "batch": lambda value: value is None or (is_count(value) and value > 0),
        "inputs": lambda value: _is_signature(value) and len(value) > 0,
        "outputs": _is_signature,
        "preprocessing": lambda value: value is None or isinstance(value, dict),
        "model": is_text,
        "weights": is_text,
        "macs_dense": is_count,
        "macs": is_count,
    }
)


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ModelError: The file cannot be read.
        PlanError: It is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read the plan {path}",
            found=str(error)[:200],
            fix="--plan with a file that `prunepass plan` wrote",
        ) from error
    return Plan.from_json(text)
