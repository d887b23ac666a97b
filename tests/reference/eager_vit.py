"""Eager twins of the tiny models: token reduction called by hand, with no graph in sight.

Everything is written out anew from the models' weights. Attention is a softmax between two matrix
products, positions are looked up by where each token stood at first, and the rules are called as a
reader of a paper would call them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunepass.plans import Step
from prunepass.rules.merge import gather_tokens, merge_tokens
from prunepass.rules.table import select
from tests import tiny_models
from tests.tiny_models import HEADS, WIDTH

Roles = dict[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch: values [B, T, C], where each stood at first [B, T], sizes [B, T]."""

    x: Tensor
    origin: Tensor
    size: Tensor | None = None


class Twin:
    """Runs a tiny model with reductions at some sites.

    Attributes:
        kept: Site -> [B, K], the indices that its selection kept, filled by `run`.
        roles: Site -> what its rule was given, filled by `run`.
    """

    def __init__(self, model: nn.Module, steps: Mapping[str, Step] | None = None) -> None:
        self.model, self.steps = model, dict(steps or {})
        self.prefix: int = model.prefix
        self.kept: dict[str, Tensor] = {}
        self.roles: dict[str, Roles] = {}

    def run(self, images: Tensor) -> Tensor:
        """Logits [B, classes]."""
        x = self.model.embed(images)
        tokens = Tokens(x, torch.arange(x.shape[1]).expand(x.shape[:2]))
        for index, block in enumerate(self.model.blocks):
            tokens = self.block(block, f"block[{index}]", tokens)
        return self.classify(tokens)

    def block(self, block: nn.Module, site: str, tokens: Tokens) -> Tokens:
        x = tokens.x
        if isinstance(block, tiny_models.ParallelBlock):
            out, roles = attend(block.attn, block.norm1(x), tokens)
            x = x + (out + block.mlp(block.norm2(x)))
            return self.reduce(f"{site}.attention", replace(tokens, x=x), roles)
        if isinstance(block, tiny_models.SumOfThreeBlock):
            out, roles = attend(block.attn, block.norm1(x), tokens)
            added, before = block.mlp(block.norm2(x)), tokens.x.shape[1]
            tokens = self.reduce(f"{site}.attention", replace(tokens, x=x + out), roles)
            if tokens.x.shape[1] < before:
                added = gather_tokens(added, self.kept[f"{site}.attention"])
            return self.reduce(
                f"{site}.output",
                replace(tokens, x=tokens.x + added),
                self.remaining(f"{site}.attention", roles),
            )
        if isinstance(block, tiny_models.PostNormBlock):
            out, roles = attend(block.attn, x, tokens)
            tokens = self.reduce(f"{site}.attention", replace(tokens, x=x + out), roles)
            x, roles = block.norm1(tokens.x), self.remaining(f"{site}.attention", roles)
            tokens = self.reduce(f"{site}.output", replace(tokens, x=x + block.mlp(x)), roles)
            return replace(tokens, x=block.norm2(tokens.x))
        out, roles = attend(block.attn, block.norm1(x), tokens)
        tokens = self.reduce(f"{site}.attention", replace(tokens, x=x + out), roles)
        roles = self.remaining(f"{site}.attention", roles)
        x = tokens.x + block.mlp(block.norm2(tokens.x))
        return self.reduce(f"{site}.output", replace(tokens, x=x), roles)

    def remaining(self, site: str, roles: Roles) -> Roles:
        """Queries, keys and values of the tokens that a site kept; attention among them is gone."""
        if site not in self.kept:
            return roles
        index = self.kept[site][:, None, :, None]
        return {
            name: role.gather(2, index.expand(*role.shape[:2], -1, role.shape[3]))
            for name, role in roles.items()
            if name != "attention"
        }

    def reduce(self, site: str, tokens: Tokens, roles: Roles) -> Tokens:
        """The tokens after the step of a site, if there is one."""
        step = self.steps.get(site)
        before = tokens.x.shape[1]
        if step is None or step.count(before, self.prefix) == before:
            return tokens
        size = torch.ones_like(tokens.x[..., 0]) if tokens.size is None else tokens.size
        self.roles[site] = {**roles, "hidden": tokens.x, "size": size}
        selection = select(
            step.rule,
            self.roles[site],
            keep=step.count(before, self.prefix),
            prefix=self.prefix,
            **step.options,
        )
        self.kept[site] = selection.kept
        origin = tokens.origin.gather(1, selection.kept)
        if step.action == "merge":
            x, size = merge_tokens(tokens.x, size, selection)
            return Tokens(x, origin, size)
        kept_size = None if tokens.size is None else tokens.size.gather(1, selection.kept)
        return Tokens(gather_tokens(tokens.x, selection.kept), origin, kept_size)

    def classify(self, tokens: Tokens) -> Tensor:
        model = self.model
        if isinstance(model, tiny_models.LateClass):
            token = model.token.expand(tokens.x.shape[0], -1, -1)
            for late in model.late:
                both = late.norm(torch.cat([token, tokens.x], dim=1))
                k, v = heads(late.kv(both), 2)
                (q,) = heads(late.q(both[:, :1]), 1)
                bias = log_size(tokens)
                if bias is not None:
                    bias = functional.pad(bias, (1, 0))
                token = token + joined(softmax_attention(q, k, v, bias)[0])
            return model.head(model.norm(token)[:, 0])
        x = model.norm(tokens.x)
        if isinstance(model, tiny_models.AttentionPool):
            k, v = heads(model.kv(x), 2)
            (q,) = heads(model.q(model.latent).expand(x.shape[0], -1, -1), 1)
            pooled = joined(softmax_attention(q, k, v, log_size(tokens))[0])
            return model.head((pooled + model.mlp(pooled))[:, 0])
        if model.head2 is not None:
            return (model.head(x[:, 0]) + model.head2(x[:, 1])) / 2
        if model.pool == "token":
            return model.head(x[:, 0])
        patches = x[:, self.prefix :]
        if tokens.size is None:
            return model.head(patches.mean(dim=1))
        weight = tokens.size[:, self.prefix :, None]
        return model.head((patches * weight).sum(dim=1) / weight.sum(dim=1))


def attend(attn: nn.Module, x: Tensor, tokens: Tokens) -> tuple[Tensor, Roles]:
    """The attention's output [B, T, C], and the tensors a rule may ask for."""
    q, k, v = heads(attn.qkv(x), 3)
    if attn.rotary:
        prefix = tokens.x.shape[1] - (tokens.origin >= _prefix(attn)).sum(dim=1)[0].item()
        position = tokens.origin[:, prefix:] - _prefix(attn)
        q, k = (_rotated(y, prefix, attn.cos[position], attn.sin[position]) for y in (q, k))
    bias = log_size(tokens)
    if attn.bias is not None:
        rows, columns = tokens.origin[:, :, None], tokens.origin[:, None, :]
        relative = attn.bias[0][:, rows, columns].transpose(0, 1)
        bias = relative if bias is None else relative + bias
    out, weights = softmax_attention(q, k, v, bias, before=attn.before, after=attn.after)
    return attn.proj(joined(out)), {"attention": weights, "query": q, "key": k, "value": v}


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    before: nn.Module | None = None,
    after: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """(output [B, H, Q, D], probabilities [B, H, Q, T]), heads mixed by `before` and `after`."""
    scores = (q * WIDTH**-0.5) @ k.transpose(-2, -1)
    if before is not None:
        scores = before(scores.movedim(1, -1)).movedim(-1, 1)
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    mixed = weights if after is None else after(weights.movedim(1, -1)).movedim(-1, 1)
    return mixed @ v, weights


def masked_logits(model: nn.Module, images: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """Logits [B, classes] of a plain `Vit` where dropped tokens stay, but nobody attends to them.

    Args:
        model: A `Vit` of plain blocks.
        images: [B, 3, 24, 30].
        kept: Site -> [B, K], indices among the tokens that were alive before it.
    """
    x = model.embed(images)
    alive = torch.arange(x.shape[1]).expand(x.shape[:2])
    for index, block in enumerate(model.blocks):
        bias = torch.full(x.shape[:2], float("-inf"), dtype=x.dtype).scatter(1, alive, 0.0)
        q, k, v = heads(block.attn.qkv(block.norm1(x)), 3)
        out, _ = softmax_attention(q, k, v, bias[:, None, None])
        x = x + block.attn.proj(joined(out))
        if f"block[{index}].attention" in kept:
            alive = alive.gather(1, kept[f"block[{index}].attention"])
        x = x + block.mlp(block.norm2(x))
        if f"block[{index}].output" in kept:
            alive = alive.gather(1, kept[f"block[{index}].output"])
    return model.classify(gather_tokens(x, alive))


def heads(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """[B, T, parts * C] as `parts` tensors [B, H, T, D]."""
    batch, tokens, _ = x.shape
    split = x.reshape(batch, tokens, parts, HEADS, WIDTH)
    return tuple(part.transpose(1, 2) for part in split.unbind(2))


def joined(x: Tensor) -> Tensor:
    """[B, H, T, D] as [B, T, H * D]."""
    return x.transpose(1, 2).flatten(2)


def log_size(tokens: Tokens) -> Tensor | None:
    """log(size) [B, 1, 1, T] to be added to scores, None while every token counts one."""
    return None if tokens.size is None else tokens.size.log()[:, None, None, :]


def _prefix(attn: nn.Module) -> int:
    return tiny_models.PATCHES + 1 - int(attn.rotary)


def _rotated(x: Tensor, prefix: int, cos: Tensor, sin: Tensor) -> Tensor:
    patches = x[:, :, prefix:]
    left, right = patches.chunk(2, dim=-1)
    turned = patches * cos[:, None] + torch.cat([-right, left], dim=-1) * sin[:, None]
    return torch.cat([x[:, :, :prefix], turned], dim=2)
