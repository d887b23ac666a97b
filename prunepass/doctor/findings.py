"""The examination: which rules of which targets find something in a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunepass.doctor.read import kind_of, read
from prunepass.doctor.rule import BLOCKING, Effect, Place, Rule
from prunepass.doctor.table import RULES
from prunepass.doctor.target import TARGETS, Target, default_targets, parse_target
from prunepass.doctor.view import View
from prunepass.errors import UsageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A node that will not do well on a target.

    Attributes:
        target: Whose, e.g. `tensorrt==10.13`.
        effect: `fails`, `wrong` (without a word), `falls back`, `slow` or `untested`.
        node: What a person finds it by.
        operator: Its operator.
        module: Path of the module it came from, or nothing.
        found: What was seen there.
        what: What becomes of it.
        mend: What to do.
        rule: Name of the rule.
        source: Where the rule is known from.
        file: The file, empty for a program in memory.
    """

    target: str
    effect: Effect
    node: str
    operator: str
    module: str
    found: str
    what: str
    mend: str
    rule: str
    source: str
    file: str

    @property
    def blocking(self) -> bool:
        """Whether nobody wants to build on it: it fails, or is wrong without a word."""
        return self.effect in BLOCKING

    def to_dict(self) -> dict[str, Any]:
        """It as plain data."""
        return asdict(self)


def examine(
    subject: str | Path | ExportedProgram, *, targets: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """What will fail, be wrong, fall back or be slow in a graph, the worst first.

    Args:
        subject: An ONNX file, a program of `torch.export` or a file of one, or a folder of those: a
            bundle, say.
        targets: What it is to run on, e.g. `tensorrt==10.13`, or a name alone for the version that
            is installed, else the newest known. None for `onnxruntime` and `tensorrt` of ONNX
            files, `onnxscript` and `torch_tensorrt` of programs.

    Raises:
        ModelError: There is nothing to read, or a file is broken.
        UsageError: A target is unknown, or reads no such files.
    """
    wanted = tuple(parse_target(text) for text in targets)
    found = [f for view in _views(subject, wanted) for f in findings(view, wanted)]
    order = ("fails", "wrong", "falls back", "slow", "untested")
    return tuple(sorted(found, key=lambda f: order.index(f.effect)))


def findings(view: View, targets: Sequence[Target] = ()) -> Iterator[Finding]:
    """What the rules find in a view, by target and rule; targets of other files are left out."""
    for target in targets or default_targets(view.kind):
        if target.kind != view.kind:
            continue
        for rule in RULES:
            if rule.holds(target):
                yield from _look(rule, view, target)


def _look(rule: Rule, view: View, target: Target) -> Iterator[Finding]:
    for node in view.of(rule.operators):
        found = rule.condition(Place(node, view, target))
        if found is not None:
            yield Finding(
                target=str(target), effect=rule.effect, node=node.label, operator=node.op,
                module=node.module, found=found, what=rule.what, mend=rule.mend, rule=rule.name,
                source=rule.source, file=str(view.path or ""),
            )  # fmt: skip


def _views(subject: str | Path | ExportedProgram, targets: Sequence[Target]) -> Iterable[View]:
    if not isinstance(subject, (str, Path)):
        from prunepass.doctor.read_program import view_of_program

        _check_kinds("program", "a program", targets)
        return (view_of_program(subject),)
    path = Path(subject)
    if not path.is_dir():
        _check_kinds(kind_of(path), str(path), targets)
    return read(path)


def _check_kinds(kind: str, called: str, targets: Sequence[Target]) -> None:
    """Raises UsageError where no target reads such a file: silence would look like health."""
    if targets and all(target.kind != kind for target in targets):
        known = ", ".join(name for name, row in TARGETS.items() if row.kind == kind)
        raise UsageError(
            f"{targets[0].name} does not read {called}", found=str(targets[0]),
            fix=f"--target {known.replace(', ', ' or ')}",
        )  # fmt: skip
