"""Protocol buffers as text, as far as configurations need it.

Source: Protocol Buffers, "Text Format Language Specification".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True)
class Word:
    """A value of an enumeration, which stands without quotes."""

    name: str


Scalar = str | int | bool | Word
Message = Mapping[str, Any]
"""Field -> scalar, message or, of a repeated field, a sequence of them."""


def as_text(message: Message, *, indent: int = 0) -> str:
    """A message, one field a line; repeated fields as lists."""
    before = "  " * indent
    lines = []
    for name, value in message.items():
        if isinstance(value, Mapping):
            lines.append(f"{before}{name} {_block(value, indent)}\n")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines.append(f"{before}{name}{_list(value, indent)}\n")
        else:
            lines.append(f"{before}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _list(values: Sequence[Scalar | Message], indent: int) -> str:
    inner, end = "  " * (indent + 1), "  " * indent
    blocks = [_block(v, indent + 1) for v in values if isinstance(v, Mapping)]
    if blocks:
        return " [\n" + ",\n".join(inner + block for block in blocks) + f"\n{end}]"
    scalars = (_scalar(v) for v in values if not isinstance(v, Mapping))
    return f": [ {', '.join(scalars)} ]"


def _block(message: Message, indent: int) -> str:
    return "{\n" + as_text(message, indent=indent + 1) + "  " * indent + "}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(_ESCAPES.get(c, c) for c in value) + '"'
