"""Labelled pictures of our own: one object on a cluttered background, any number, no downloads.

A picture is a pure function of its index, so train and test sets are index ranges that do not
overlap. The object covers some tenth of the picture; the rest is a colour gradient, soft noise,
thin lines and dots that say nothing about the class, and neither does any colour. Pixels are
computed with additions, products, square roots and comparisons only and rounded to 8 bits, so a
picture does not depend on the batch it is drawn in.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prunepass.models.outlines import Floats, covered, outline, wave
from torch import Tensor

CLASSES = (
    "disc",
    "ring",
    "half_disc",
    "crescent",
    "triangle",
    "square",
    "cross",
    "star",
    "striped_disc",
    "striped_triangle",
    "checkered_square",
    "checkered_triangle",
)
GENERATOR_VERSION = 1

_CHUNK = 16  # pictures drawn at once: larger chunks fall out of the processor's cache


def picture(index: int, *, size: int = 96) -> tuple[Tensor, int]:
    """One picture [3, S, S] (float32 RGB in 0..1, S = `size` pixels) and its class number."""
    images, labels = batch([index], size=size)
    return images[0], int(labels[0])


def batch(indices: Iterable[int], *, size: int = 96) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, S, S] (float32 RGB in 0..1) and class numbers [B] (int64).

    Every run of 12 indices that starts at a multiple of 12 holds each class once.

    Raises:
        ValueError: an index is negative, or `size` is below 16 pixels.
    """
    pixels, _, labels = draw(indices, size=size)
    return torch.from_numpy(pixels).to(torch.float32) / 255, torch.from_numpy(labels)


def draw(
    indices: Iterable[int], *, size: int = 96
) -> tuple[NDArray[np.uint8], Floats, NDArray[np.int64]]:
    """Pixels [B, 3, S, S] (uint8), object coverage [B, S, S] (0..1) and class numbers [B].

    The coverage is the share of each pixel that the object takes; lines may run across it.

    Raises:
        ValueError: an index is negative, or `size` is below 16 pixels.
    """
    wanted = [int(index) for index in indices]
    if any(index < 0 for index in wanted):
        raise ValueError(f"picture indices start at 0; found {min(wanted)}")
    if size < 16:
        raise ValueError(f"pictures are at least 16 pixels wide; found size={size}")
    index_array = np.array(wanted, dtype=np.uint64)
    pixels = np.empty((len(wanted), 3, size, size), dtype=np.uint8)
    coverage = np.empty((len(wanted), size, size), dtype=np.float32)
    labels = _labels(index_array)
    for start in range(0, len(wanted), _CHUNK):
        part = slice(start, start + _CHUNK)
        pixels[part], coverage[part] = _draw_chunk(index_array[part], labels[part], size)
    return pixels, coverage, labels


def write_folder(folder: Path | str, count: int, *, start: int, size: int = 96) -> list[Path]:
    """Paths of `count` PNG files written for the indices from `start` on; needs pillow.

    A file is named `{label:04d}_{class}_{index}.png`, so the class number is what stands before
    the first underscore. The folder is made if it is missing.
    """
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for first in range(start, start + count, 256):
        indices = range(first, min(first + 256, start + count))
        pixels, _, labels = draw(indices, size=size)
        for index, rgb, label in zip(indices, pixels, labels, strict=True):
            path = folder / f"{label:04d}_{CLASSES[label]}_{index}.png"
            Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0))).save(path)
            written.append(path)
    return written


def _hash(indices: NDArray[np.uint64], slots: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 pseudo-random bits for each index and slot, [B, *slots.shape].

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied to a counter.
    """
    key = _mix(indices * np.uint64(0x9E3779B97F4A7C15) + np.uint64(GENERATOR_VERSION))
    key = key.reshape(-1, *(1,) * slots.ndim)
    return _mix(key + slots * np.uint64(0xD1B54A32D192ED03))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _labels(indices: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Class numbers [B]: a rotation of all classes for each run of 12 indices."""
    classes = np.uint64(len(CLASSES))
    turn = _hash(indices // classes, np.zeros((), np.uint64)) >> np.uint64(32)
    labels: NDArray[np.int64] = ((indices + turn) % classes).astype(np.int64)
    return labels


class _Draws:
    """Uniform numbers of a chunk of pictures, handed out in a fixed order."""

    def __init__(self, indices: NDArray[np.uint64]) -> None:
        self._indices = indices
        self._next_slot = 1

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> Floats:
        """Numbers [B, *shape] between `low` and `high` (float32)."""
        count = int(np.prod(shape, dtype=np.int64))
        slots = np.arange(self._next_slot, self._next_slot + count, dtype=np.uint64)
        self._next_slot += count
        bits = (_hash(self._indices, slots.reshape(shape)) >> np.uint64(40)).astype(np.float32)
        return bits * np.float32((high - low) / 2**24) + np.float32(low)


def _draw_chunk(
    indices: NDArray[np.uint64], labels: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint8], Floats]:
    """Pixels [B, 3, S, S] and object coverage [B, S, S] of a few pictures."""
    draws = _Draws(indices)
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    y, x = centres[None, :, None], centres[None, None, :]

    light = draws.uniform(0.3, 0.7)
    image = _background(draws, light, x, y, size)
    _blend(image, _dots(draws, x, y, size), _colour(draws, light, 0.1, 0.4))
    _blend(image, _lines(draws, x, y, size, count=2), _colour(draws, light, 0.1, 0.4))

    coverage, texture = _object(draws, labels, x, y, size)
    away = _sign(draws)
    first = _tinted(draws, light + away * draws.uniform(0.2, 0.45))
    second = _tinted(draws, light - away * draws.uniform(0.1, 0.35))
    paint = first[:, :, None, None] + texture[:, None] * (second - first)[:, :, None, None]
    image += coverage[:, None] * (paint - image)

    _blend(image, _lines(draws, x, y, size, count=1), _colour(draws, light, 0.1, 0.4))
    grain = draws.uniform(-1, 1, (1, size, size)) * draws.uniform(0.02, 0.08, (1, 1, 1))
    image += grain
    pixels = np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
    return pixels, coverage


def _background(draws: _Draws, light: Floats, x: Floats, y: Floats, size: int) -> Floats:
    """A gradient between two colours with soft noise on it, [B, 3, S, S]."""
    one, other = _tinted(draws, light + draws.uniform(-0.1, 0.1)), _tinted(draws, light)
    cos, sin = _direction(draws)
    along = (x - np.float32(0.5)) * cos + (y - np.float32(0.5)) * sin + np.float32(0.5)
    image: Floats = (
        one[:, :, None, None] + (other - one)[:, :, None, None] * np.clip(along, 0, 1)[:, None]
    )
    knots = 9
    noise = draws.uniform(-0.1, 0.1, (1, knots, knots))
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32((knots - 1) / size)
    left = place.astype(np.int64)
    share = place - left.astype(np.float32)
    rows = noise[:, :, left] * (1 - share)[:, None] + noise[:, :, left + 1] * share[:, None]
    image += rows[..., left] * (1 - share) + rows[..., left + 1] * share
    return image


def _dots(draws: _Draws, x: Floats, y: Floats, size: int) -> Floats:
    """Coverage [B, S, S] of seven small dots."""
    distance: Floats | None = None
    for _ in range(7):
        across, down = x - _column(draws.uniform(0, 1)), y - _column(draws.uniform(0, 1))
        radius = _column(draws.uniform(0.008, 0.03))
        dot = np.sqrt(across * across + down * down) - radius
        distance = dot if distance is None else np.minimum(distance, dot)
    assert distance is not None
    return covered(distance, np.float32(size))


def _lines(draws: _Draws, x: Floats, y: Floats, size: int, *, count: int) -> Floats:
    """Coverage [B, S, S] of `count` thin straight lines from edge to edge."""
    distance: Floats | None = None
    for _ in range(count):
        cos, sin = _direction(draws)
        offset = _column(draws.uniform(-0.5, 0.5))
        line = np.abs((x - np.float32(0.5)) * cos + (y - np.float32(0.5)) * sin - offset)
        line = line - _column(draws.uniform(0.003, 0.009))
        distance = line if distance is None else np.minimum(distance, line)
    assert distance is not None
    return covered(distance, np.float32(size))


def _object(
    draws: _Draws, labels: NDArray[np.int64], x: Floats, y: Floats, size: int
) -> tuple[Floats, Floats]:
    """Coverage [B, S, S] of the object, and the share [B, S, S] of its second colour."""
    radius = _column(draws.uniform(0.15, 0.25))
    room = 1 - 2 * radius
    centre_x = radius + room * _column(draws.uniform(0, 1))
    centre_y = radius + room * _column(draws.uniform(0, 1))
    cos, sin = _direction(draws, most=0.5)
    stretch = _column(draws.uniform(0.85, 1.0))
    phase_x, phase_y = _column(draws.uniform(0, 1)), _column(draws.uniform(0, 1))
    period = _column(draws.uniform(0.5, 0.7))

    across, down = (x - centre_x) / radius, (y - centre_y) / radius
    u, v = across * cos + down * sin, (down * cos - across * sin) / stretch
    scale = radius * np.float32(size)  # pixels in one unit of u and v
    distance = np.empty_like(u)
    texture = np.zeros_like(u)
    for label in np.unique(labels):
        rows = labels == label
        name = CLASSES[label]
        distance[rows] = outline(name.split("_")[-1] if "ed_" in name else name, u[rows], v[rows])
        if "ed_" in name:
            sharp = scale[rows] * period[rows]
            bands = wave(u[rows] / period[rows] + phase_x[rows], sharp)
            if name.startswith("checkered"):
                bands = bands * wave(v[rows] / period[rows] + phase_y[rows], sharp)
            texture[rows] = np.float32(0.5) + np.float32(0.5) * bands
    return covered(distance, scale), texture


def _direction(draws: _Draws, *, most: float = np.pi) -> tuple[Floats, Floats]:
    """Cosine and sine [B, 1, 1] of a random angle between -`most` and `most` radians."""
    angle = draws.uniform(-1, 1).astype(np.float64) * most
    return _column(np.cos(angle).astype(np.float32)), _column(np.sin(angle).astype(np.float32))


def _sign(draws: _Draws) -> Floats:
    """Minus one or one, [B]."""
    return np.where(draws.uniform(0, 1) < 0.5, -1, 1).astype(np.float32)


def _colour(draws: _Draws, light: Floats, low: float, high: float) -> Floats:
    """Colours [B, 3] whose lightness differs from `light` by `low` to `high`, up or down."""
    away = _sign(draws)
    return _tinted(draws, light + away * draws.uniform(low, high))


def _tinted(draws: _Draws, light: Floats) -> Floats:
    """Colours [B, 3] around the lightness `light` [B]."""
    return light[:, None] + draws.uniform(-0.15, 0.15, (3,))


def _blend(image: Floats, coverage: Floats, colour: Floats) -> None:
    """Paints `colour` [B, 3] over `image` [B, 3, S, S] where `coverage` [B, S, S] says so."""
    image += coverage[:, None] * (colour[:, :, None, None] - image)


def _column(values: Floats) -> Floats:
    return values[:, None, None]
