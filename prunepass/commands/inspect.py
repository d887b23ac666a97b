"""`prunepass inspect`: what can be reduced in a model, where, and what each part costs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.fx import Node

from prunepass.analyse.counting import Count, Counts, counts
from prunepass.analyse.projections import activated_gate, projections, role_of
from prunepass.analyse.sites import fingerprint
from prunepass.analyse.sites import sites as find_sites
from prunepass.apply import apply_plan
from prunepass.bundle import read_plan
from prunepass.capturing import capture
from prunepass.commands.request import Say, check_model, load
from prunepass.commands.words import model_arguments
from prunepass.graph import meta
from prunepass.language.programs import capture as capture_language
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.sparse_gain import SMALLEST
from prunepass.plans import Plan
from prunepass.records import Site
from prunepass.rules.input_table import input_rule
from prunepass.sources.language import is_language, load_language

_COLUMNS = ("site", "module", "tokens", "channels", "heads", "MMAC", "parameters")


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    model_arguments(parser)
    parser.add_argument("--plan", metavar="FILE", help="what this plan would save, in theory")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Lists the sites of a model, or the linear layers of one of text."""
    check_model(words.model)
    plan = read_plan(Path(words.plan)) if words.plan else None
    if is_language(words.model):
        return _language(words, plan, say)
    loaded = load(words)
    program = capture(loaded.module, (loaded.example(),))
    sites = find_sites(program)
    cost = counts(program)
    total = cost.total
    say(
        f"{words.model}: {total.macs / 1e9:.3f} GMAC ({total.flops / 1e9:.3f} GFLOP) an example, "
        f"{total.parameters / 1e6:.1f} M parameters, "
        f"{len(sites)} sites, {sites.prefix_tokens} prefix tokens"
        + (f", {len(sites.fixed_tokens)} more that always stay" if sites.fixed_tokens else "")
    )
    say(_spent(cost))
    after = None if plan is None else counts(apply_plan(program, plan))
    if after is not None:
        say(_saved(words.plan, cost, after))
    if not len(sites):
        say(
            "  no attention block with a residual stream was recognised, so no token can go.\n"
            "  The model still compiles as it is: prunepass.build(prunepass.capture(...))"
        )
    if words.json:
        found: dict[str, Any] = {
            "model": words.model,
            "macs": total.macs,
            "prefix_tokens": sites.prefix_tokens,
            "fixed_tokens": list(sites.fixed_tokens),
            "fingerprint": sites.fingerprint,
            "sites": [asdict(site) for site in sites],
            "counts": cost.to_dict(),
        }
        return found if after is None else found | {"counts_with_plan": after.to_dict()}
    if len(sites):
        _show(list(sites), cost, after, say)
    return {}


def _language(words: Namespace, plan: Plan | None, say: Say) -> dict[str, Any]:
    """Lists the linear layers of a language model that can read fewer inputs."""
    program = capture_language(load_language(words.model, weights=words.weights).module)
    cost = counts(program)
    after = None if plan is None else counts(apply_plan(program, plan))
    layers = [_layer(site, node) for site, node in projections(program.graph).items()]
    total, inside = cost.total, sum(layer["macs"] for layer in layers)
    say(
        f"{words.model}: {total.macs / 1e9:.4f} GMAC ({total.flops / 1e9:.4f} GFLOP) a token, "
        f"{total.parameters / 1e6:.1f} M parameters, {len(layers)} linear layers that can read "
        f"fewer inputs, {inside / total.macs:.1%} of it"
    )
    say(_spent(cost))
    if after is not None:
        say(_saved(words.plan, cost, after))
    say(f"  prunepass compile {words.model} --method wina --keep 0.5 -o DIR")
    if words.json:
        found: dict[str, Any] = {
            "model": words.model, "macs": total.macs, "fingerprint": fingerprint(program),
            "layers": layers, "counts": cost.to_dict(),
        }  # fmt: skip
        return found if after is None else found | {"counts_with_plan": after.to_dict()}
    rows = [
        [x["site"], str(x["inputs"]), str(x["outputs"]), f"{x['macs'] / 1e6:.3f}",
         ", ".join(x["methods"]), "yes" if x["large"] else f"no: below --smallest {SMALLEST}"]
        for x in layers
    ]  # fmt: skip
    say.table(("site", "inputs", "outputs", "MMAC", "methods", "large enough to gain"), rows)
    return {}


def _layer(site: str, node: Node) -> dict[str, Any]:
    """What there is to tell of a linear layer."""
    weight = node.args[1]
    assert isinstance(weight, Node)
    outputs, inputs = meta.concrete_shape(weight, 1) or (0, 0)
    gated = activated_gate(node) is not None
    methods = [
        name
        for name, method in INPUT_METHODS.items()
        if role_of(site) in method.roles
        and (gated or input_rule(method.rule_of(role_of(site))).score != "gate")
    ]
    return {
        "site": site, "inputs": inputs, "outputs": outputs, "macs": inputs * outputs,
        "methods": methods, "large": inputs * outputs >= SMALLEST,
    }  # fmt: skip


def _spent(cost: Counts) -> str:
    """What the multiply-accumulates are spent on, and bytes."""
    kinds = ", ".join(f"{kind} {macs / 1e9:.3f}" for kind, macs in cost.kinds.items())
    total = cost.total
    unknown = f"\n  not counted: {', '.join(cost.uncounted)}" if cost.uncounted else ""
    return (
        f"  GMAC by kind: {kinds}\n"
        f"  weights {total.weight_bytes / 1e6:.1f} MB; activations "
        f"{total.activation_bytes / 1e6:.1f} MB written, "
        f"{cost.peak_activation_bytes / 1e6:.1f} MB at one time{unknown}"
    )


def _saved(plan: str, cost: Counts, after: Counts) -> str:
    """What a plan saves, marked as theory."""
    before, now = cost.total, after.total
    extra = ", ".join(
        f"{kind} {after.kinds[kind] / now.macs:.1%}"
        for kind in ("scoring", "merging")
        if kind in after.kinds
    )
    return (
        f"  with {plan}: {now.macs / 1e9:.3f} GMAC, {now.macs / before.macs:.3f} of the dense "
        f"model's{f', of it {extra}' if extra else ''}\n"
        "  in theory: operations saved are not time saved; `prunepass bench` measures a bundle"
    )


def _show(sites: Sequence[Site], cost: Counts, after: Counts | None, say: Say) -> None:
    planned = () if after is None else ("with plan",)
    before, now = cost.sites, {} if after is None else after.sites
    rows, last = [], ""
    for site in sites:
        verdict = "yes" if site.refusal is None else f"no: {site.refusal}"
        shown = "no: as above" if verdict == last and verdict != "yes" else verdict
        last = verdict
        mine = before.get(site.label)
        heads = "" if site.heads is None else str(site.heads)
        rows.append([
            site.label, site.module, str(site.tokens), str(site.channels), heads,
            _millions(mine), "" if mine is None else f"{mine.parameters / 1e6:.2f} M",
            *(() if after is None else (_millions(now.get(site.label)),)), shown,
        ])  # fmt: skip
    say.table((*_COLUMNS, *planned, "tokens can be reduced"), rows)


def _millions(count: Count | None) -> str:
    return "" if count is None else f"{count.macs / 1e6:.1f}"
