"""PlainMamba: four snake-like scans of a grid of tokens, no class token.

Parameters are named as the authors' checkpoints name them
(`backbone.layers.3.mamba.direction_Bs`), so those load strictly. Written from the paper (Yang et
al., BMVC 2024, arXiv 2403.17695). The published weights were trained by code that departs from it
twice: the bias of the steps is added twice, and of what a scan takes only its input is put into
the order of the scan, not steps, B and C. `as_published` computes that; the small model that is
trained here does what the paper says.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunepass.ops.selective_scan import selective_scan
from prunepass.ops.token_places import grid_convolution, reorder_tokens

from .vim import Scan, rates, start_steps

START, RIGHT, LEFT, UP, DOWN = range(5)


class PlainMamba(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    Args:
        image_size: H and W.
        patch: Pixels a side of a patch, even.
        channels: Of a token.
        depth: Layers.
        stem_convolutions: Of 3 x 3 behind the first one.
        grid_layers: Layers that end with a convolution over the grid.
        states: A channel of a scan.
        classes: Of the logits.
        as_published: Whether to compute what the published weights were trained with.
        scan: What computes the recurrence; training may bring a faster one.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch: int = 16,
        channels: int = 192,
        depth: int = 24,
        stem_convolutions: int = 1,
        grid_layers: tuple[int, ...] = (0,),
        states: int = 16,
        classes: int = 1000,
        as_published: bool = True,
        scan: Scan = selective_scan,
    ) -> None:
        super().__init__()
        side = image_size // patch
        layers = [
            _Layer(channels, states, side, depth, i in grid_layers, as_published, scan)
            for i in range(depth)
        ]
        self.backbone = _Backbone(image_size, patch, channels, stem_convolutions, layers)
        self.head = nn.ModuleDict({"fc": nn.Linear(channels, classes)})
        nn.init.trunc_normal_(self.head["fc"].weight, std=0.02)
        nn.init.zeros_(self.head["fc"].bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head["fc"](self.backbone(images).mean(1))
        return logits


class _Backbone(nn.Module):
    def __init__(
        self, image_size: int, patch: int, channels: int, convolutions: int, layers: list[nn.Module]
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_embed = _Patches(patch, channels, convolutions)
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2, channels))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(layers)
        self.ln1 = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"this model takes pictures of {self.image_size} x {self.image_size} pixels; "
                f"found {images.shape[2]} x {images.shape[3]}, for which it has no positions"
            )
        x = self.patch_embed(images) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.ln1(x)
        return found


class _Patches(nn.Module):
    def __init__(self, patch: int, channels: int, convolutions: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        more = [
            part
            for _ in range(convolutions)
            for part in (
                nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
            )
        ]  # fmt: skip
        self.convs = nn.Sequential(*more)
        self.projection = nn.Conv2d(64, channels, patch // 2, patch // 2)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.projection(self.convs(self.stem(images)))
        return found.flatten(2).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(
        self, channels: int, states: int, side: int, depth: int, on_grid: bool, as_published: bool,
        scan: Scan,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(channels)
        self.mamba = _Mixer(channels, states, side, as_published, scan)
        if on_grid:
            self.dw = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=channels),
                nn.BatchNorm2d(channels),
                nn.GELU(),
            )
        with torch.no_grad():
            self.mamba.out_proj.weight /= math.sqrt(depth)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mamba(self.norm(x))
        if hasattr(self, "dw"):
            x = self.dw(x.transpose(1, 2).unflatten(2, (self.side, -1))).flatten(2).transpose(1, 2)
        return x


class _Mixer(nn.Module):
    """Tokens [B, T, C] mixed along four ways through their grid, which share their weights."""

    def __init__(
        self, channels: int, states: int, side: int, as_published: bool, scan: Scan
    ) -> None:
        super().__init__()
        inner, rank = 2 * channels, math.ceil(channels / 16)
        self.side, self.as_published, self.scan = side, as_published, scan
        self.sizes = (rank, states, states)
        self.ways = ways(side, side)
        for i, (order, directions) in enumerate(self.ways):
            came = torch.tensor([directions[place] for place in inverse(order)])
            self.register_buffer(f"came_{i}", came, persistent=False)
        self.in_proj = nn.Linear(channels, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, 7, padding=3, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(rates(inner, states))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels)
        self.direction_Bs = nn.Parameter(torch.zeros(5, states))
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)
        start_steps(self.dt_proj)
        if as_published:  # it comes in twice
            self.dt_proj.bias.data /= 2

    def forward(self, x: Tensor) -> Tensor:
        mixed, gate = self.in_proj(x).chunk(2, dim=2)
        mixed = functional.silu(
            grid_convolution(mixed, self.conv2d.weight, self.conv2d.bias, self.side)
        )
        step, enter, read = self.x_proj(mixed).split(self.sizes, dim=2)
        bias = self.dt_proj.bias * 2 if self.as_published else self.dt_proj.bias
        delta = functional.softplus(functional.linear(step, self.dt_proj.weight, bias))
        found = [
            self._along(mixed, delta, enter, read, order, self.get_buffer(f"came_{i}"))
            for i, (order, _) in enumerate(self.ways)
        ]
        total = found[0] + found[1] + found[2] + found[3]
        out: Tensor = self.out_proj(total * functional.silu(gate))
        return out

    def _along(
        self, x: Tensor, delta: Tensor, enter: Tensor, read: Tensor, order: list[int],
        came: Tensor,
    ) -> Tensor:  # fmt: skip
        back = inverse(order)
        # In the order of the grid, then in that of the way: a token's own direction goes with it.
        direction = reorder_tokens(self.direction_Bs[came][None], order)
        x = reorder_tokens(x, order)
        if not self.as_published:
            delta, enter, read = (reorder_tokens(v, order) for v in (delta, enter, read))
        rate = -torch.exp(self.A_log)
        y = self.scan(x, delta, delta, rate, enter + direction, read, self.D)
        return reorder_tokens(y, back)


def ways(height: int, width: int) -> list[tuple[list[int], list[int]]]:
    """The four ways through a grid: the order of its tokens, and how each is reached.

    Along the rows from the top and from the bottom, along the columns from the left and from the
    right, each line the other way than the one before; the second and fourth end where the first
    and third begin.
    """
    rows = [[r * width + c for c in range(width)] for r in range(height)]
    columns = [[r * width + c for r in range(height)] for c in range(width)]
    found = []
    for lines in (rows, columns):
        snake = [t for i, line in enumerate(lines) for t in (line[::-1] if i % 2 else line)]
        found += [snake, snake[::-1]]
    return [(order, _directions(order, width)) for order in found]


def _directions(order: list[int], width: int) -> list[int]:
    steps = {1: RIGHT, -1: LEFT, width: DOWN, -width: UP}
    return [START, *(steps[after - before] for before, after in pairwise(order))]


def inverse(order: list[int]) -> list[int]:
    """Where each token stands in an order."""
    found = [0] * len(order)
    for place, token in enumerate(order):
        found[token] = place
    return found


def plain_mamba_l1(**more: Any) -> PlainMamba:
    """7 M parameters, 196 tokens of 192 channels, 24 layers."""
    return PlainMamba(channels=192, **more)


def plain_mamba_l2(**more: Any) -> PlainMamba:
    """25 M parameters, 196 tokens of 384 channels, 24 layers."""
    return PlainMamba(channels=384, stem_convolutions=2, grid_layers=(), **more)


def plain_mamba_l3(**more: Any) -> PlainMamba:
    """50 M parameters, 196 tokens of 448 channels, 36 layers."""
    return PlainMamba(channels=448, depth=36, stem_convolutions=2, grid_layers=(), **more)
