"""What a compilation gained, as plain numbers with the machine they were taken on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunepass.bundle_files import read_json
from prunepass.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Report:
    """Facts of one compiled model.

    Attributes:
        model: What was compiled, as it was named.
        weights: `pretrained`, `random` or a file name.
        method: Method of the plan.
        backend: Name of the backend.
        batch: Fixed batch size, or None for any.
        macs_dense: Multiply-accumulates of the dense model, one example.
        macs: Multiply-accumulates of the compressed model, one example, scoring included.
        example: What one example is.
        parameters: Number of parameters.
        tokens: Site -> tokens before and after, in the order they run.
        difference_dense: Largest difference of the dense engine from the program run by PyTorch,
            relative to the largest output; None where no dense engine is built.
        difference: The same for the compressed engine; median over the examples tried, since a
            near tie of scores may fall differently in one of them.
        seconds: Stage -> seconds it took.
        findings: What the doctor says of the compressed engine, a line each: what is slow or
            takes a longer way on what it was built for.
        environment: Machine and versions.
        always_kept: Numbers of the tokens that are never removed.
        parts: `dense` and `compressed` -> part of the program -> its multiply-accumulates, one
            example, where they are known part by part.
    """

    model: str
    weights: str
    method: str
    backend: str
    batch: int | None
    macs_dense: int
    macs: int
    parameters: int
    tokens: Mapping[str, tuple[int, int]]
    difference_dense: float | None
    difference: float
    seconds: Mapping[str, float]
    example: str = "a picture"
    findings: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    always_kept: tuple[int, ...] = ()
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def macs_ratio(self) -> float:
        """MACs relative to the dense model."""
        return self.macs / self.macs_dense if self.macs_dense else 1.0

    def to_json(self) -> str:
        """The report as JSON text. FLOPs are 2 per multiply-accumulate."""
        data = asdict(self)
        data["macs_ratio"] = round(self.macs_ratio, 6)
        data["flops_dense"], data["flops"] = 2 * self.macs_dense, 2 * self.macs
        return json.dumps(data, indent=2)

    def __str__(self) -> str:
        """The report as a few lines of text."""
        path = [str(next(iter(self.tokens.values()))[0])] if self.tokens else ["all"]
        path += [str(after) for _, after in self.tokens.values()]
        gap = self.difference_dense
        dense = "" if gap is None else f"{gap:.1e} (dense), "
        lines = [
            ("model", f"{self.model}, weights {self.weights}"),
            ("method", f"{self.method}, backend {self.backend}, batch {self.batch or 'any'}"),
            ("tokens", " ".join(path)),
            (
                "MACs",
                f"{self.macs_dense / 1e9:.3f} G -> {self.macs / 1e9:.3f} G {self.example} "
                f"({self.macs_ratio:.3f}); FLOPs are twice that",
            ),
            ("engine = program", f"to {dense}{self.difference:.1e} (compressed)"),
            ("time", ", ".join(f"{k} {v:.1f} s" for k, v in self.seconds.items())),
        ]
        if self.findings:
            more = f" and {len(self.findings) - 1} more" if len(self.findings) > 1 else ""
            lines.append(("doctor", f"{self.findings[0]}{more}"))
        if self.weights == "random":
            lines.append(("note", "random weights: speed and structure only, no quality"))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def read_report(folder: Path) -> Mapping[str, Any]:
    """What `report.json` of a bundle says.

    Raises:
        ModelError: It cannot be read.
    """
    path = folder / "report.json"
    data = read_json(path)
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged", found=type(data).__name__, fix="compile again")
    return data
