"""A plain vision transformer of any size: the geometry of real models without their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlainVit(nn.Module):
    """A pre-norm ViT with a class token that the head reads, weights from a fixed generator.

    Args:
        depth: Blocks.
        grid: Patches a side; there are grid * grid + 1 tokens.
        patch: Pixels a side of a patch.
        channels: Of the stream; the MLP has four times as many.
        heads: Of the attention.
        classes: Of the head.
    """

    def __init__(
        self, *, depth: int, grid: int, patch: int, channels: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.size, self.heads = grid * patch, heads
        self.patch = nn.Conv2d(3, channels, patch, patch)
        self.special = nn.Parameter(torch.empty(1, 1, channels))
        self.position = nn.Parameter(torch.empty(1, grid * grid + 1, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2 * depth + 1))
        self.qkv = nn.ModuleList(nn.Linear(channels, 3 * channels) for _ in range(depth))
        self.proj = nn.ModuleList(nn.Linear(channels, channels) for _ in range(depth))
        self.fc1 = nn.ModuleList(nn.Linear(channels, 4 * channels) for _ in range(depth))
        self.fc2 = nn.ModuleList(nn.Linear(4 * channels, channels) for _ in range(depth))
        self.head = nn.Linear(channels, classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.2, 0.2, generator=generator)
        self.eval().requires_grad_(False)

    def images(self, batch: int) -> Tensor:
        """Random images [batch, 3, S, S], float32."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, 3, self.size, self.size, generator=generator)

    def tokens(self, images: Tensor) -> Tensor:
        """What the blocks make of every token [B, T, C]."""
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.special.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for i, qkv in enumerate(self.qkv):
            batch, tokens, channels = x.shape
            heads = qkv(self.norms[2 * i](x)).reshape(batch, tokens, 3, self.heads, -1)
            out = functional.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4).unbind(0))
            x = x + self.proj[i](out.transpose(1, 2).reshape(batch, tokens, channels))
            x = x + self.fc2[i](functional.gelu(self.fc1[i](self.norms[2 * i + 1](x))))
        normed: Tensor = self.norms[-1](x)
        return normed

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tokens(images)[:, 0])
