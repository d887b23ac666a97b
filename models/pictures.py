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

_Floats = NDArray[np.float32]
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
) -> tuple[NDArray[np.uint8], _Floats, NDArray[np.int64]]:
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

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> _Floats:
        """Numbers [B, *shape] between `low` and `high` (float32)."""
        count = int(np.prod(shape, dtype=np.int64))
        slots = np.arange(self._next_slot, self._next_slot + count, dtype=np.uint64)
        self._next_slot += count
        bits = (_hash(self._indices, slots.reshape(shape)) >> np.uint64(40)).astype(np.float32)
        return bits * np.float32((high - low) / 2**24) + np.float32(low)


def _draw_chunk(
    indices: NDArray[np.uint64], labels: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint8], _Floats]:
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


def _background(draws: _Draws, light: _Floats, x: _Floats, y: _Floats, size: int) -> _Floats:
    """A gradient between two colours with soft noise on it, [B, 3, S, S]."""
    one, other = _tinted(draws, light + draws.uniform(-0.1, 0.1)), _tinted(draws, light)
    cos, sin = _direction(draws)
    along = (x - np.float32(0.5)) * cos + (y - np.float32(0.5)) * sin + np.float32(0.5)
    image: _Floats = (
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


def _dots(draws: _Draws, x: _Floats, y: _Floats, size: int) -> _Floats:
    """Coverage [B, S, S] of seven small dots."""
    distance: _Floats | None = None
    for _ in range(7):
        across, down = x - _column(draws.uniform(0, 1)), y - _column(draws.uniform(0, 1))
        radius = _column(draws.uniform(0.008, 0.03))
        dot = np.sqrt(across * across + down * down) - radius
        distance = dot if distance is None else np.minimum(distance, dot)
    assert distance is not None
    return _covered(distance, np.float32(size))


def _lines(draws: _Draws, x: _Floats, y: _Floats, size: int, *, count: int) -> _Floats:
    """Coverage [B, S, S] of `count` thin straight lines from edge to edge."""
    distance: _Floats | None = None
    for _ in range(count):
        cos, sin = _direction(draws)
        offset = _column(draws.uniform(-0.5, 0.5))
        line = np.abs((x - np.float32(0.5)) * cos + (y - np.float32(0.5)) * sin - offset)
        line = line - _column(draws.uniform(0.003, 0.009))
        distance = line if distance is None else np.minimum(distance, line)
    assert distance is not None
    return _covered(distance, np.float32(size))


def _object(
    draws: _Draws, labels: NDArray[np.int64], x: _Floats, y: _Floats, size: int
) -> tuple[_Floats, _Floats]:
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
        distance[rows] = _outline(name.split("_")[-1] if "ed_" in name else name, u[rows], v[rows])
        if "ed_" in name:
            sharp = scale[rows] * period[rows]
            bands = _wave(u[rows] / period[rows] + phase_x[rows], sharp)
            if name.startswith("checkered"):
                bands = bands * _wave(v[rows] / period[rows] + phase_y[rows], sharp)
            texture[rows] = np.float32(0.5) + np.float32(0.5) * bands
    return _covered(distance, scale), texture


def _outline(shape: str, u: _Floats, v: _Floats) -> _Floats:
    """Distance [B, S, S] to the shape's edge, negative inside; the shape fills a unit circle."""
    f = np.float32
    edge: _Floats
    match shape:
        case "disc":
            return np.sqrt(u * u + v * v) - f(0.9)
        case "ring":
            return np.abs(np.sqrt(u * u + v * v) - f(0.7)) - f(0.2)
        case "half_disc":
            u = u + f(0.4)
            return np.maximum(np.sqrt(u * u + v * v) - f(0.98), -u)
        case "crescent":
            bite = u - f(0.5)
            outer, inner = np.sqrt(u * u + v * v), np.sqrt(bite * bite + v * v)
            edge = np.maximum(outer - f(0.95), f(0.8) - inner)
            return edge
        case "triangle":
            slope = np.abs(v) * f(0.8660254)
            edge = np.maximum(-u, u * f(0.5) + slope)
            return edge - f(0.5)
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - f(0.75)
        case "cross":
            long, wide = np.abs(u), np.abs(v)
            return np.maximum(np.maximum(long, wide) - f(0.95), np.minimum(long, wide) - f(0.27))
        case "star":
            # A pentagram is what lies inside at least four of its five lines.
            angles = [2 * np.pi * k / 5 for k in range(5)]
            lines = [u * f(np.cos(a)) + v * f(np.sin(a)) - f(0.309017) for a in angles]
            top, second = np.maximum(lines[0], lines[1]), np.minimum(lines[0], lines[1])
            for line in lines[2:]:
                second = np.maximum(second, np.minimum(top, line))
                top = np.maximum(top, line)
            return second
    raise ValueError(f"unknown shape {shape!r}")


def _wave(turns: _Floats, sharp: _Floats) -> _Floats:
    """A square wave of -1 and 1 with period 1 in `turns`; `sharp` is the period in pixels."""
    ramp = np.abs(turns - np.floor(turns) - np.float32(0.5)) - np.float32(0.25)
    wave: _Floats = np.clip(ramp * sharp * 2, -1, 1)
    return wave


def _covered(distance: _Floats, pixels_per_unit: _Floats | np.float32) -> _Floats:
    """The share of each pixel inside an edge at `distance`, 0..1."""
    covered: _Floats = np.clip(np.float32(0.5) - distance * pixels_per_unit, 0, 1)
    return covered


def _direction(draws: _Draws, *, most: float = np.pi) -> tuple[_Floats, _Floats]:
    """Cosine and sine [B, 1, 1] of a random angle between -`most` and `most` radians."""
    angle = draws.uniform(-1, 1).astype(np.float64) * most
    return _column(np.cos(angle).astype(np.float32)), _column(np.sin(angle).astype(np.float32))


def _sign(draws: _Draws) -> _Floats:
    """Minus one or one, [B]."""
    return np.where(draws.uniform(0, 1) < 0.5, -1, 1).astype(np.float32)


def _colour(draws: _Draws, light: _Floats, low: float, high: float) -> _Floats:
    """Colours [B, 3] whose lightness differs from `light` by `low` to `high`, up or down."""
    away = _sign(draws)
    return _tinted(draws, light + away * draws.uniform(low, high))


def _tinted(draws: _Draws, light: _Floats) -> _Floats:
    """Colours [B, 3] around the lightness `light` [B]."""
    return light[:, None] + draws.uniform(-0.15, 0.15, (3,))


def _blend(image: _Floats, coverage: _Floats, colour: _Floats) -> None:
    """Paints `colour` [B, 3] over `image` [B, 3, S, S] where `coverage` [B, S, S] says so."""
    image += coverage[:, None] * (colour[:, :, None, None] - image)


def _column(values: _Floats) -> _Floats:
    return values[:, None, None]
