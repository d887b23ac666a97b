"""The examination that stands before a build."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunepass.doctor.findings import Finding, examine
from prunepass.errors import UnsupportedGraph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LOG = logging.getLogger("prunepass")


def check(subject: Path | ExportedProgram, targets: Sequence[str]) -> tuple[Finding, ...]:
    """What is slow or takes a longer way on the targets of a build; it is logged, too.

    Args:
        subject: An ONNX file or a program.
        targets: What it is built for, as in `examine`.

    Raises:
        UnsupportedGraph: Something would fail there, or be wrong without a word.
    """
    found = examine(subject, targets=targets)
    worst = [finding for finding in found if finding.blocking]
    if worst:
        first = worst[0]
        where = f" in {first.module}" if first.module else ""
        more = f", and {len(worst) - 1} more" if len(worst) > 1 else ""
        says = "fails" if first.effect == "fails" else "is silently wrong"
        raise UnsupportedGraph(
            f"{first.node}{where} {says} on {first.target}{more}",
            found=f"{first.found}; {first.what}",
            fix=first.mend,
        )
    for finding in found:
        _LOG.info("%s", one_line(finding))
    return found


def one_line(finding: Finding) -> str:
    """A finding in one line, for a log or a report."""
    return f"{finding.target} {finding.effect}: {finding.node}: {finding.found}; {finding.what}"
