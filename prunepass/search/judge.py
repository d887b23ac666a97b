"""What steps do to a model's answers on pictures; verdicts are kept, so a search can resume."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.calibrate import Batch, run, scores_of
from prunepass.errors import ModelError, UsageError
from prunepass.graph.edit import open_module
from prunepass.measure.fidelity import kl
from prunepass.passes.draft import draft
from prunepass.plans import Step
from prunepass.search.recipe import key_of

BATCH = 25
FIRST = 64
"""Pictures that a draft is judged on before it is judged on all."""
FEWEST = 8


@dataclass(frozen=True)
class Verdict:
    """How answers changed, picture by picture.

    Attributes:
        kl: Divergence from the dense model, nats, one a picture.
        agrees: Whether the first class is the dense model's.
        right: Whether the first class is the label; empty where labels are not known.
    """

    kl: tuple[float, ...]
    agrees: tuple[bool, ...]
    right: tuple[bool, ...] = ()

    @property
    def mean(self) -> float:
        """Mean divergence."""
        return sum(self.kl) / len(self.kl)

    def quality(self, kind: str) -> float:
        """`kl`, `agreement` or `top1`."""
        if kind == "kl":
            return self.mean
        flags = self.agrees if kind == "agreement" else self.right
        return sum(flags) / max(1, len(flags))

    def gain_over(self, other: Verdict) -> tuple[float, float]:
        """By how much the mean divergence is lower than another's on the same pictures, and the
        standard error of that."""
        count = min(len(self.kl), len(other.kl))
        gaps = [b - a for a, b in zip(self.kl[:count], other.kl[:count], strict=True)]
        mean = sum(gaps) / count
        spread = sum((g - mean) ** 2 for g in gaps) / max(1, count - 1)
        return mean, (spread / count) ** 0.5

    def first(self, count: int) -> Verdict:
        """The verdict on the first pictures alone."""
        return Verdict(self.kl[:count], self.agrees[:count], self.right[:count])


class Judge:
    """Runs drafts of one program on two sets of pictures: one to choose on, one to tell by.

    Args:
        program: Returns class scores.
        images: Prepared pictures [N, 3, H, W], N >= 8; half of them choose.
        labels: [N], -1 for unknown; None for none.
        seed: Of the split.
        memory: A file where verdicts are kept, None to keep none.

    Raises:
        ModelError: Too few pictures, such as the model does not take, or no class scores.
        UsageError: The file is of another search.
    """

    def __init__(
        self,
        program: ExportedProgram,
        images: Tensor,
        labels: Tensor | None,
        *,
        seed: int = 0,
        memory: Path | None = None,
    ) -> None:
        _check_data(images, labels)
        order = list(range(len(images)))
        random.Random(seed).shuffle(order)
        half = len(order) // 2
        parts = {"chosen": order[:half], "unseen": order[half:]}
        self.program = program
        self.images = {name: images[rows] for name, rows in parts.items()}
        known = labels is not None and bool((labels >= 0).all())
        self.labels = {
            name: labels[rows] if known and labels is not None else None
            for name, rows in parts.items()
        }
        dense = open_module(program)
        self._dense = {name: _answers(dense, part) for name, part in self.images.items()}
        self._memory, self._verdicts = memory, dict[str, Verdict]()
        self.fresh = 0
        self._read(_digest(program, images, seed))

    @property
    def labelled(self) -> bool:
        """Whether labels are known."""
        return self.labels["chosen"] is not None

    def dense_top1(self, part: str = "unseen") -> float:
        """Share of pictures the dense model gets right."""
        labels = self.labels[part]
        assert labels is not None
        return float((self._dense[part].argmax(1) == labels).double().mean())

    def verdict(self, steps: Sequence[Step], *, part: str = "chosen", count: int = 0) -> Verdict:
        """What steps do to the first `count` pictures of a part, 0 for all.

        Raises:
            PrunepassError: The steps cannot be carried out.
        """
        whole = len(self.images[part])
        count = min(count or whole, whole)
        name = key_of(steps)
        key = hashlib.sha256(f"{part} {count} {name}".encode()).hexdigest()[:24]
        if key not in self._verdicts:
            wider = hashlib.sha256(f"{part} {whole} {name}".encode()).hexdigest()[:24]
            if wider in self._verdicts:
                return self._verdicts[wider].first(count)
            self._verdicts[key] = self._judged(steps, part, count)
            self.fresh += 1
            self._write(key)
        return self._verdicts[key]

    def noise(self) -> Verdict:
        """The dense model beside itself in double precision: what its own rounding does."""
        images = self.images["chosen"][:FIRST]
        # A copy: changing the type of a module changes its weights, which the program shares.
        exact = copy.deepcopy(open_module(self.program)).double()
        try:
            said = _answers(exact, images.double())
        except (ModelError, RuntimeError):
            said = self._dense["chosen"][:FIRST]
        told = self._dense["chosen"][:FIRST]
        agrees = (said.argmax(1) == told.argmax(1)).tolist()
        return Verdict(tuple(kl(said, told).abs().tolist()), tuple(agrees))

    def _judged(self, steps: Sequence[Step], part: str, count: int) -> Verdict:
        module = draft(self.program, steps)
        said, told = _answers(module, self.images[part][:count]), self._dense[part][:count]
        labels = self.labels[part]
        best = said.argmax(1)
        return Verdict(
            tuple(kl(told, said).tolist()),
            tuple((best == told.argmax(1)).tolist()),
            () if labels is None else tuple((best == labels[:count]).tolist()),
        )

    def _read(self, digest: str) -> None:
        self._digest = digest
        if self._memory is None or not self._memory.exists():
            return
        try:
            header, *lines = self._memory.read_text(encoding="utf-8").splitlines() or ["{}"]
            found = json.loads(header).get("search")
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(
                f"cannot read {self._memory}", found=str(error)[:200], fix="delete it"
            ) from error
        if found != digest:
            raise UsageError(
                f"{self._memory} is of a search on another model or other pictures",
                found=f"{found}, this search is {digest}",
                fix="delete it, or another -o",
            )
        for line in lines:
            with contextlib.suppress(ValueError, KeyError):  # the last line may be half written
                data = json.loads(line)
                self._verdicts[data["key"]] = Verdict(
                    tuple(data["kl"]), tuple(data["agrees"]), tuple(data["right"])
                )

    def _write(self, key: str) -> None:
        if self._memory is None:
            return
        verdict = self._verdicts[key]
        row = {"key": key, "kl": verdict.kl, "agrees": verdict.agrees, "right": verdict.right}
        try:
            new = not self._memory.exists()
            with self._memory.open("a", encoding="utf-8") as file:
                if new:
                    file.write(json.dumps({"search": self._digest}) + "\n")
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UsageError(
                f"cannot write {self._memory}", found=str(error), fix="another -o"
            ) from error


def _answers(module: torch.fx.GraphModule, images: Tensor) -> Tensor:
    """Class scores [N, V]."""
    with torch.no_grad():
        parts = [
            scores_of(run(module, Batch((part,))))[: len(part)] for part in images.split(BATCH)
        ]
    return torch.cat(parts)


def _check_data(images: Tensor, labels: Tensor | None) -> None:
    """Raises ModelError where pictures or labels are not what a planner can go by."""
    if len(images) < FEWEST:
        raise ModelError(
            f"a planner needs at least {FEWEST} pictures",
            found=str(len(images)),
            fix="another --images",
        )
    if not bool(images.isfinite().all()):
        raise ModelError(
            "pictures of a planner hold no finite numbers",
            found="inf or nan",
            fix="pictures as the model takes them",
        )
    if labels is not None and len(labels) != len(images):
        raise ModelError(
            "pictures of a planner have a label each, or none has one",
            found=f"{len(labels)} labels, {len(images)} pictures",
            fix="-1 where a label is unknown",
        )


def _digest(program: ExportedProgram, images: Tensor, seed: int) -> str:
    """What tells one search from another: weights and pictures."""
    found = hashlib.sha256(f"{seed} {list(images.shape)}".encode())
    for name, weight in sorted(program.state_dict.items()):
        found.update(f"{name} {float(weight.double().sum())!r}".encode())
    found.update(images.double().sum(dim=(1, 2, 3)).numpy().tobytes())
    return found.hexdigest()[:24]
