"""What each command of the command line does. Each returns plain data for `--json`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch.export import ExportedProgram

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites as find_sites
from prunepass.bundle import check_free, read_plan, write_text
from prunepass.capture import capture
from prunepass.compiler import check_batch, load_engines
from prunepass.compiler import compile as compile_model
from prunepass.downsample import downsample
from prunepass.errors import PlanError, UsageError
from prunepass.language import commands as language_commands
from prunepass.language.manifest import is_language_bundle
from prunepass.layer_commands import check_together, drop_plan, target_plan
from prunepass.layer_commands import layers as score_layers
from prunepass.measure.environment import environment
from prunepass.measure.fidelity import fidelity
from prunepass.measure.timing import interleaved, speedup
from prunepass.plan import Plain, Plan
from prunepass.planners.budget import plan as make_plan
from prunepass.planners.image_methods import IMAGE_METHODS
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE, METHODS, method
from prunepass.progress import bar
from prunepass.rules.table import RULES
from prunepass.search.schedule import search
from prunepass.sources.language import is_language
from prunepass.sources.model import LoadedModel, load_model
from prunepass.sources.pictures import find_pictures
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.vision_language import is_vision_language
from prunepass.vlm import commands as vlm_commands

Say = Callable[..., None]
_PLANNING = ("method", "flops", "images", "action", "at", "keep", "option")
"""Options that say how a plan is made."""


def inspect(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Lists the sites of a model."""
    loaded = _load(words)
    program = capture(loaded.module, (loaded.example(),))
    sites = find_sites(program)
    say(
        f"{words.model}: {macs(program) / 1e9:.3f} GMAC an example, "
        f"{sum(p.numel() for p in program.parameters()) / 1e6:.1f} M parameters, "
        f"{len(sites)} sites, {sites.prefix_tokens} prefix tokens"
        + (f", {len(sites.fixed_tokens)} more that always stay" if sites.fixed_tokens else "")
    )
    if not len(sites):
        say(
            "  no attention block with a residual stream was recognised, so no token can go.\n"
            "  The model still compiles as it is: prunepass.build(prunepass.capture(...))"
        )
    if words.json:
        return {
            "model": words.model,
            "macs": macs(program),
            "prefix_tokens": sites.prefix_tokens,
            "fixed_tokens": list(sites.fixed_tokens),
            "fingerprint": sites.fingerprint,
            "sites": [asdict(site) for site in sites],
        }
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("site", "module", "tokens", "channels", "heads", "tokens can be reduced"):
        table.add_column(column, overflow="fold")
    last = ""
    for site in sites:
        verdict = "yes" if site.refusal is None else f"no: {site.refusal}"
        shown = "no: as above" if verdict == last and verdict != "yes" else verdict
        last = verdict
        table.add_row(
            site.label, site.module, str(site.tokens), str(site.channels), str(site.heads), shown
        )
    if len(sites):
        Console().print(table)
    return {}


def methods(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Lists methods and rules."""
    data = {
        "methods": [
            {
                "name": m.name,
                "rule": m.rule,
                "action": m.action,
                "place": m.place,
                "needs": list(RULES[m.rule].needs),
                "summary": m.summary,
                "source": m.source,
            }
            for m in METHODS.values()
        ],
        "image_methods": [
            {
                "name": v.name,
                "rule": v.rule,
                "after": list(v.after),
                "keep": list(v.keep),
                "positions": v.positions,
                "summary": v.summary,
                "source": v.source,
            }
            for v in IMAGE_METHODS.values()
        ],
        "input_methods": [
            {
                "name": i.name,
                "rule": i.rule,
                "plain": i.plain,
                "roles": list(i.roles),
                "informed": list(i.informed),
                "summary": i.summary,
                "source": i.source,
            }
            for i in INPUT_METHODS.values()
        ],
        "rules": [
            {"name": r.name, "needs": list(r.needs), "options": dict(r.options), "source": r.source}
            for r in RULES.values()
        ],
    }
    if words.json:
        return data
    for m in METHODS.values():
        star = " (default)" if m.name == DEFAULT else ""
        say(f"{m.name:<20} {m.summary}{star}")
        say(f"{'':<20} {m.action}s tokens by rule {m.rule}; {m.source}")
    say(f"{DOWNSAMPLE:<20} the model at a smaller picture, a baseline; needs a model that can be")
    say(f"{'':<20} built at another input size")
    say("")
    say("of vision-language models:")
    for v in IMAGE_METHODS.values():
        star = " (default)" if v.name == "transprune" else ""
        say(f"{v.name:<20} {v.summary}{star}")
        say(f"{'':<20} {v.source}")
    say("")
    say("of language models:")
    for i in INPUT_METHODS.values():
        star = " (default)" if i.name == "wina" else ""
        say(f"{i.name:<20} {i.summary}{star}")
        say(f"{'':<20} {i.source}")
    return data


def layers(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Scores the layers of a model."""
    return score_layers(words, say=say)


def plan(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Makes a plan and writes it."""
    check_together(words)
    output = Path(words.output)
    if output.exists() and not words.force:
        raise UsageError(f"{output} exists", found="a file", fix="--force replaces it")
    if words.method == DOWNSAMPLE:
        raise UsageError(
            "the down-sampling baseline has no plan",
            found=DOWNSAMPLE,
            fix=f"prunepass compile {words.model} --method {DOWNSAMPLE} --flops R -o DIR",
        )
    if words.method in INPUT_METHODS:
        raise UsageError(
            f"plans of {words.method!r} are made when a language model is compiled",
            found=f"prunepass plan --method {words.method}",
            fix="prunepass compile hf/FOLDER --method wina --keep 0.5 -o DIR, whose plan.json "
            "--plan takes again",
        )
    _check_request(words)
    loaded = _load(words)
    say("capturing", stage=True)
    program = capture(loaded.module, (loaded.example(),))
    made = _plan(words, program, loaded, say)
    write_text(output, made.to_json())
    say(f"{output}: {len(made.steps)} steps, {made.notes.get('macs_ratio')} of the MACs")
    return {}


def compile(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Compiles a model into a bundle."""
    check_together(words)
    if is_vision_language(words.model):
        return vlm_commands.compile(words, say=say)
    if is_language(words.model):
        return language_commands.compile(words, say=say)
    texts = [n for n in vlm_commands.ONLY_TEXT if getattr(words, n) is not None]
    if texts:
        raise UsageError(
            f"{words.model} is a model of pictures alone",
            found=", ".join("--" + n.replace("_", "-") for n in texts),
            fix="--method and --flops say what is reduced",
        )
    folder, batch = Path(words.output), check_batch(words.batch)
    check_free(folder, force=words.force)
    given = None
    if words.plan is not None:
        given_too = [n for n in _PLANNING if getattr(words, n) is not None]
        if given_too:
            raise UsageError(
                "--plan says what is done already",
                found="--plan together with " + ", ".join(f"--{n}" for n in given_too),
                fix="leave out the others",
            )
        given = read_plan(Path(words.plan))
        if given.method == DOWNSAMPLE:
            raise UsageError(
                "the down-sampling baseline is not carried out from a plan",
                found=f"{words.plan} of a bundle that was down-sampled",
                fix=f"prunepass compile {words.model} --method {DOWNSAMPLE} --flops R -o DIR",
            )
    else:
        _check_request(words)
    loaded = _load(words)
    options: dict[str, Any] = {
        "backend": words.backend,
        "folder": folder,
        "batch": batch,
        "force": words.force,
        "name": words.model,
        "weights": loaded.weights,
        "preprocessing": loaded.preprocessing.to_dict(),
        "on_stage": lambda stage: say(stage, stage=True),
    }
    inputs = (loaded.example(),)
    if given is None and words.method == DOWNSAMPLE:
        result = downsample(
            loaded,
            flops=words.flops,
            rebuild=lambda size: _load(words, image_size=size).module,
            **options,
        )
    elif given is None and (words.images or _plans_layers(words)):
        say("capturing", stage=True)
        program = capture(loaded.module, inputs)
        made = _plan(words, program, loaded, say)
        result = compile_model(program, inputs, plan=made, **options)
    else:
        result = compile_model(
            loaded.module,
            inputs,
            method=words.method or DEFAULT,
            flops=words.flops,
            action=words.action,
            at=words.at,
            keep=_shares(words.keep),
            options=_options(words.option),
            plan=given,
            **options,
        )
    if words.json:
        return cast(dict[str, Any], json.loads(result.report.to_json()))
    say(str(result.report))
    say(f"bundle            {folder}")
    return {}


def generate(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Answers a prompt with a bundle."""
    if is_language_bundle(words.bundle):
        return language_commands.generate(words, say=say)
    return vlm_commands.generate(words, say=say)


def bench(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Times the engines of a bundle against each other."""
    if is_language_bundle(words.bundle):
        return language_commands.bench(words, say=say)
    if (
        words.runs < 3
        or any(b < 1 for b in words.batch)
        or (words.threads is not None and words.threads < 1)
    ):
        raise UsageError(
            "bench needs at least 3 runs, batches and threads of at least 1",
            found=f"--runs {words.runs} --batch {words.batch} --threads {words.threads}",
        )
    manifest, engines = load_engines(words.bundle, threads=words.threads)
    if manifest.batch is not None and words.batch != [manifest.batch]:
        say(f"the bundle is fixed to batch {manifest.batch}")
        words.batch = [manifest.batch]
    ratio = manifest.macs_ratio
    result: dict[str, Any] = {
        "model": manifest.model,
        "backend": manifest.backend,
        "macs_dense": manifest.macs_dense,
        "macs": manifest.macs,
        "macs_ratio": ratio,
        "batches": [],
    }
    (shape, kind), *_ = manifest.inputs.values()
    say(
        f"{manifest.model}, {manifest.backend}: {manifest.macs_dense / 1e9:.3f} -> "
        f"{manifest.macs / 1e9:.3f} GMAC ({ratio:.3f})"
    )
    for size in words.batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((size, *shape[1:]), generator=generator).to(getattr(torch, kind))
        timings = interleaved(engines, (images,), runs=words.runs)
        gain = speedup(timings["dense"], timings["compressed"])
        row = {
            "batch": size,
            "dense_ms": timings["dense"].median_ms,
            "compressed_ms": timings["compressed"].median_ms,
            "dense_quartiles_ms": timings["dense"].quartiles_ms,
            "compressed_quartiles_ms": timings["compressed"].quartiles_ms,
            "speedup": gain,
            "realised": gain * ratio,
        }
        result["batches"].append(row)
        say(
            f"  batch {size:<4} dense {row['dense_ms']:8.1f} ms   compressed "
            f"{row['compressed_ms']:8.1f} ms   speed-up {gain:.2f}   realised {gain * ratio:.2f}"
        )
    result["environment"] = environment(threads=words.threads)
    return result


def eval(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Quality of a bundle on labelled pictures."""
    manifest, engines = load_engines(words.bundle)
    if manifest.preprocessing is None:
        raise UsageError(
            "the bundle does not say how pictures are prepared",
            found="no preprocessing in bundle.json",
            fix="compile with the command line, or give preprocessing to prunepass.compile",
        )
    preprocessing = Preprocessing.from_dict(manifest.preprocessing).override(
        mean=words.mean, std=words.std, crop=words.crop
    )
    pictures = find_pictures(words.images)
    if words.limit is not None:
        if words.limit < 1:
            raise UsageError("--limit needs at least one picture", found=str(words.limit))
        if words.limit < len(pictures):
            pictures = pictures.split(words.limit)[0]
    with bar("pictures", len(pictures)) as advance:
        found = fidelity(
            engines["dense"],
            engines["compressed"],
            pictures.batches(preprocessing, manifest.batch or 16),
            progress=advance,
        )
    say(
        f"{found.count} pictures: top-1 {found.top1_dense:.1%} dense, {found.top1:.1%} compressed; "
        f"top-5 {found.top5_dense:.1%}, {found.top5:.1%}\n"
        f"agreement {found.agreement:.1%}, KL {found.kl:.4f} +- {found.kl_error:.4f} nats"
    )
    if manifest.weights == "random":
        say("the weights are random: these figures say nothing about the method")
    return {"model": manifest.model, "weights": manifest.weights, **asdict(found)}


def _load(words: Namespace, *, image_size: int | None = None) -> LoadedModel:
    return load_model(
        words.model,
        weights=words.weights,
        image_size=image_size,
        mean=words.mean,
        std=words.std,
        crop=words.crop,
    )


def _plans_layers(words: Namespace) -> bool:
    """Whether layers are to be dropped, or a planner decides."""
    return any(getattr(words, n) is not None for n in ("drop_layers", "target", "floor"))


def _check_request(words: Namespace) -> None:
    """Refuses what needs no model to be refused."""
    if words.flops is None and _plans_layers(words):
        return
    name = words.method or DEFAULT
    named = ("action", "at", "images", "keep", "option")
    ignored = [n for n in named if getattr(words, n) is not None]
    if name == DOWNSAMPLE and ignored:
        raise UsageError(
            "down-sampling reduces no tokens inside the graph",
            found=f"--method {DOWNSAMPLE} together with --{ignored[0]}",
            fix="leave it out",
        )
    if name != DOWNSAMPLE:
        chosen = method(name)
        if words.flops is None and words.keep is None and chosen.shape != "stages":
            raise UsageError(
                f"method {name!r} needs a budget", found="no --flops", fix="--flops 0.6"
            )
        _shares(words.keep)
        _options(words.option)
        if words.keep is not None and words.images is not None:
            raise UsageError(
                "--images searches what to keep",
                found="--images together with --keep",
                fix="leave out one of them",
            )
    elif words.flops is None:
        raise UsageError(f"method {name!r} needs a budget", found="no --flops", fix="--flops 0.6")
    if words.flops is not None and not 0 < words.flops <= 1:
        raise PlanError(
            "--flops is a share of the dense model's MACs, in (0, 1]",
            found=str(words.flops),
            fix="--flops 0.6 asks for 60 %",
        )


def _shares(text: str | None) -> tuple[float, ...] | None:
    """`--keep` as shares of the tokens that arrive at each block.

    Raises:
        UsageError: It is no list of numbers.
    """
    found = vlm_commands.shares(text)
    if isinstance(found, str):
        raise UsageError(f"--keep {text!r} is no list of shares", found=found, fix="--keep 0.7")
    return found


def _options(given: Sequence[str] | None) -> dict[str, Plain] | None:
    """`--option NAME=VALUE` of the method's rule; values are JSON, or words as they stand.

    Raises:
        UsageError: One has no value.
    """
    found: dict[str, Plain] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise UsageError(
                f"--option {text!r} names no value", found=text, fix="--option alignment=hold"
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found or None


def _plan(words: Namespace, program: ExportedProgram, loaded: LoadedModel, say: Say) -> Plan:
    if words.target is not None or words.floor is not None:
        return target_plan(words, loaded, program, say)
    if words.drop_layers is not None:
        return drop_plan(words, loaded, program, say)
    name = words.method or DEFAULT
    if not words.images:
        return make_plan(
            program, method=name, flops=words.flops, action=words.action, at=words.at,
            keep=_shares(words.keep), options=_options(words.option),
        )  # fmt: skip
    if words.flops is None:
        raise UsageError("a search needs a budget", found="--images without --flops", fix="--flops")
    pictures = find_pictures(words.images)
    say(f"searching a schedule on {len(pictures)} pictures", stage=True)
    images = torch.cat([x for x, _ in pictures.batches(loaded.preprocessing, 32)])
    with bar("schedules", None) as advance:
        found = search(
            program,
            images,
            method=name,
            flops=words.flops,
            action=words.action,
            at=words.at,
            minutes=words.minutes,
            progress=advance,
        )
    say(
        f"{found.tried} schedules tried; KL {found.kl_fit:.4f} where chosen, "
        f"{found.kl_unseen:.4f} +- {found.kl_error:.4f} on pictures the search did not see",
        stage=True,
    )
    return found.plan
