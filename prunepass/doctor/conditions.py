"""Conditions that many rules share, each a function that makes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from prunepass.doctor.rule import Condition, Place
from prunepass.doctor.view import Value

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_INT32 = 2**31


def always(found: str = "it is there") -> Condition:
    """Any such node."""
    return lambda place: found


def both(first: Condition, second: Condition) -> Condition:
    """Where two conditions hold; tells what the first found."""
    return lambda place: first(place) if second(place) is not None else None


def attribute(name: str, wrong: Callable[[Any], bool], default: Any = None) -> Condition:
    """An attribute that is something it should not be."""

    def look(place: Place) -> str | None:
        value = place.node.attributes.get(name, default)
        return f"{name} = {value!r}" if wrong(value) else None

    return look


def attribute_given(name: str) -> Condition:
    """An attribute that is written down, whatever it is."""
    return lambda place: (
        f"{name} = {place.node.attributes[name]!r}" if name in place.node.attributes else None
    )


def input_given(number: int, called: str) -> Condition:
    """An optional input that is there."""
    return lambda place: f"{called} is an input" if place.node.input(number) is not None else None


def input_computed(number: int, called: str) -> Condition:
    """An input that is not stored in the file."""

    def look(place: Place) -> str | None:
        value = place.node.input(number)
        if value is None or value.initializer:
            return None
        return f"{called} is computed ({value.name})"

    return look


def outputs_above(number: int) -> Condition:
    """More outputs in use than a number."""
    return lambda place: (
        f"{len(place.node.outputs)} outputs" if _used(place.node.outputs) > number else None
    )


def _used(outputs: tuple[Value, ...]) -> int:
    return max((i + 1 for i, value in enumerate(outputs) if value.name), default=0)


def typed(types: Iterable[str], inputs: tuple[int, ...] | None = None) -> Condition:
    """An input of one of some types; `inputs` are the places looked at, None for all."""
    wrong = frozenset(types)

    def look(place: Place) -> str | None:
        for number, value in enumerate(place.node.inputs):
            if value is None or (inputs is not None and number not in inputs):
                continue
            if value.dtype in wrong:
                return f"{value.name or 'an input'} is {value.dtype}"
        return None

    return look


def not_typed(types: Iterable[str]) -> Condition:
    """A value, read or made, of a type that is none of some types."""
    right = frozenset(types)

    def look(place: Place) -> str | None:
        for value in place.node.values:
            if value.dtype is not None and value.dtype not in right:
                return f"{value.name or 'a value'} is {value.dtype}"
        return None

    return look


def ranks_above(limit: int) -> Condition:
    """A value with more axes than a number."""

    def look(place: Place) -> str | None:
        for value in place.node.values:
            if value.shape is not None and len(value.shape) > limit:
                return f"{value.name} has {len(value.shape)} axes"
        return None

    return look


def elements_above(limit: int) -> Condition:
    """A value with more elements than a number, where all its sizes are known."""

    def look(place: Place) -> str | None:
        for value in place.node.values:
            if value.shape is None or None in value.shape:
                continue
            if (count := math.prod(size or 0 for size in value.shape)) > limit:
                return f"{value.name} has {count} elements"
        return None

    return look


def number_above(place_of: int, limit: int, called: str) -> Condition:
    """An input of one known number that is above a limit."""

    def look(place: Place) -> str | None:
        value = place.node.input(place_of)
        if value is None or not value.numbers or value.numbers[0] <= limit:
            return None
        return f"{called} = {value.numbers[0]}"

    return look


def number_not(place_of: int, right: float, called: str) -> Condition:
    """An input whose known numbers are not all what they have to be."""

    def look(place: Place) -> str | None:
        value = place.node.input(place_of)
        if value is None or not value.numbers or all(x == right for x in value.numbers):
            return None
        return f"{called} = {next(x for x in value.numbers if x != right)}"

    return look


def beyond_int32(place: Place) -> str | None:
    """A stored integer that 32 bits do not hold."""
    for value in place.node.inputs:
        if value is None or value.dtype != "int64" or value.extremes is None:
            continue
        least, largest = value.extremes
        if largest >= _INT32 or least < -_INT32:
            return f"{value.name} holds {largest if largest >= _INT32 else least}"
    return None


def dynamic_input(number: int = 0) -> Condition:
    """An input of which a size is free."""

    def look(place: Place) -> str | None:
        value = place.node.input(number)
        return f"{value.name} has free sizes" if value is not None and value.dynamic else None

    return look


def rank_not(number: int, right: int) -> Condition:
    """An input whose number of axes is known and another one."""

    def look(place: Place) -> str | None:
        value = place.node.input(number)
        if value is None or value.shape is None or len(value.shape) == right:
            return None
        return f"{value.name} has {len(value.shape)} axes"

    return look
