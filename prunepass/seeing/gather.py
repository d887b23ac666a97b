"""Everything a report tells of one bundle: read where it was written down, measured where asked."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunepass.benchmark.side_by_side import side_by_side
from prunepass.benchmark.subjects import subjects
from prunepass.bundle import kind_of, read_plan
from prunepass.engines import load_engines
from prunepass.errors import ModelError, PrunepassError, UsageError
from prunepass.html.facts import Facts, Picture, Quality
from prunepass.language.manifest import KIND as LANGUAGE
from prunepass.measure.fidelity import compare
from prunepass.report import read_report
from prunepass.seeing.baselines import Batches, baselines, own
from prunepass.seeing.look import Look, Looker
from prunepass.seeing.look_vlm import look as look_vlm
from prunepass.seeing.paint import left, panel
from prunepass.sources.pictures import Pictures, find_pictures
from prunepass.sources.preprocess import Preprocessing
from prunepass.vlm.loading import load as load_vlm

Told = Callable[[str], None]
SHOWN = 4
"""Pictures of a report."""
_PANEL, _BATCH = 200, 16


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be told besides what the bundle says of itself.

    Attributes:
        images: A folder of pictures to measure quality on and to show.
        limit: Most pictures of them.
        runs: Runs of each engine to time, 0 for none.
        bench: What `prunepass bench --json` wrote.
        doctor: What `prunepass doctor --json` wrote.
        layers: What `prunepass layers --json` wrote.
        prompt: A question about the pictures, of a vision-language model.
    """

    images: str | None = None
    limit: int = 64
    runs: int = 0
    bench: Path | None = None
    doctor: Path | None = None
    layers: Path | None = None
    prompt: str | None = None


def gather(folder: Path, wanted: Wanted, say: Told) -> Facts:
    """The facts of one bundle.

    Raises:
        ModelError: It is no bundle, or a file cannot be read.
        UsageError: Its model takes no pictures, or reads a prompt with them and there is none, or
            reads none and there is one.
    """
    kind = kind_of(folder)
    _check(kind, wanted)
    report, made = read_report(folder), read_plan(folder / "plan.json")
    missing: list[str] = []
    shown: tuple[Picture, ...] = ()
    quality, note = recorded(report)
    if wanted.images is not None:
        pictures = find_pictures(wanted.images, labelled=False)
        pictures = pictures.split(wanted.limit)[0] if wanted.limit < len(pictures) else pictures
        if kind is None:
            quality, note = _measured(folder, pictures, made.method, say, missing)
        shown = _shown(folder, wanted.prompt, pictures, missing)
    doctor = None if wanted.doctor is None else read_json(wanted.doctor)
    return Facts(
        report=report,
        plan=json.loads(made.to_json()),
        parts=_parts(report),
        runs=_runs(folder, wanted.runs, say) if wanted.runs else {},
        bench={} if wanted.bench is None else read_json(wanted.bench),
        quality=quality,
        quality_note=note,
        missing=tuple(missing),
        pictures=shown,
        scores={} if wanted.layers is None else _layer_scores(read_json(wanted.layers)),
        findings=None if doctor is None else doctor.get("findings", []),
    )


def _check(kind: str | None, wanted: Wanted) -> None:
    """Raises UsageError where something is wanted that this kind of bundle cannot tell."""
    if wanted.images is not None and kind == LANGUAGE:
        raise UsageError("a language model sees no picture", found="--images", fix="leave it out")
    if wanted.images is not None and kind is not None and wanted.prompt is None:
        raise UsageError(
            "which image tokens stay depends on what is asked",
            found="--images without --prompt",
            fix='--prompt "What is it?"',
        )
    if wanted.prompt is not None and (kind is None or wanted.images is None):
        raise UsageError(
            "a prompt is about pictures, for a model that reads one",
            found="--prompt",
            fix="--images DIR --prompt TEXT for a vision-language model, or leave it out",
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: There is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"cannot read {path}",
            found=str(error)[:200],
            fix="what `prunepass COMMAND --json` printed",
        ) from error
    if not isinstance(data, dict):
        raise ModelError(
            f"{path} holds no object",
            found=type(data).__name__,
            fix="what `prunepass COMMAND --json` printed",
        )
    return data


def recorded(report: Mapping[str, Any]) -> tuple[tuple[Quality, ...], str]:
    """What was measured before of this model at about this cost, from `models/results`."""
    from importlib.resources import files

    ratio = float(report.get("macs_ratio", 1.0))
    near: dict[str, dict[str, Any]] = {}
    count = 0
    for file in sorted(files("prunepass.models").joinpath("results").iterdir(), key=str):
        if not file.name.endswith(".jsonl"):
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            same = row.get("kind") == "quality" and row["model"] == report["model"]
            if same and report["weights"] != "random" and abs(row["flops"] - ratio) < 0.01:
                near[row["method"]] = row
                count = row["count"]
    rows = tuple(
        Quality(
            name=name, macs_ratio=row["macs_ratio"], agreement=row["agreement"], kl=row["kl"],
            kl_error=row["kl_error"], top1=row["top1"], own=name == report["method"],
        )
        for name, row in near.items()
    )  # fmt: skip
    return rows, f"Measured before, on {count} pictures; from models/results."


def _measured(
    folder: Path, pictures: Pictures, method: str, say: Told, missing: list[str]
) -> tuple[tuple[Quality, ...], str]:
    manifest, engines = load_engines(folder)
    if manifest.preprocessing is None:
        missing.append("The bundle does not say how pictures are prepared: no quality, no picture.")
        return (), ""
    say(f"quality on {len(pictures)} pictures")
    preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    batches: Batches = list(pictures.batches(preprocessing, manifest.batch or _BATCH))
    dense, found = (
        torch.cat([engines[part](images)[0] for images, _ in batches])
        for part in ("dense", "compressed")
    )
    labels = torch.cat([label for _, label in batches])
    ratio = manifest.macs_ratio
    rows = [own(method, ratio, compare(dense, found, labels), pictures.labels)]

    def told(text: str) -> None:
        say(text)
        if text.startswith("no "):
            missing.append(f"{text[0].upper()}{text[1:]}.")

    rows += baselines(manifest, batches, dense, told)
    note = f"{len(pictures)} pictures from {Path(pictures.paths[0]).parent.name}/"
    return tuple(rows), note + "; what stands beside the bundle was run by PyTorch, not built."


def _looker(folder: Path, prompt: str | None) -> Callable[[Path], Look]:
    """What looks at pictures with a bundle, and asks a prompt about them where there is one."""
    if prompt is None:
        return Looker(folder)
    return functools.partial(look_vlm, load_vlm(folder), prompt=prompt)


def _shown(
    folder: Path, prompt: str | None, pictures: Pictures, missing: list[str]
) -> tuple[Picture, ...]:
    from PIL import Image

    try:
        looker = _looker(folder, prompt)
        found = []
        for path in pictures.paths[:SHOWN]:
            look = looker(path)
            panels = []
            for stage in (None, *look.stages):
                file = io.BytesIO()
                pixels = panel(look, stage, side=_PANEL)
                Image.fromarray(pixels).save(file, "JPEG", quality=82)
                if stage is None:
                    title, said = "as the model sees it", "the picture"
                else:
                    title = f"{stage.site}: {left(stage)} of {len(stage.owner)}"
                    said = f"{left(stage)} tokens for {len(stage.owner)} patches at {stage.site}"
                panels.append((title, said, file.getvalue()))
            found.append(Picture(path.name, tuple(panels)))
        return tuple(found)
    except PrunepassError as error:
        missing.append(f"No pictures: {error.what} ({error.found}).")
        return ()


def _runs(folder: Path, count: int, say: Told) -> dict[str, list[float]]:
    say(f"timing {count} runs of each engine")
    engines = subjects(folder)
    found = side_by_side(engines, batch=engines[0].batch or 1, runs=count)
    return {one.subject.name: [1e3 * s for s in one.timing.seconds] for one in found}


def _parts(report: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Part -> MACs dense and compressed, where the report tells them."""
    dense, now = (report.get("parts", {}).get(k, {}) for k in ("dense", "compressed"))
    names = dict.fromkeys([*dense, *now])
    return {name: (int(dense.get(name, 0)), int(now.get(name, 0))) for name in names}


def _layer_scores(data: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, float], bool]]:
    from prunepass.importance.table import LAYER_SCORES

    found: dict[str, tuple[Mapping[str, float], bool]] = {}
    for name, values in data.get("scores", {}).items():
        blocks = {site: value for site, value in values.items() if "." not in site}
        found[name] = (blocks or values, LAYER_SCORES[name].high_matters)
    return found
