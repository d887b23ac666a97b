"""Pictures of coloured shapes with questions about them, of our own: any number, no downloads.

In the style of easy-VQA (github.com/vzhou842/easy-VQA, MIT), but harder to prune: two to four small
objects stand on a soft gradient, each question is about one of them, and each covers about one part
in forty of the picture. A picture is a pure function of its index, so train and test sets are index
ranges that do not overlap. Every word of questions and answers is one token of `WORDS`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GENERATOR_VERSION = 1
SIZE = 64
"""Pixels a side."""

COLOURS = {
    "red": (0.85, 0.15, 0.15), "green": (0.15, 0.65, 0.2), "blue": (0.15, 0.3, 0.85),
    "yellow": (0.9, 0.85, 0.15), "purple": (0.55, 0.15, 0.65), "orange": (0.95, 0.55, 0.1),
    "black": (0.08, 0.08, 0.08), "white": (0.97, 0.97, 0.97),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring")
ANSWERS = (*COLOURS, *SHAPES, "yes", "no")
WORDS = (
    "<pad>", "<s>", "</s>", "<image>", "<unk>", "look", "at", "the", "picture", "what", "color",
    "shape", "is", "there", "a", "?", "answer", ":", *ANSWERS,
)  # fmt: skip
"""The whole vocabulary, by token number."""

_CELLS = 4  # objects stand in a grid of so many cells a side, at most one in each
_Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Object:
    """One object: its shape, its colour, and where its middle is, in pixels from the upper left."""

    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Question:
    """A question about a picture, and the one word that answers it."""

    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """A picture [3, 64, 64] (float32 RGB in 0..1, steps of 1/255), its objects and questions."""

    pixels: Tensor
    objects: tuple[Object, ...]
    questions: tuple[Question, ...]


def picture(index: int) -> Picture:
    """The picture of a number >= 0, with six questions: two colours, two shapes, two yes or no.

    No two objects of a picture share shape or colour.

    Raises:
        ValueError: The index is negative.
    """
    if index < 0:
        raise ValueError(f"there is no picture of number {index}; numbers start at 0")
    draw = random.Random(f"question {GENERATOR_VERSION} {index}")
    count = draw.randint(2, 4)
    shapes, colours = draw.sample(SHAPES, count), draw.sample(sorted(COLOURS), count)
    cells = draw.sample(range(_CELLS * _CELLS), count)
    pixels = _background(draw)
    objects = tuple(
        _paint(pixels, draw, shape, colour, cell)
        for shape, colour, cell in zip(shapes, colours, cells, strict=True)
    )
    noise = np.random.default_rng(index).integers(-8, 9, pixels.shape) / 255
    bytes_ = np.clip((pixels + noise) * 255, 0, 255).round().astype(np.uint8)
    planes = torch.from_numpy(bytes_.transpose(2, 0, 1).copy()).to(torch.float32) / 255
    return Picture(planes, objects, _questions(draw, objects))


def token_numbers(text: str) -> list[int]:
    """The tokens of a text of known words, one a word."""
    return [WORDS.index(word) if word in WORDS else WORDS.index("<unk>") for word in text.split()]


def _questions(draw: random.Random, objects: Sequence[Object]) -> tuple[Question, ...]:
    one, other = draw.sample(objects, 2)
    found = []
    for thing in (one, other):
        found.append(Question(f"what color is the {thing.shape} ?", thing.colour))
        found.append(Question(f"what shape is {thing.colour} ?", thing.shape))
    there = draw.random() < 0.5
    shown = [thing.shape for thing in objects]
    named = draw.choice(shown if there else [s for s in SHAPES if s not in shown])
    found.append(Question(f"is there a {named} ?", "yes" if there else "no"))
    right = draw.random() < 0.5
    colour = one.colour if right else draw.choice([c for c in COLOURS if c != one.colour])
    found.append(Question(f"is the {one.shape} {colour} ?", "yes" if right else "no"))
    return tuple(found)


def _background(draw: random.Random) -> _Pixels:
    """A gradient [64, 64, 3] between four corners of middling colours."""
    corners = np.array([[[draw.uniform(0.35, 0.85) for _ in range(3)] for _ in "ab"] for _ in "ab"])
    side = np.linspace(0, 1, SIZE)
    down, right = side[:, None, None], side[None, :, None]
    top, bottom = (row[None, :1] * (1 - right) + row[None, 1:] * right for row in corners)
    blend: _Pixels = top * (1 - down) + bottom * down
    return blend


def _paint(pixels: _Pixels, draw: random.Random, shape: str, colour: str, cell: int) -> Object:
    """Draws an object into a cell of the picture."""
    width, radius = SIZE / _CELLS, draw.uniform(4.0, 6.5)
    slack = width / 2 - radius
    x, y = ((place + 0.5) * width + draw.uniform(-slack, slack) for place in divmod(cell, _CELLS))
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    across, down = np.abs(columns - x) / radius, (rows - y) / radius
    square = across * across + down * down
    near, far = np.minimum(across, np.abs(down)), np.maximum(across, np.abs(down))
    inside = {
        "circle": square < 1,
        "ring": (square < 1) & (square > 0.3),
        "square": far < 0.85,
        "triangle": (down < 0.8) & (down > 2 * across - 1),
        "cross": (near < 0.3) & (far < 1),
    }[shape]
    pixels[inside] = np.array(COLOURS[colour]) * draw.uniform(0.9, 1.0)
    return Object(shape, colour, x, y)
