"""ToMe in eager PyTorch, as a reader of the paper writes it: what engines are held against."""

from __future__ import annotations

from typing import Any

import torch


class PlainTome(torch.nn.Module):
    """ToMe in eager PyTorch: r tokens merge in every block, between its attention and its MLP.

    Args:
        model: A vision transformer of timm with a class token.
        macs: What it should cost an image; r is the number that comes nearest.

    Source: Token Merging (ICLR 2023, arXiv 2210.09461), sections 3.1 and 3.2.
    """

    def __init__(self, model: Any, *, macs: int) -> None:
        super().__init__()
        self.model = model
        by_count = {r: self._count(r) for r in range(1, 40)}
        self.merged = min(by_count, key=lambda r: abs(by_count[r] - macs))
        self.macs = by_count[self.merged]

    def _count(self, merged: int) -> int:
        width, tokens = self.model.embed_dim, self.model.patch_embed.num_patches + 1
        pixels = self.model.patch_embed.patch_size[0] * self.model.patch_embed.patch_size[1]
        total = 3 * pixels * width * (tokens - 1) + width * self.model.num_classes
        for _ in self.model.blocks:
            total += 4 * tokens * width**2 + 2 * tokens**2 * width
            tokens -= min(merged, (tokens - 1) // 2)
            total += 8 * tokens * width**2
        return total

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        model = self.model
        x = model._pos_embed(model.patch_embed(images))
        size = torch.ones_like(x[..., :1])
        for block in model.blocks:
            attended, keys = self._attend(block.attn, block.norm1(x), size)
            x, size = self._merge(x + attended, size, keys)
            x = x + block.mlp(block.norm2(x))
        return model.head(model.norm(x)[:, 0])

    @staticmethod
    def _attend(attention: Any, x: torch.Tensor, size: torch.Tensor) -> Any:
        batch, tokens, width = x.shape
        q, k, v = (
            attention.qkv(x)
            .reshape(batch, tokens, 3, attention.num_heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        scores = q * attention.scale @ k.transpose(-2, -1) + size.log()[:, None, None, :, 0]
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        return attention.proj(out), k.mean(dim=1)

    def _merge(self, x: torch.Tensor, size: torch.Tensor, keys: torch.Tensor) -> Any:
        keys = keys / keys.norm(dim=-1, keepdim=True)
        alike = keys[:, ::2] @ keys[:, 1::2].transpose(-1, -2)
        alike[:, 0] = float("-inf")
        best, partner = alike.max(dim=-1, keepdim=True)
        order = best.argsort(dim=1, descending=True)
        merged = min(self.merged, (x.shape[1] - 1) // 2)
        gone, stays = order[:, :merged], order[:, merged:].sort(dim=1).values
        target = partner.gather(1, gone)

        def reduced(values: torch.Tensor) -> torch.Tensor:
            even, odd = values[:, ::2], values[:, 1::2]
            width = values.shape[-1]
            joining = even.gather(1, gone.expand(-1, -1, width))
            odd = odd.scatter_add(1, target.expand(-1, -1, width), joining)
            return torch.cat([even.gather(1, stays.expand(-1, -1, width)), odd], dim=1)

        total = reduced(size)
        return reduced(x * size) / total, total
