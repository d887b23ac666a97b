"""Plans as data: what is stored comes back, and what is not a plan is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunepass.errors import PlanError
from prunepass.plans import ACTIONS, KINDS, SCHEMA, Plan, Step, check_keep

finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.one_of(st.none(), st.booleans(), st.integers(), finite, st.text())
options = st.dictionaries(st.text(), plain | st.lists(plain, max_size=3), max_size=4)
keeps = st.one_of(st.integers(min_value=1), st.floats(0.0, 1.0, exclude_min=True))
steps = st.builds(
    Step,
    kind=st.sampled_from(KINDS),
    site=st.text(min_size=1),
    rule=st.text(min_size=1),
    keep=keeps,
    action=st.sampled_from(ACTIONS),
    options=options,
)
plans = st.builds(
    Plan,
    method=st.text(),
    steps=st.lists(steps, max_size=4).map(tuple),
    fingerprint=st.text(),
    notes=options,
)
anything: st.SearchStrategy[Any] = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def example(**changes: Any) -> dict[str, Any]:
    """A valid plan as JSON data; `step__x` changes key x of its only step."""
    one = {
        "kind": "reduce_tokens",
        "site": "block[1].attention",
        "rule": "tome",
        "keep": 0.7,
        "action": "merge",
        "options": {"heads": "mean"},
    }
    data = {"schema": SCHEMA, "method": "m", "fingerprint": "f", "notes": {"a": 1}, "steps": [one]}
    for key, value in changes.items():
        target, name = (one, key[len("step__") :]) if key.startswith("step__") else (data, key)
        if value is KeyError:
            del target[name]
        else:
            target[name] = value
    return data


def plan_or_error(text: str) -> Plan | PlanError:
    try:
        return Plan.from_json(text)
    except PlanError as error:
        return error


def read(data: Any) -> Plan:
    return Plan.from_json(json.dumps(data))


@given(plans)
@settings(max_examples=150, deadline=None)
def test_any_plan_comes_back(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    for one, other in zip(again.steps, plan.steps, strict=True):
        assert type(one.keep) is type(other.keep)


@given(st.text() | anything.map(json.dumps))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    assert isinstance(plan_or_error(text), (Plan, PlanError))


@given(st.sampled_from([*example(), *(f"step__{k}" for k in example()["steps"][0])]), anything)
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_place_is_a_plan_or_a_plan_error(key: str, value: Any) -> None:
    result = plan_or_error(json.dumps(example(**{key: value})))
    if isinstance(result, Plan):
        assert Plan.from_json(result.to_json()) == result
    else:
        assert result.what


VIOLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "old schema": ({"schema": 0}, "another schema version"),
    "schema as text": ({"schema": "1"}, "another schema version"),
    "schema as true": ({"schema": True}, "another schema version"),
    "no steps": ({"steps": KeyError}, "wrong keys"),
    "an unknown key": ({"author": "me"}, "wrong keys"),
    "method as number": ({"method": 3}, "method must be a str"),
    "fingerprint as null": ({"fingerprint": None}, "fingerprint must be a str"),
    "notes as list": ({"notes": []}, "notes must be a dict"),
    "steps as object": ({"steps": {}}, "steps must be a list"),
    "a note that nests": ({"notes": {"a": {"b": 1}}}, "note 'a' is not a plain value"),
    "a step as text": ({"steps": ["drop"]}, "a step of a plan must be an object"),
    "a step without rule": ({"step__rule": KeyError}, "wrong keys"),
    "a step with a ratio": ({"step__ratio": 0.3}, "wrong keys"),
    "an unknown kind": ({"step__kind": "reduce_token"}, "unknown kind 'reduce_token'"),
    "an unknown action": ({"step__action": "merg"}, "unknown action 'merg'"),
    "an empty site": ({"step__site": ""}, "needs a site"),
    "a rule as number": ({"step__rule": 4}, "needs a rule"),
    "options as list": ({"step__options": [1]}, "must be a mapping"),
    "an option that nests": ({"step__options": {"a": {}}}, "not a plain value"),
    "a list that nests objects": ({"step__options": {"a": [{}]}}, "not a plain value"),
}


@pytest.mark.parametrize("name", list(VIOLATIONS))
def test_violations_are_named(name: str) -> None:
    changes, message = VIOLATIONS[name]
    with pytest.raises(PlanError, match=message) as e:
        read(example(**changes))
    assert e.value.found


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "3", '"plan"', "[" * 5000, "NaN"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


@pytest.mark.parametrize(
    "keep",
    [0, -3, 0.0, -0.1, 1.0000001, 2.5, float("nan"), float("inf"), True, False, "half", None],
)
def test_keep_is_a_count_or_a_fraction(keep: Any) -> None:
    with pytest.raises(PlanError, match="keep of here"):
        check_keep(keep, where="here")
    with pytest.raises(PlanError, match=r"keep of the step at block\[0\]\.output"):
        Step(kind="reduce_tokens", site="block[0].output", rule="tome", keep=keep)


@pytest.mark.parametrize("keep", [1, 98, 1e-9, 0.5, 1.0])
def test_keeps_that_are_fine(keep: float) -> None:
    step = Step(kind="reduce_tokens", site="block[0].output", rule="tome", keep=keep)
    assert step.keep == keep


@pytest.mark.parametrize("value", [float("nan"), float("inf"), (1, 2), object(), {"a": 1}])
def test_options_are_plain_and_finite(value: Any) -> None:
    with pytest.raises(PlanError, match="option 'x'"):
        Step(kind="reduce_tokens", site="s", rule="r", keep=1, options={"x": value})


@pytest.mark.parametrize(
    ("keep", "tokens", "prefix", "count"),
    [(0.5, 21, 1, 11), (0.7, 21, 1, 15), (0.71, 21, 1, 16), (1.0, 25, 5, 25), (1e-6, 25, 5, 6),
     (0.1, 11, 1, 2), (0.3, 10, 0, 3), (12, 21, 1, 12), (12, 9, 1, 12)],
)  # fmt: skip
def test_counts(keep: float, tokens: int, prefix: int, count: int) -> None:
    """A fraction is of the tokens that may go, rounded up, and at least one of them stays."""
    step = Step(kind="reduce_tokens", site="s", rule="r", keep=keep)
    assert step.count(tokens, prefix) == count


@given(st.floats(0.0, 1.0, exclude_min=True), st.integers(1, 2000), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_fractions_stay_within_what_there_is(keep: float, removable: int, prefix: int) -> None:
    step = Step(kind="reduce_tokens", site="s", rule="r", keep=keep)
    count = step.count(prefix + removable, prefix)
    assert prefix < count <= prefix + removable
    assert keep * removable - 1e-6 <= count - prefix < keep * removable + 1 or count == prefix + 1
