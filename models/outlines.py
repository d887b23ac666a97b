"""Outlines and textures of the objects in our own pictures, as functions of the plane."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def outline(shape: str, u: Floats, v: Floats) -> Floats:
    """Distance [B, S, S] to the shape's edge, negative inside; the shape fills a unit circle."""
    f = np.float32
    edge: Floats
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


def wave(turns: Floats, sharp: Floats) -> Floats:
    """A square wave of -1 and 1 with period 1 in `turns`; `sharp` is the period in pixels."""
    ramp = np.abs(turns - np.floor(turns) - np.float32(0.5)) - np.float32(0.25)
    waves: Floats = np.clip(ramp * sharp * 2, -1, 1)
    return waves


def covered(distance: Floats, pixels_per_unit: Floats | np.float32) -> Floats:
    """The share of each pixel inside an edge at `distance`, 0..1."""
    share: Floats = np.clip(np.float32(0.5) - distance * pixels_per_unit, 0, 1)
    return share
