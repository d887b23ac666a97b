"""Fewer image tokens out of a vision encoder, before any language model sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.sites import labelled
from prunepass.errors import PlanError, UnsupportedGraph, nearest
from prunepass.graph import meta
from prunepass.graph.edit import dynamic_shapes, open_module, seal_with
from prunepass.graph.simplify import drop_unread
from prunepass.graph.splice import insert_call
from prunepass.plans import Step
from prunepass.records import PassRecord
from prunepass.rules.attention import attention_with_probabilities
from prunepass.rules.diversity import diverse_tokens
from prunepass.rules.merge import gather_tokens
from prunepass.rules.vision_zip import vision_zip

SITE = "image_features"
RULES = ("diverse", "vision-zip")


def select_image_features(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """A vision encoder [I, 3, H, W] -> [I, N, C] that gives `keep` tokens instead of N.

    Raises:
        PlanError: More than one step, an unknown rule, or `keep` is no count from 1 to N.
        UnsupportedGraph: The encoder has no class token or attention for the rule to read.
    """
    if len(steps) != 1 or steps[0].site != SITE:
        raise PlanError(
            "image features are selected once", found=f"{len(steps)} steps", fix=f"site {SITE!r}"
        )
    step = steps[0]
    module = open_module(program)
    # Features may be of a layer before the last one: what lies behind it is traced, unread.
    drop_unread(module.graph)
    output = next(n for n in module.graph.nodes if n.op == "output")
    (features,), _ = torch.utils._pytree.tree_flatten(output.args)
    count = (meta.shape(features) or (0, 0))[1]
    if not isinstance(step.keep, int) or not isinstance(count, int) or not 1 <= step.keep <= count:
        raise PlanError(
            f"cannot keep {step.keep} of {count} image tokens",
            found=f"keep={step.keep!r}",
            fix=f"a count from 1 to {count}",
        )
    record = PassRecord("select_image_features", (SITE,), {SITE: (count, step.keep)})
    if step.keep == count:
        return program, record
    if step.rule == "diverse":
        new = insert_call(
            module.graph, diverse, (features,), {"keep": step.keep}, before=output,
            label=f"{SITE}:reduce",
        )  # fmt: skip
        output.replace_input_with(features, new)
    elif step.rule == "vision-zip":
        _zip(module, step, count)
    else:
        raise PlanError(
            f"there is no rule called {step.rule!r} for image features",
            found=f"rule {step.rule!r}",
            fix=f"one of {nearest(step.rule, RULES)}",
        )
    args, _ = program.example_inputs
    sealed = seal_with(module, tuple(args), dynamic_shapes(program, bounds=False))
    _check(sealed, step)
    return sealed, record


def _check(program: ExportedProgram, step: Step) -> None:
    """Nothing, if an encoder gives as many tokens as were asked for.

    Raises:
        UnsupportedGraph: It does not.
    """
    output = next(n for n in program.graph.nodes if n.op == "output")
    found = (meta.shape(output.args[0][0]) or (0, 0))[1]
    if found != step.keep:
        raise UnsupportedGraph(
            f"{step.rule} did not reach the features of this encoder",
            found=f"{found} tokens, {step.keep} were asked for",
            fix="divprune, which reads features only",
        )


def diverse(features: Tensor, *, keep: int) -> Tensor:
    """[I, keep, C]: the tokens of `features` [I, N, C] that are far from each other."""
    return gather_tokens(features, diverse_tokens(features, keep=keep))


def _zip(module: GraphModule, step: Step, count: int) -> None:
    """Lets the encoder's last block in use give its class token and `keep` others."""
    graph, table = module.graph, labelled(module.graph)
    blocks = sum(label.endswith(".attention:core") for label in table)
    site = f"block[{blocks - 1}]"
    end = table.get(f"{site}.output:output")
    core = table.get(f"{site}.attention:core")
    shape = meta.shape(end) if end is not None else None
    if end is None or core is None or shape is None or shape[1] != count + 1:
        raise UnsupportedGraph(
            "vision-zip reads what a class token attends to",
            found="the encoder has no class token besides its image tokens"
            if core is not None
            else "the encoder has no attention that is recognised",
            fix="divprune, which reads features only",
        )
    at = end.next
    pair = insert_call(
        graph, attention_with_probabilities, core.args, core.kwargs, before=core, label=f"{SITE}:a"
    )
    out, probabilities = (
        insert_call(graph, _item, (pair, i), before=core, label=f"{SITE}:a{i}") for i in (0, 1)
    )
    core.replace_all_uses_with(out)
    graph.erase_node(core)
    key: Node = table[f"{site}.attention:key"]
    users = list(end.users)
    new = insert_call(
        graph, vision_zip, (end, probabilities, key),
        {"keep": step.keep, "contextual": _contextual(step)}, before=at, label=f"{SITE}:reduce",
    )  # fmt: skip
    for user in users:
        user.replace_input_with(end, new)


def _contextual(step: Step) -> int:
    """The paper's 10 of 64 unless the step says otherwise."""
    given = step.options.get("contextual")
    return given if isinstance(given, int) else round(int(step.keep) * 10 / 64)


def _item(values: tuple[Tensor, Tensor], index: int) -> Tensor:
    return values[index]
