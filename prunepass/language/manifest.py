"""What the bundle of a language model says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from prunepass.bundle import FILE, is_count, is_text, kind_of
from prunepass.bundle_files import read_json
from prunepass.errors import ModelError

SCHEMA = 2
KIND = "language"
ENGINES = ("dense", "compressed")


@dataclass(frozen=True, kw_only=True)
class LanguageManifest:
    """What binds the engines of one bundle: both are the same decoder, see `language.capture`.

    Attributes:
        backend: Name of the backend of its engines.
        model: What was compiled.
        method: Name of the method.
        weights: Where its weights came from.
        layers: Decoder layers.
        cache: [heads, channels of a head] of keys and values.
        vocabulary: Logits of one token.
        context: Most tokens of prompt and answer together; of layers that attend to a window only,
            its width.
        stop: Numbers of the tokens that end an answer.
        dtype: Of weights and cache, e.g. `float32`.
        macs_dense: Multiply-accumulates of the dense engine for one token.
        macs: Those of the compressed engine, where it computes one token at a time.
        macs_above: (R, those of the compressed engine where it computes more than R tokens at
            once), R ascending: layers that take more tokens than a step allows are dense.
    """

    backend: str
    model: str
    method: str
    weights: str
    layers: int
    cache: tuple[int, int]
    vocabulary: int
    context: int
    stop: tuple[int, ...]
    dtype: str
    macs_dense: int
    macs: int
    macs_above: tuple[tuple[int, int], ...]

    @property
    def macs_ratio(self) -> float:
        """MACs of a token that is decoded alone, relative to the dense engine."""
        return self.macs_ratio_at(1)

    def macs_at(self, tokens: int) -> int:
        """MACs of one of so many tokens that the compressed engine computes at once."""
        found = self.macs
        for rows, macs in self.macs_above:
            if tokens > rows:
                found = macs
        return found

    def macs_ratio_at(self, tokens: int) -> float:
        """The same relative to the dense engine."""
        return self.macs_at(tokens) / self.macs_dense if self.macs_dense else 1.0

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema": SCHEMA, "kind": KIND, **dataclasses.asdict(self)}, indent=2)


def is_language_bundle(folder: Path) -> bool:
    """Whether a folder holds the bundle of a language model, of whatever version."""
    return kind_of(folder) == KIND


def read_language_manifest(folder: Path) -> LanguageManifest:
    """The manifest of a bundle.

    Raises:
        ModelError: The folder is no bundle of a language model, is of another version, or damaged.
    """
    path = folder / FILE
    if not is_language_bundle(folder):
        raise ModelError(
            f"{folder} is not the bundle of a language model",
            found="a file that is none" if path.is_file() else f"no {FILE}",
            fix="`prunepass compile hf/FOLDER --method wina --keep 0.5 -o DIR` makes one",
        )
    data = read_json(path)
    data.pop("kind")
    schema = data.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise ModelError(
            f"{path} is of another version", found=f"schema {schema!r}"[:80], fix="compile again"
        )
    names = {field.name for field in dataclasses.fields(LanguageManifest)}
    wrong = names ^ set(data) or {key for key, value in data.items() if not _CHECKS[key](value)}
    if wrong:
        raise ModelError(
            f"{path} is damaged", found=", ".join(sorted(wrong))[:200], fix="compile again"
        )
    plain: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    plain["macs_above"] = tuple(map(tuple, plain["macs_above"]))
    return LanguageManifest(**plain)


def _counts(value: object, least: int = 0) -> bool:
    return isinstance(value, list) and all(is_count(item, least) for item in value)


def _pairs(value: object) -> bool:
    return isinstance(value, list) and all(_counts(item) and len(item) == 2 for item in value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "backend": is_text,
        "model": is_text,
        "method": is_text,
        "weights": is_text,
        "layers": lambda value: is_count(value, 1),
        "cache": lambda value: _counts(value, 1) and len(value) == 2,
        "vocabulary": lambda value: is_count(value, 1),
        "context": lambda value: is_count(value, 1),
        "stop": _counts,
        "dtype": lambda v: is_text(v) and isinstance(getattr(torch, v, None), torch.dtype),
        "macs_dense": is_count,
        "macs": is_count,
        "macs_above": _pairs,
    }
)
