"""Tiny vision transformers written for tests, one for each way of handling tokens.

All sizes differ pairwise, so that no axis is taken for another by accident: images
[B, 3, 24, 30] in patches of 6 give a grid of 4 x 5 = 20 image tokens; 28 channels in 2 heads of 14;
44 MLP channels; 11 classes. With prefix tokens there are 21, 22 or 25 tokens. Weights are float64,
drawn from a fixed generator, and large enough for attention that is not flat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE, PATCH, GRID = (3, 24, 30), 6, (4, 5)
PATCHES, CHANNELS, HEADS, WIDTH, MLP, CLASSES, DEPTH = 20, 28, 2, 14, 44, 11, 3


class Attention(nn.Module):
    """Self-attention with everything a model may add to it.

    Args:
        fused: Call scaled_dot_product_attention, otherwise write the softmax out.
        talking: Mix the heads before and after the softmax.
        biased: Add a relative position bias [1, H, T, T] for this many tokens.
        rotary: Rotate the last `rotary` tokens of queries and keys by their positions.
    """

    def __init__(
        self, *, fused: bool = True, talking: bool = False, biased: int = 0, rotary: int = 0
    ) -> None:
        super().__init__()
        self.fused, self.rotary = fused, rotary
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.before = nn.Linear(HEADS, HEADS) if talking else None
        self.after = nn.Linear(HEADS, HEADS) if talking else None
        self.bias = nn.Parameter(torch.empty(1, HEADS, biased, biased)) if biased else None
        if rotary:
            angle = torch.arange(rotary * WIDTH).reshape(rotary, WIDTH) * 0.37
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.rotary:
            q, k = (rotate(y, self.cos, self.sin) for y in (q, k))
        if self.fused:
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            scores = (q * WIDTH**-0.5) @ k.transpose(-2, -1)
            if self.before is not None:
                scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if self.bias is not None:
                scores = scores + self.bias
            weights = scores.softmax(dim=-1)
            if self.after is not None:
                weights = self.after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            out = weights @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, channels))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [B, H, T, D] with all but the prefix tokens rotated by `cos` and `sin` [N, D]."""
    prefix = x.shape[2] - cos.shape[0]
    patches = x[:, :, prefix:]
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([x[:, :, :prefix], turned], dim=2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(CHANNELS, MLP), nn.Linear(MLP, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm block: attention, then MLP."""

    def __init__(self, attention: Callable[[], nn.Module] = Attention) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.attn, self.mlp = attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ParallelBlock(Block):
    """Attention and MLP side by side, added to the stream together."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.attn(self.norm1(x)) + self.mlp(self.norm2(x)))


class SumOfThreeBlock(Block):
    """Attention and MLP side by side, added to the stream one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


class PostNormBlock(Block):
    """Norms after the additions."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Vit(nn.Module):
    """A vision transformer.

    Args:
        prefix: Prefix tokens: class, distillation, registers.
        pool: "token" reads token 0, "pair" averages two heads on tokens 0 and 1, "mean" averages
            the image tokens.
        block: Makes one block.
    """

    def __init__(
        self, *, prefix: int = 1, pool: str = "token", block: Callable[[], nn.Module] = Block
    ) -> None:
        super().__init__()
        self.prefix, self.pool = prefix, pool
        self.patch = nn.Conv2d(IMAGE[0], CHANNELS, PATCH, PATCH)
        self.position = nn.Parameter(torch.empty(1, PATCHES + prefix, CHANNELS))
        self.special = nn.Parameter(torch.empty(1, prefix, CHANNELS)) if prefix else None
        self.blocks = nn.ModuleList(block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(CHANNELS)
        self.head = nn.Linear(CHANNELS, CLASSES)
        self.head2 = nn.Linear(CHANNELS, CLASSES) if pool == "pair" else None

    def embed(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        if self.special is not None:
            x = torch.cat([self.special.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.position

    def classify(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.head2 is not None:
            return (self.head(x[:, 0]) + self.head2(x[:, 1])) / 2
        return self.head(x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class AttentionPool(Vit):
    """Pools with a learned query, then an MLP on what is pooled."""

    def __init__(self) -> None:
        super().__init__(prefix=0)
        self.latent = nn.Parameter(torch.empty(1, 1, CHANNELS))
        self.q, self.kv = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 2 * CHANNELS)
        self.mlp = Mlp()

    def classify(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        batch, tokens, channels = x.shape
        q = self.q(self.latent).expand(batch, -1, -1)
        q = q.reshape(batch, 1, HEADS, WIDTH).transpose(1, 2)
        k, v = self.kv(x).reshape(batch, tokens, 2, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = functional.scaled_dot_product_attention(q, k, v)
        pooled = pooled.transpose(1, 2).reshape(batch, 1, channels)
        pooled = pooled + self.mlp(pooled)
        return self.head(pooled[:, 0])


class ClassAttention(nn.Module):
    """The class token attends to itself and all image tokens (as in CaiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.q, self.kv = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        both = self.norm(torch.cat([token, x], dim=1))
        batch, tokens, channels = both.shape
        q = self.q(both[:, :1]).reshape(batch, 1, HEADS, WIDTH).transpose(1, 2)
        kv = self.kv(both).reshape(batch, tokens, 2, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, *kv.unbind(0))
        return token + out.transpose(1, 2).reshape(batch, 1, channels)


class LateClass(Vit):
    """No class token until two class-attention blocks at the end."""

    def __init__(self) -> None:
        super().__init__(prefix=0)
        self.token = nn.Parameter(torch.empty(1, 1, CHANNELS))
        self.late = nn.ModuleList(ClassAttention() for _ in range(2))

    def classify(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        for block in self.late:
            token = block(token, x)
        return self.head(self.norm(torch.cat([token, x], dim=1))[:, 0])


class WindowBlock(Block):
    """Attention within halves of the grid: tokens are laid out in space."""

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        windows = self.norm1(x).view(batch, 2, GRID[0] // 2, GRID[1], CHANNELS).flatten(2, 3)
        attended = self.attn(windows.flatten(0, 1)).view(batch, PATCHES, CHANNELS)
        x = x + attended
        return x + self.mlp(self.norm2(x))


class MixerBlock(Block):
    """A linear layer across tokens: its weights are tied to token positions."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(PATCHES + 1, PATCHES + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


class ConvolvedBlock(Block):
    """A position convolution over the grid after the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        grid = x.transpose(1, 2).reshape(x.shape[0], CHANNELS, *GRID)
        return x + self.conv(grid).flatten(2).transpose(1, 2)


class Ending(Vit):
    """A transformer whose head is a function of its last tokens."""

    def __init__(self, ending: Callable[[Tensor], Tensor], *, prefix: int = 1) -> None:
        super().__init__(prefix=prefix)
        self.ending = ending

    def classify(self, x: Tensor) -> Tensor:
        return self.ending(self.norm(x))


class Adversary(nn.Module):
    """Sizes equal by accident: tokens = channels = MLP width = classes = 16, 4 heads of 4.

    A rotary table and a bias, made before the blocks, have the same lengths too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 6, 6)
        self.special = nn.Parameter(torch.empty(1, 1, 16))
        self.position = nn.Parameter(torch.empty(1, 16, 16))
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(DEPTH))
        self.proj = nn.ModuleList(nn.Linear(16, 16) for _ in range(DEPTH))
        self.fc = nn.ModuleList(nn.Linear(16, 16) for _ in range(DEPTH))
        self.bias = nn.Parameter(torch.empty(1, 4, 16, 16))
        self.head = nn.Linear(16, 16)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.special.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for qkv, proj, fc in zip(self.qkv, self.proj, self.fc, strict=True):
            heads = qkv(x).reshape(x.shape[0], 16, 3, 4, 4).permute(2, 0, 3, 1, 4)
            out = functional.scaled_dot_product_attention(*heads.unbind(0), attn_mask=self.bias)
            x = x + proj(out.transpose(1, 2).reshape(x.shape[0], 16, 16))
            x = x + fc(x).tanh()
        return self.head(x[:, 0])


def _attending(**options: object) -> Callable[[], nn.Module]:
    return partial(Block, partial(Attention, **options))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "class": Vit,
    "mean": partial(Vit, prefix=0, pool="mean"),
    "distilled": partial(Vit, prefix=2, pool="pair"),
    "registers": partial(Vit, prefix=5, pool="mean"),
    "rotary": partial(Vit, block=_attending(rotary=PATCHES)),
    "biased": partial(Vit, block=_attending(biased=PATCHES + 1)),
    "unfused": partial(Vit, block=_attending(fused=False, biased=PATCHES + 1)),
    "talking": partial(Vit, block=_attending(fused=False, talking=True)),
    "attention_pool": AttentionPool,
    "late_class": LateClass,
    "parallel": partial(Vit, block=ParallelBlock),
    "sum_of_three": partial(Vit, block=SumOfThreeBlock),
    "post_norm": partial(Vit, block=PostNormBlock),
    "adversary": Adversary,
    "windows": partial(Vit, prefix=0, pool="mean", block=WindowBlock),
    "mixer": partial(Vit, block=MixerBlock),
    "convolved": partial(Vit, prefix=0, pool="mean", block=ConvolvedBlock),
    "tokens_out": partial(Ending, lambda x: x),
    "reads_patch": partial(Ending, lambda x: x[:, 5]),
    "fixed_slice": partial(Ending, lambda x: x[:, 3:17].mean(dim=1)),
    "without_last": partial(Ending, lambda x: x[:, :-1].mean(dim=1)),
    "strided": partial(Ending, lambda x: x[:, ::2].mean(dim=1)),
    "full_slice": partial(Ending, lambda x: x[:, 1 : PATCHES + 1].mean(dim=1)),
    "prefix_slice": partial(Ending, lambda x: x[:, :2].flatten(1), prefix=2),
}
REFUSED = (
    "windows", "mixer", "convolved", "tokens_out", "reads_patch", "fixed_slice", "without_last",
    "strided",
)  # fmt: skip


def tiny(name: str, *, seed: int = 0) -> nn.Module:
    """A model of `MODELS` in eval mode and float64, weights from a generator with this seed."""
    model = MODELS[name]().to(torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            spread = 0.6 if parameter.dim() < 2 or "position" in path else 0.3
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * spread)
    return model.requires_grad_(False)


def images(
    batch: int, *, seed: int = 0, name: str = "class", dtype: torch.dtype = torch.float64
) -> Tensor:
    """Random images [batch, 3, 24, 30] (18 x 30 for the adversary), the same for equal seeds."""
    generator = torch.Generator().manual_seed(1000 + seed)
    size = (3, 18, 30) if name == "adversary" else IMAGE
    return torch.randn(batch, *size, generator=generator, dtype=torch.float64).to(dtype)
