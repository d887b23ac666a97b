"""Plans: what will be done to a program, as plain data that can be read, compared and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunepass.errors import PlanError, nearest

SCHEMA = 1
KINDS = (
    "drop_layers", "reduce_tokens", "prune_image_tokens", "select_image_features", "rotate_inputs",
    "sparsify_inputs",
)  # fmt: skip
RESIDUAL = "residual"
"""The rule of a step that drops a layer: its residual takes its place."""
ACTIONS = ("drop", "merge")
Action = Literal["drop", "merge"]
Plain = None | bool | int | float | str | list[Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to do at one site.

    Attributes:
        kind: `reduce_tokens`, or `prune_image_tokens` inside a language model and
            `select_image_features` in front of it; `drop_layers`, which has neither rule nor keep;
            `sparsify_inputs` of a linear layer, `rotate_inputs` in front of it.
        site: Label of the site, e.g. `block[3].attention`; `block[3]` for a whole layer.
        rule: Name of the scoring rule (`prunepass methods` lists them).
        keep: Tokens that stay: a count (int, prefix tokens included) or a fraction of the
            tokens that may be removed (float in (0, 1]). Of image tokens: a count an image, or
            a fraction of those that the prompt came with, rounded down. Of a linear layer: its
            inputs that are read, likewise.
        action: `drop` deletes the other tokens, `merge` averages each into its target.
        options: Options of the rule, plain values.
    """

    kind: str
    site: str
    rule: str = RESIDUAL
    keep: int | float = 1.0
    action: Action = "drop"
    options: Mapping[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS, self.site)
        _one_of("action", self.action, ACTIONS, self.site)
        check_keep(self.keep, where=f"the step at {self.site}")
        for name, text in (("site", self.site), ("rule", self.rule)):
            if not isinstance(text, str) or not text:
                raise PlanError(f"a step needs a {name}", found=repr(text), fix="name one")
        if not isinstance(self.options, Mapping):
            raise PlanError(
                f"options of the step at {self.site} must be a mapping",
                found=repr(self.options),
                fix="options={'heads': 'mean'}",
            )
        for name, value in self.options.items():
            if not isinstance(name, str) or not _is_plain(value):
                raise PlanError(
                    f"option {name!r} of the step at {self.site} is not a plain value",
                    found=f"{value!r} ({type(value).__name__})",
                    fix="use a finite number, a string, true, false, null or a list of these",
                )

    def count(self, tokens: int, prefix: int) -> int:
        """Tokens that stay out of `tokens`, of which `prefix` are prefix tokens."""
        if isinstance(self.keep, float):
            return prefix + max(1, math.ceil(self.keep * (tokens - prefix) - 1e-9))
        return self.keep


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done to one program.

    Attributes:
        method: Name of the method that made the plan.
        steps: The steps, in the order their sites run.
        fingerprint: `Sites.fingerprint` of the program it was made for.
        notes: What the planner wants to be known, e.g. the ratio it predicts.
        schema: Version of this format.
    """

    method: str
    steps: tuple[Step, ...]
    fingerprint: str
    notes: Mapping[str, Plain] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The plan as JSON text, keys in a fixed order."""
        return json.dumps(
            {
                "schema": self.schema,
                "method": self.method,
                "fingerprint": self.fingerprint,
                "notes": dict(self.notes),
                "steps": [
                    {
                        "kind": s.kind,
                        "site": s.site,
                        "rule": s.rule,
                        "keep": s.keep,
                        "action": s.action,
                        "options": dict(s.options),
                    }
                    for s in self.steps
                ],
            },
            indent=2,
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that JSON text describes; anything unexpected is refused.

        Raises:
            PlanError: The text is no JSON, of another schema, lacks a key or has one too many.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PlanError(
                "a plan is not valid JSON",
                found=str(error),
                fix="make the plan again with `prunepass plan`",
            ) from error
        _keys(data, {"schema", "method", "fingerprint", "notes", "steps"}, "a plan")
        if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
            raise PlanError(
                "a plan has another schema version",
                found=f"schema {data['schema']!r}, this version reads {SCHEMA}",
                fix="make the plan again with `prunepass plan`",
            )
        for key, kind in (("method", str), ("fingerprint", str), ("notes", dict), ("steps", list)):
            if not isinstance(data[key], kind):
                raise PlanError(
                    f"a plan's {key} must be a {kind.__name__}",
                    found=repr(data[key])[:80],
                    fix="make the plan again with `prunepass plan`",
                )
        for name, value in data["notes"].items():
            if not _is_plain(value):
                raise PlanError(
                    f"a plan's note {name!r} is not a plain value",
                    found=repr(value),
                    fix="a number, a text, true, false, null, or a list of these",
                )
        steps = []
        for item in data["steps"]:
            _keys(item, {"kind", "site", "rule", "keep", "action", "options"}, "a step of a plan")
            steps.append(Step(**item))
        return Plan(
            method=data["method"],
            steps=tuple(steps),
            fingerprint=data["fingerprint"],
            notes=data["notes"],
        )


def check_keep(keep: object, *, where: str) -> None:
    """Raises PlanError unless `keep` is a count >= 1 (int) or a fraction in (0, 1] (float)."""
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1:
        return
    if isinstance(keep, float) and 0.0 < keep <= 1.0:
        return
    raise PlanError(
        f"keep of {where} must be a fraction in (0, 1] or a count of at least 1",
        found=repr(keep),
        fix="keep=0.5 keeps half of the tokens, keep=98 keeps 98 of them",
    )


def check_share(keep: object) -> None:
    """Raises PlanError unless `keep` is a share of the inputs of layers, in (0, 1]."""
    if isinstance(keep, (int, float)) and not isinstance(keep, bool) and 0.0 < keep <= 1.0:
        return
    raise PlanError(
        "keep must be the share of their inputs that linear layers read, in (0, 1]",
        found=repr(keep),
        fix="keep=0.5 reads half of the inputs",
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, str))


def _one_of(name: str, value: object, known: tuple[str, ...], site: object) -> None:
    if value not in known:
        raise PlanError(
            f"unknown {name} {value!r} in the step at {site}",
            found=repr(value),
            fix=f"one of {nearest(str(value), known)}",
        )


def _keys(data: Any, expected: set[str], what: str) -> None:
    if not isinstance(data, dict):
        raise PlanError(
            f"{what} must be an object",
            found=repr(data)[:80],
            fix="make the plan again with `prunepass plan`",
        )
    if set(data) != expected:
        missing, extra = sorted(expected - set(data)), sorted(set(data) - expected)
        raise PlanError(
            f"{what} has the wrong keys",
            found=f"missing {missing}, unknown {extra}",
            fix=f"exactly these keys: {', '.join(sorted(expected))}",
        )
