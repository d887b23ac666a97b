"""Vision Mamba (Vim): a bidirectional state-space model with the class token in the middle.

Parameters are named as the authors' checkpoints name them (`layers.3.mixer.A_b_log`), so those load
strictly. Written from the paper (Zhu et al., ICML 2024, arXiv 2401.09417), with what it leaves
open taken from the published configuration: RMS norm, both directions added and halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunepass.ops.selective_scan import selective_scan
from prunepass.ops.token_places import line_convolution, reorder_tokens

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Vim(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes].

    Args:
        image_size: H and W.
        patch: Pixels a side of a patch.
        stride: Pixels between two patches, None for `patch`.
        channels: Of a token.
        depth: Layers.
        states: A channel of the scan.
        classes: Of the logits.
        scan: What computes the recurrence; training may bring a faster one.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch: int = 16,
        stride: int | None = None,
        channels: int = 192,
        depth: int = 24,
        states: int = 16,
        classes: int = 1000,
        scan: Scan = selective_scan,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_embed = _Patches(patch, stride or patch, channels)
        tokens = ((image_size - patch) // (stride or patch) + 1) ** 2
        self.middle = tokens // 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, channels))
        self.layers = nn.ModuleList(_Layer(channels, states, depth, scan) for _ in range(depth))
        self.norm_f = nn.RMSNorm(channels, eps=1e-5)
        self.head = nn.Linear(channels, classes)
        for weight in (self.cls_token, self.pos_embed, self.head.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"this model takes pictures of {self.image_size} x {self.image_size} pixels; "
                f"found {images.shape[2]} x {images.shape[3]}, for which it has no positions"
            )
        patches = self.patch_embed(images)
        own = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([patches[:, : self.middle], own, patches[:, self.middle :]], dim=1)
        x = x + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm_f(x)[:, self.middle])
        return logits


class _Patches(nn.Module):
    def __init__(self, patch: int, stride: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, stride)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.proj(images)
        return found.flatten(2).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(self, channels: int, states: int, depth: int, scan: Scan) -> None:
        super().__init__()
        self.mixer = _Mixer(channels, states, scan)
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        with torch.no_grad():
            self.mixer.out_proj.weight /= math.sqrt(depth)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mixer(self.norm(x))
        return x + mixed


class _Mixer(nn.Module):
    """Tokens [B, T, C] mixed by a scan from the first to the last and one the other way."""

    def __init__(self, channels: int, states: int, scan: Scan) -> None:
        super().__init__()
        inner, rank = 2 * channels, math.ceil(channels / 16)
        self.scan, self.sizes = scan, (rank, states, states)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(rates(inner, states))
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d_b = nn.Conv1d(inner, inner, 4, groups=inner)
        self.x_proj_b = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj_b = nn.Linear(rank, inner)
        self.A_b_log = nn.Parameter(rates(inner, states))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        for steps in (self.dt_proj, self.dt_proj_b):
            start_steps(steps)

    def forward(self, x: Tensor) -> Tensor:
        mixed, gate = self.in_proj(x).chunk(2, dim=2)
        back = list(range(x.shape[1]))[::-1]
        there = self._one_way(
            mixed, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D
        )  # fmt: skip
        again = self._one_way(
            reorder_tokens(mixed, back), self.conv1d_b, self.x_proj_b, self.dt_proj_b,
            self.A_b_log, self.D_b,
        )  # fmt: skip
        both = (there + reorder_tokens(again, back)) / 2
        found: Tensor = self.out_proj(both * functional.silu(gate))
        return found

    def _one_way(
        self, x: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear,
        log_rates: Tensor, skip: Tensor,
    ) -> Tensor:  # fmt: skip
        x = functional.silu(line_convolution(x, conv.weight, conv.bias))
        step, enter, read = x_proj(x).split(self.sizes, dim=2)
        delta = functional.softplus(dt_proj(step))
        return self.scan(x, delta, delta, -torch.exp(log_rates), enter, read, skip)


def rates(channels: int, states: int) -> Tensor:
    """Logarithms of the rates 1, 2, .. at which the states [channels, states] begin to decay."""
    return torch.arange(1.0, states + 1).log().repeat(channels, 1)


@torch.no_grad()
def start_steps(projection: nn.Linear) -> None:
    """Steps between 0.001 and 0.1 to begin with, spread evenly on a logarithmic scale."""
    spread = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -spread, spread)
    low, high = math.log(0.001), math.log(0.1)
    step = torch.exp(torch.rand(projection.out_features) * (high - low) + low).clamp(min=1e-4)
    projection.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step


def vim_tiny() -> Vim:
    """7 M parameters, 197 tokens of 192 channels, 24 layers."""
    return Vim(channels=192)


def vim_small() -> Vim:
    """26 M parameters, 197 tokens of 384 channels, 24 layers."""
    return Vim(channels=384)


def vim_base() -> Vim:
    """98 M parameters, 197 tokens of 768 channels, 24 layers."""
    return Vim(channels=768)
