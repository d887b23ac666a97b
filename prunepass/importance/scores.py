"""Layer scores of a program over a stream of batches, with a checkpoint to go on from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch.export import ExportedProgram

from prunepass.analyse.sites import fingerprint
from prunepass.calibrate import Batch
from prunepass.errors import ModelError, UsageError, looked_up
from prunepass.importance.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from prunepass.importance.subject import Subject, subject
from prunepass.importance.table import LAYER_SCORES, LayerScore, Measure

TAPS = ("block", "module")


@dataclass(frozen=True)
class LayerScores:
    """Scores of the blocks and branches of one program.

    Attributes:
        values: Name of a score -> site -> score. Sites are `block[3]`, `block[3].attention`,
            `block[3].mlp`.
        batches: How many batches they are over.
        tap: Where cosines were taken, see `layer_scores`.
    """

    values: Mapping[str, Mapping[str, float]]
    batches: int
    tap: str = "block"

    def order(self, score: str, *, branches: bool = False) -> list[str]:
        """Sites from the least to the most important.

        Args:
            score: A name out of `values`.
            branches: Attention and MLP branches instead of whole blocks.
        """
        values = looked_up(self.values, score, "layer score", UsageError)
        sites = [site for site in values if ("." in site) == branches]
        sign = 1.0 if LAYER_SCORES[score].high_matters else -1.0
        return sorted(sites, key=lambda site: sign * values[site])


def layer_scores(
    program: ExportedProgram,
    batches: Iterable[Batch] = (),
    *,
    scores: Sequence[str] = ("lim",),
    tap: str = "block",
    prefix: int = 0,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> LayerScores:
    """How important each block and branch of a program is. Identical calls give identical scores.

    Memory does not grow with the number of batches: each adds to sums and is forgotten.

    Args:
        program: A labelled program, from `capture`.
        batches: Calibration data, read one by one; not needed for `zd`.
        scores: Names out of `LAYER_SCORES`.
        tap: `block`: cosines of `lim` and `bi` over the boundary, residual included; `module`: of
            branches between what enters them and what they add.
        prefix: Leading tokens that do not count (class token), for cosines and hidden states.
        seed: Of what `ecoflap` and `suppress` draw.
        checkpoint: A file the sums are kept in; a second call goes on behind the batches in it.
        progress: Told the number of examples done.

    Raises:
        UsageError: A name is unknown, or the checkpoint is of another model or request.
        ModelError: There is no data where a score needs some, or the model does not take it.
        UnsupportedGraph: The program has no layers that can be told apart.
    """
    rows = [looked_up(LAYER_SCORES, name, "layer score", UsageError) for name in scores]
    if tap not in TAPS:
        raise UsageError(f"there is no tap {tap!r}", found=tap, fix="block or module")
    opened = subject(program, tap=tap, prefix=prefix, seed=seed)
    measures = list(dict.fromkeys(row.measure for row in rows if row.measure is not None))
    sums = Checkpoint({}, 0)
    if measures:
        request = _request(program, opened, measures)
        sums = _summed(opened, batches, measures, request, checkpoint, progress)
        if sums.batches == 0:
            names = ", ".join(row.name for row in rows if row.measure is not None)
            raise ModelError(
                f"{names}: a score that needs calibration data",
                found="no batch",
                fix="--images DIR or --texts FILE; the score zd needs no data",
            )
    return LayerScores(
        MappingProxyType({row.name: _values(row, opened, sums) for row in rows}), sums.batches, tap
    )


def _values(row: LayerScore, opened: Subject, sums: Checkpoint) -> Mapping[str, float]:
    return MappingProxyType(dict(row.values(opened, sums.sums)))


def _summed(
    opened: Subject,
    batches: Iterable[Batch],
    measures: Sequence[Measure],
    request: str,
    path: Path | None,
    progress: Callable[[int], None] | None,
) -> Checkpoint:
    state = read_checkpoint(path, request) if path is not None else Checkpoint({}, 0)
    done = state.batches
    for index, batch in enumerate(itertools.islice(batches, done, None), start=done):
        sums = dict(state.sums)
        for measure in measures:
            for name, value in measure(opened, batch, index).items():
                sums[name] = sums[name] + value if name in sums else value
        state = Checkpoint(sums, index + 1)
        if path is not None:
            write_checkpoint(path, request, state)
        if progress is not None:
            progress(len(batch))
    return state


def _request(program: ExportedProgram, opened: Subject, measures: Sequence[Measure]) -> str:
    """What tells one request from another: architecture, weights, what is measured and how."""
    digest = hashlib.sha256(fingerprint(program).encode())
    for name, weight in sorted(opened.weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                      if weight.dim() else str(weight.item()).encode())  # fmt: skip
    what = sorted(measure.__name__ for measure in measures)
    digest.update(f"{what} {opened.tap} {opened.prefix} {opened.seed}".encode())
    return digest.hexdigest()[:32]
