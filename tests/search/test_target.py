"""Targets and floors as texts."""

from __future__ import annotations

import pytest

from prunepass.errors import UsageError
from prunepass.search.target import Floor, Target, floor, target


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flops<=0.6", Target("flops", 0.6)),
        ("latency<=12ms", Target("latency", 12.0, True)),
        (" latency <= 0.5s ", Target("latency", 500.0, True)),
        ("latency<=0.7", Target("latency", 0.7)),
        ("memory<=20MB", Target("memory", 20e6, True)),
        ("tokens<=50%", Target("tokens", 0.5)),
    ],
)
def test_targets(text: str, told: Target) -> None:
    assert target(text) == told


def test_floors() -> None:
    assert floor("agreement>=0.98") == Floor("agreement", 0.98)
    assert floor("kl<=0.05").holds(0.05)
    assert not floor("kl<=0.05").holds(0.0501)
    assert floor("top1>=80%").holds(0.8)
    assert str(floor("kl<=0.05")) == "kl<=0.05"
    assert str(target("latency<=12ms")) == "latency<=12.00ms"


@pytest.mark.parametrize(
    "text",
    ["flops", "flops=0.6", "flops>=0.6", "flops<=1.5", "flops<=0", "flops<=12ms", "latency<=12",
     "latency<=12parsecs", "speed<=0.5", "flops<=nan", "flops<=1e", ""],
)  # fmt: skip
def test_nonsense_is_no_target(text: str) -> None:
    with pytest.raises(UsageError) as error:
        target(text)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "text",
    ["kl>=0.1", "agreement<=0.9", "agreement>=1.5", "kl<=0", "accuracy>=0.9", "kl<=5ms", "0.98"],
)
def test_nonsense_is_no_floor(text: str) -> None:
    with pytest.raises(UsageError) as error:
        floor(text)
    assert len(str(error.value).splitlines()) == 3
