"""What a vision-language bundle says of itself."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prunepass.bundle import FILE, is_count, is_text, kind_of
from prunepass.bundle_files import read_json
from prunepass.errors import ModelError, UsageError
from prunepass.rules.image_tokens import kept_number
from prunepass.vlm.layout import Layout
from prunepass.vlm.tiles import Tiling

SCHEMA = 3
KIND = "vision-language"
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
        shares: For each decoder layer, which share (part, whole) of an image's tokens its cache
            holds, rounded down.
        cache: [heads, channels of a head] of keys and values.
        vocabulary: Logits of one token.
        image_token: Number of the token that stands for image tokens.
        image_tokens: How many of them one image has where the language model begins; None where
            that depends on its size.
        any_images: Whether the encoder takes several images at once.
        grid: [rows, columns] of an image's tokens where positions are of time, row and column.
        padding: Number of the token that fills up shorter prompts.
        stop: Numbers of the tokens that end an answer.
        context: Most tokens of prompt and answer together.
        pixels: [3, H, W] of an image, or [tiles, 3, H, W] where it comes as tiles; [3, S, S] of a
            tile where their number depends on its size.
        tiling: How images of any size are cut into tiles, None where all have one size.
        preprocessing: How a picture becomes an input, or None.
        template: A prompt with `{image}` for images and `{prompt}` for what is asked, or None.
        image_mark: Text of the token that stands for an image, or None.
        sees: What a token of a prompt attends to: `causal`, what stands before it; `image`, all of
            its own image besides; `prompt`, the whole prompt.
        without: Layers of the model that were dropped, as it counts them; `shares` tells of those
            that are left.
        decode_inputs: What a decoding step reads where that is not all: method, keep, how many
            layers read fewer inputs and how many stay dense, and its MACs relative to dense ones.
    """

    backend: str
    model: str
    method: str
    positions: str
    rows: str
    shares: tuple[tuple[int, int], ...]
    cache: tuple[int, int]
    vocabulary: int
    image_token: int
    image_tokens: int | None
    any_images: bool
    grid: tuple[int, int] | None
    padding: int
    stop: tuple[int, ...]
    context: int
    pixels: tuple[int, ...]
    tiling: Tiling | None = None
    preprocessing: Mapping[str, Any] | None = None
    template: str | None = None
    image_mark: str | None = None
    sees: str = "causal"
    without: tuple[str, ...] = ()
    decode_inputs: Mapping[str, Any] | None = None

    def layout(self, image_tokens: int | None = None) -> Layout:
        """How prompts are laid out.

        Args:
            image_tokens: N of one image, None for what all have.
        """
        number = self._number(image_tokens)
        return Layout(self.image_token, number, self.padding, self.grid)

    @property
    def first_layers(self) -> tuple[int, ...]:
        """The first layer of each stage, from 0: layers of one stage have caches of one length."""
        found = [0]
        for layer, share in enumerate(self.shares):
            if share != self.shares[found[-1]]:
                found.append(layer)
        return tuple(found)

    def left(self, image_tokens: int | None = None) -> tuple[int, ...]:
        """For each layer, how many tokens of an image its cache holds."""
        number = self._number(image_tokens)
        return tuple(kept_number(number, share) for share in self.shares)

    def dropped(self, image_tokens: int | None = None) -> tuple[int, ...]:
        """For each layer, by how many tokens an image its cache is shorter than the prompt."""
        number = self._number(image_tokens)
        return tuple(number - left for left in self.left(number))

    def cache_lengths(
        self, tokens: int, images: int, image_tokens: int | None = None
    ) -> tuple[int, ...]:
        """Tokens in the cache of each layer behind a prompt of so many tokens and images."""
        return tuple(tokens - images * dropped for dropped in self.dropped(image_tokens))

    def _number(self, image_tokens: int | None) -> int:
        number = self.image_tokens if image_tokens is None else image_tokens
        if number is None:
            raise UsageError(
                "images of any size have no one number of tokens", found="image_tokens=None",
                fix="manifest.tiling.tokens((height, width)) is the number of one",
            )  # fmt: skip
        return number

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema": SCHEMA, "kind": KIND, **dataclasses.asdict(self)}, indent=2)


def is_vlm_bundle(folder: Path) -> bool:
    """Whether a folder holds a vision-language bundle, of whatever version."""
    return kind_of(folder) == KIND


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
        data = read_json(path)
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
    names = {field.name for field in dataclasses.fields(VlmManifest)}
    if set(data) != names:
        wrong = ", ".join(sorted(names ^ set(data)))
        raise ModelError(f"{path} is damaged", found=f"missing or unknown: {wrong}", fix=again)
    for key, value in data.items():
        if not _CHECKS[key](value):
            raise ModelError(f"{path} is damaged", found=f"{key}: {value!r}"[:200], fix=again)
    plain: Any = {k: _tuples(v) for k, v in data.items()}
    if plain["tiling"] is not None:
        plain["tiling"] = Tiling(**{k: _tuples(v) for k, v in plain["tiling"].items()})
    if (plain["tiling"] is None) == (plain["image_tokens"] is None):
        raise ModelError(
            f"{path} is damaged", found="image_tokens and tiling: one of them is right", fix=again
        )
    return VlmManifest(**plain)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _counts(length: int | None, least: int = 0) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, list)
            and (len(value) == length if length else len(value) > 0)
            and all(is_count(item, least) for item in value)
        )

    return check


def _shares(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(map(_counts(2, 1), value)):
        return False
    falling = all(a * d >= c * b for (a, b), (c, d) in itertools.pairwise(value))
    return falling and value[0] == [1, 1]


def _tiling(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"side", "patches", "grids"}:
        return False
    side, grids = value["side"], value["grids"]
    if not is_count(side, 1) or not is_count(value["patches"], 1) or not isinstance(grids, list):
        return False
    whole = all(_counts(2, 1)(grid) and not any(n % side for n in grid) for grid in grids)
    return whole and len(grids) > 0


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "backend": is_text,
        "model": is_text,
        "method": is_text,
        "positions": lambda value: value in ("keep_original", "compact"),
        "rows": lambda value: value in ("text", "last"),
        "shares": _shares,
        "cache": _counts(2, 1),
        "vocabulary": lambda value: is_count(value, 1),
        "image_token": is_count,
        "image_tokens": _or_none(lambda value: is_count(value, 1)),
        "any_images": lambda value: isinstance(value, bool),
        "grid": _or_none(_counts(2, 1)),
        "padding": is_count,
        "stop": lambda value: isinstance(value, list) and all(map(is_count, value)),
        "context": lambda value: is_count(value, 1),
        "pixels": lambda value: any(_counts(length, 1)(value) for length in (3, 4)),
        "tiling": _or_none(_tiling),
        "preprocessing": _or_none(lambda value: isinstance(value, dict)),
        "template": _or_none(lambda value: isinstance(value, str) and "{prompt}" in value),
        "image_mark": _or_none(is_text),
        "without": lambda value: isinstance(value, list) and all(map(is_text, value)),
        "decode_inputs": _or_none(lambda value: isinstance(value, dict)),
        "sees": lambda value: value in ("causal", "image", "prompt"),
    }
)
