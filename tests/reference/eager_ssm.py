"""State-space models run by hand, token by token, with tokens dropped: what a program must equal.

Written from the definitions, one picture at a time. A scan walks the whole sequence; where a token
is missing its states decay as the alignment says and nothing enters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Score = Callable[[Tensor, Tensor], Tensor]


def walk(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor,
    places: Sequence[int], length: int, missing: Callable[[int], Tensor | None],
) -> Tensor:  # fmt: skip
    """[K, C]: outputs of the tokens at some places of a sequence.

    Args:
        x: [K, C], as are all of the following, in the order of the places.
        places: Where the tokens stand, ascending.
        length: Of the whole sequence.
        missing: A place without token -> its step [C], or None for no step at all.
    """
    state = x.new_zeros(A.shape)
    at = {place: k for k, place in enumerate(places)}
    found = []
    for place in range(length):
        if place in at:
            k = at[place]
            state = torch.exp(delta[k][:, None] * A) * state + (delta[k] * x[k])[:, None] * B[k]
            found.append(state @ C[k] + D * x[k])
        else:
            step = missing(place)
            if step is not None:
                state = torch.exp(step[:, None] * A) * state
    return torch.stack(found)


class Twin:
    """A Vim or a PlainMamba, run with tokens dropped behind some layers.

    Args:
        model: The model, in float64.
        keep: Layer -> how many tokens stay behind it, the class token included.
        score: (hidden [K, C], scan output [K, C']) -> [K].
        alignment: `decay0`, `decay` or `hold`.
        convolution: `compact` or `scatter`.
    """

    def __init__(
        self, model: Any, keep: dict[int, int], score: Score, alignment: str = "decay0",
        convolution: str = "compact",
    ) -> None:  # fmt: skip
        self.model, self.keep, self.score = model, keep, score
        self.alignment, self.convolution = alignment, convolution
        self.vim = hasattr(model, "middle")
        self.kept: list[list[int]] = []
        self.states: list[list[Tensor]] = []  # a picture, a layer: [T, C], zeros for what is gone

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([self._one(image[None]) for image in images])

    def _one(self, image: Tensor) -> Tensor:
        model, back = self.model, getattr(self.model, "backbone", self.model)
        patches = back.patch_embed(image)[0]
        if self.vim:
            patches = torch.cat(
                [patches[: model.middle], model.cls_token[0], patches[model.middle :]]
            )
        x = patches + back.pos_embed[0]
        self.length, self.width = len(x), {}
        self.states.append([])
        numbers = list(range(len(x)))
        for i, layer in enumerate(back.layers):
            mixed, y = (self._vim if self.vim else self._plain)(layer, x, numbers)
            x = x + mixed
            if hasattr(layer, "dw"):
                side = layer.side
                x = layer.dw(x.t().reshape(1, -1, side, side))[0].flatten(1).t()
            whole = x.new_zeros(self.length, x.shape[1])
            whole[numbers] = x
            self.states[-1].append(whole)
            if i in self.keep:
                score = self.score(x, y)
                if self.vim:
                    score[numbers.index(model.middle)] = torch.inf
                chosen = sorted(score.topk(self.keep[i]).indices.tolist())
                for k, number in enumerate(numbers):
                    if k not in chosen:
                        self.width[number] = self.steps[k]
                x, numbers = x[chosen], [numbers[k] for k in chosen]
                self.kept.append(numbers)
        if self.vim:
            return model.head(model.norm_f(x)[numbers.index(model.middle)])
        return model.head["fc"](back.ln1(x).mean(0))

    def _missing(self, order: Sequence[int], bias: Tensor) -> Callable[[int], Tensor | None]:
        step = functional.softplus(bias)

        def missing(place: int) -> Tensor | None:
            if self.alignment == "hold":
                return None
            return step * self.width[order[place]] if self.alignment == "decay" else step

        return missing

    def _vim(self, layer: Any, x: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
        m = layer.mixer
        u, z = m.in_proj(layer.norm(x)).chunk(2, dim=1)
        forward, widths = list(range(self.length)), []
        ways = (
            (forward, m.conv1d, m.x_proj, m.dt_proj, m.A_log, m.D),
            (forward[::-1], m.conv1d_b, m.x_proj_b, m.dt_proj_b, m.A_b_log, m.D_b),
        )
        total = torch.zeros_like(u)
        for order, conv, x_proj, dt_proj, log_rates, skip in ways:
            ranks = {number: place for place, number in enumerate(order)}
            line = sorted(range(len(numbers)), key=lambda k: ranks[numbers[k]])
            places = [ranks[numbers[k]] for k in line]
            v = functional.silu(self._along(u[line], conv, places))
            step, enter, read = x_proj(v).split(m.sizes, dim=1)
            delta = functional.softplus(dt_proj(step))
            y = walk(
                v, delta, -log_rates.exp(), enter, read, skip, places, self.length,
                self._missing(order, dt_proj.bias),
            )  # fmt: skip
            total[line] += y / 2
            width = torch.zeros(len(numbers), dtype=x.dtype)
            width[line] = delta.mean(1) / functional.softplus(dt_proj.bias).mean()
            widths.append(width)
        self.steps = torch.stack(widths).mean(0)
        y = total * functional.silu(z)
        return m.out_proj(y), y

    def _along(self, u: Tensor, conv: Any, places: list[int]) -> Tensor:
        """A causal convolution, among neighbours that are left or over the gaps."""
        width = conv.weight.shape[2]
        found = []
        for k, place in enumerate(places):
            value = conv.bias.clone()
            for back in range(width):
                if self.convolution == "compact":
                    other = k - back
                else:
                    other = places.index(place - back) if place - back in places else -1
                if other >= 0:
                    value = value + conv.weight[:, 0, width - 1 - back] * u[other]
            found.append(value)
        return torch.stack(found)

    def _plain(self, layer: Any, x: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
        m, side = layer.mamba, layer.side
        u, z = m.in_proj(layer.norm(x)).chunk(2, dim=1)
        grid = u.new_zeros(self.length, u.shape[1])
        grid[numbers] = u
        grid = m.conv2d(grid.t().reshape(1, -1, side, side))[0].flatten(1).t()
        u = functional.silu(grid[numbers])
        bias = m.dt_proj.bias * (2 if m.as_published else 1)
        step, enter, read = m.x_proj(u).split(m.sizes, dim=1)
        delta = functional.softplus(functional.linear(step, m.dt_proj.weight, bias))
        self.steps = delta.mean(1) / functional.softplus(bias).mean()
        total = torch.zeros_like(u)
        for order, directions in m.ways:
            ranks = {number: place for place, number in enumerate(order)}
            line = sorted(range(len(numbers)), key=lambda k: ranks[numbers[k]])
            places = [ranks[numbers[k]] for k in line]
            along = m.direction_Bs[[directions[place] for place in places]]
            # As published, only the input is put into the order of the way.
            own = range(len(numbers)) if m.as_published else line
            y = walk(
                u[line], delta[list(own)], -m.A_log.exp(), enter[list(own)] + along,
                read[list(own)], m.D, places, self.length, self._missing(order, bias),
            )  # fmt: skip
            total[line] += y
        y = total * functional.silu(z)
        return m.out_proj(y), y
