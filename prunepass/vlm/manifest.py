"""What a vision-language bundle says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prunepass.errors import ModelError
from prunepass.vlm.layout import Layout

SCHEMA = 1
KIND = "vision-language"
FILE = "bundle.json"
ENGINES = ("vision", "embedding", "prefill", "decode")


@dataclass(frozen=True, kw_only=True)
class VlmManifest:
    """What binds the engines of one bundle.

    Attributes:
        backend: Name of the backend of its engines.
        model: What was compiled.
        method: Name of the method.
        positions: `keep_original` or `compact`: what becomes of positions behind a pruning.
        rows: Which text scores image tokens, `text` or `last`.
        dropped: For each decoder layer, by how many tokens an image its cache is shorter than the
            prompt.
        cache: [heads, channels of a head] of keys and values.
        vocabulary: Logits of one token.
        image_token: Number of the token that stands for image tokens.
        image_tokens: How many of them one image has where the language model begins.
        any_images: Whether the encoder takes several images at once.
        grid: [rows, columns] of an image's tokens where positions are of time, row and column.
        padding: Number of the token that fills up shorter prompts.
        stop: Numbers of the tokens that end an answer.
        context: Most tokens of prompt and answer together.
        pixels: [3, H, W] of an image, or [tiles, 3, H, W] where it comes as tiles.
        preprocessing: How a picture becomes an input, or None.
        template: A prompt with `{image}` for images and `{prompt}` for what is asked, or None.
        image_mark: Text of the token that stands for an image, or None.
        sees: What a token of a prompt attends to: `causal`, what stands before it; `image`, all of
            its own image besides; `prompt`, the whole prompt.
        without: Layers of the model that were dropped, as it counts them; `dropped` tells of those
            that are left.
    """

    backend: str
    model: str
    method: str
    positions: str
    rows: str
    dropped: tuple[int, ...]
    cache: tuple[int, int]
    vocabulary: int
    image_token: int
    image_tokens: int
    any_images: bool
    grid: tuple[int, int] | None
    padding: int
    stop: tuple[int, ...]
    context: int
    pixels: tuple[int, ...]
    preprocessing: Mapping[str, Any] | None = None
    template: str | None = None
    image_mark: str | None = None
    sees: str = "causal"
    without: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """How prompts are laid out."""
        return Layout(self.image_token, self.image_tokens, self.padding, self.grid)

    @property
    def first_layers(self) -> tuple[int, ...]:
        """The first layer of each stage, from 0: layers of one stage have caches of one length."""
        found = [0]
        for layer, dropped in enumerate(self.dropped):
            if dropped != self.dropped[found[-1]]:
                found.append(layer)
        return tuple(found)

    def cache_lengths(self, tokens: int, images: int) -> tuple[int, ...]:
        """Tokens in the cache of each layer behind a prompt of so many tokens and images."""
        return tuple(tokens - images * dropped for dropped in self.dropped)

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema": SCHEMA, "kind": KIND, **dataclasses.asdict(self)}, indent=2)


def is_vlm_bundle(folder: Path) -> bool:
    """Whether a folder holds a vision-language bundle, of whatever version."""
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("kind") == KIND


def read_vlm_manifest(folder: Path) -> VlmManifest:
    """The manifest of a bundle.

    Raises:
        ModelError: The folder is no vision-language bundle, is of another version, or damaged.
    """
    path = folder / FILE
    again = "compile again"
    if not path.is_file():
        raise ModelError(
            f"{folder} is not a vision-language bundle",
            found=f"no {FILE}" if folder.is_dir() else "no such folder",
            fix="prunepass.vlm.compile makes one",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}", found=str(error)[:200], fix=again) from error
    if not isinstance(data, dict) or data.pop("kind", None) != KIND:
        raise ModelError(
            f"{folder} is not a vision-language bundle",
            found="a bundle of another kind",
            fix="`prunepass bench` and `eval` take those",
        )
    schema = data.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise ModelError(
            f"{path} is of another version",
            found=f"schema {schema!r}"[:80],
            fix=f"compile again: this version reads schema {SCHEMA}",
        )
    data.setdefault("without", [])  # bundles of before layers could be dropped
    names = {field.name for field in dataclasses.fields(VlmManifest)}
    if set(data) != names:
        wrong = ", ".join(sorted(names ^ set(data)))
        raise ModelError(f"{path} is damaged", found=f"missing or unknown: {wrong}", fix=again)
    for key, value in data.items():
        if not _CHECKS[key](value):
            raise ModelError(f"{path} is damaged", found=f"{key}: {value!r}"[:200], fix=again)
    plain: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return VlmManifest(**plain)


def _count(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _counts(length: int | None, least: int = 0) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, list)
            and (len(value) == length if length else len(value) > 0)
            and all(_count(item, least) for item in value)
        )

    return check


def _dropped(value: Any) -> bool:
    return _counts(None)(value) and value == sorted(value) and value[0] == 0


def _text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "backend": _text,
        "model": _text,
        "method": _text,
        "positions": lambda value: value in ("keep_original", "compact"),
        "rows": lambda value: value in ("text", "last"),
        "dropped": _dropped,
        "cache": _counts(2, 1),
        "vocabulary": lambda value: _count(value, 1),
        "image_token": _count,
        "image_tokens": lambda value: _count(value, 1),
        "any_images": lambda value: isinstance(value, bool),
        "grid": _or_none(_counts(2, 1)),
        "padding": _count,
        "stop": lambda value: isinstance(value, list) and all(map(_count, value)),
        "context": lambda value: _count(value, 1),
        "pixels": lambda value: any(_counts(length, 1)(value) for length in (3, 4)),
        "preprocessing": _or_none(lambda value: isinstance(value, dict)),
        "template": _or_none(lambda value: isinstance(value, str) and "{prompt}" in value),
        "image_mark": _or_none(_text),
        "without": lambda value: isinstance(value, list) and all(map(_text, value)),
        "sees": lambda value: value in ("causal", "image", "prompt"),
    }
)
