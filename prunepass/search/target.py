"""What a planner is asked for: a cost that is to be met, and a quality that must hold."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from prunepass.errors import UsageError, nearest

COSTS = ("flops", "latency", "memory", "tokens")
QUALITIES = ("agreement", "kl", "top1")
_UNITS = {"latency": {"ms": 1.0, "s": 1e3}, "memory": {"MB": 1e6, "GB": 1e9}}
_FORM = re.compile(r"\s*([a-z0-9]+)\s*(<=|>=)\s*([0-9.eE+-]+)\s*([A-Za-z%]*)\s*")


@dataclass(frozen=True)
class Target:
    """A cost that is to be met.

    Attributes:
        kind: `flops`, `latency`, `memory` or `tokens`.
        limit: At most this: a share of the dense model's, or milliseconds, or bytes.
        absolute: Whether `limit` is no share.
    """

    kind: str
    limit: float
    absolute: bool = False

    def __str__(self) -> str:
        return f"{self.kind}<={told(self.kind, self.limit, absolute=self.absolute)}"


@dataclass(frozen=True)
class Floor:
    """A quality that must hold.

    Attributes:
        kind: `agreement` or `top1`, at least `limit`; `kl`, at most `limit` nats.
        limit: In (0, 1], of `kl` > 0.
    """

    kind: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        return value <= self.limit if self.kind == "kl" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.kind}{'<=' if self.kind == 'kl' else '>='}{self.limit:g}"


def told(kind: str, value: float, *, absolute: bool) -> str:
    """A cost as a person reads it."""
    if not absolute:
        return f"{value:.3f}"
    return f"{value:.2f}ms" if kind == "latency" else f"{value / 1e6:.4g}MB"


def target(text: str) -> Target:
    """The target that a text such as `flops<=0.6` or `latency<=12ms` asks for.

    Raises:
        UsageError: It is none.
    """
    kind, sign, value, unit = _parsed(text, "--target", COSTS, "flops<=0.6 or latency<=12ms")
    units = _UNITS.get(kind, {})
    if sign != "<=":
        raise UsageError(f"a target is an upper limit: {text!r}", found=sign, fix=f"{kind}<=...")
    if unit == "%":
        value, unit = value / 100, ""
    if unit and unit not in units:
        known = ", ".join(["a share", *units])
        raise UsageError(f"a target of {kind} has no unit {unit!r}", found=text, fix=known)
    if not value > 0 or (not unit and value > 1):
        raise UsageError(
            f"the target {text!r} is out of range",
            found=f"{value:g}",
            fix=f"a share in (0, 1], such as {kind}<=0.6"
            + (f", or {kind}<=12{next(iter(units))}" if units else ""),
        )
    return Target(kind, value * units.get(unit, 1.0), bool(unit))


def floor(text: str) -> Floor:
    """The floor that a text such as `agreement>=0.98` or `kl<=0.05` asks for.

    Raises:
        UsageError: It is none.
    """
    kind, sign, value, unit = _parsed(text, "--floor", QUALITIES, "agreement>=0.98 or kl<=0.05")
    if unit == "%" and kind != "kl":
        value, unit = value / 100, ""
    right = "<=" if kind == "kl" else ">="
    if sign != right or unit:
        raise UsageError(
            f"a floor of {kind} reads {kind}{right}NUMBER", found=text, fix=f"{kind}{right}0.05"
        )
    if not value > 0 or (kind != "kl" and value > 1):
        raise UsageError(
            f"the floor {text!r} is out of range",
            found=f"{value:g}",
            fix="kl<=0.05" if kind == "kl" else f"{kind}>=0.98",
        )
    return Floor(kind, value)


def _parsed(
    text: str, option: str, known: tuple[str, ...], example: str
) -> tuple[str, str, float, str]:
    match = _FORM.fullmatch(text)
    value = math.nan
    if match is not None:
        try:
            value = float(match[3])
        except ValueError:
            match = None
    if match is None or not math.isfinite(value):
        raise UsageError(f"{option} cannot be read", found=repr(text), fix=example)
    if match[1] not in known:
        raise UsageError(
            f"{option} knows no {match[1]!r}", found=text, fix=f"one of {nearest(match[1], known)}"
        )
    return match[1], match[2], value, match[4]
