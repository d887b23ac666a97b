"""Fewer image tokens behind chosen layers of a language model, during prefill.

The program takes a prompt as embeddings. At each step the image tokens are scored, the best of each
image stay together with all text, and everything behind is computed on the shorter sequence. Keys
and values that the program returns are then shorter in later layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.sequence import Sequence as TokenSequence
from prunepass.analyse.sequence import behind, between, branch_ends, hoist, ungrouped
from prunepass.analyse.sites import labelled
from prunepass.errors import PlanError
from prunepass.graph.edit import dynamic_shapes, loosen, open_module, seal_with
from prunepass.graph.simplify import fold_duplicates
from prunepass.graph.splice import insert_call
from prunepass.passes.bind_image_steps import (
    OPTIONS,
    PROMPT,
    ImageCut,
    bind_image_steps,
    branches_read,
    shared_options,
)
from prunepass.passes.sequence_stages import Lift, Stage
from prunepass.plans import Step
from prunepass.records import PassRecord
from prunepass.rules.image_table import choose_image_tokens, image_rule
from prunepass.rules.image_tokens import (
    at_positions,
    carry,
    text_raters,
    without_other_image_tokens,
)
from prunepass.rules.instruction_attention import mask_rows, paid_to_image
from prunepass.rules.merge import gather_tokens
from prunepass.rules.transition import transition_variation


def prune_image_tokens(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """The program with fewer image tokens behind each step's site, and a record.

    One more output for each step: [B, T'] int64, where the tokens that stay stood in the prompt.

    Raises:
        PlanError: A step names an unknown site, rule or option, keeps more than is left, or the
            steps differ in what becomes of positions.
        UnsupportedGraph: The program reckons with the length of its sequence.
    """
    module = open_module(program)
    pruner = _Pruner(module, steps)
    record = pruner.run()
    if not pruner.stages[1:]:
        return program, record
    args, _ = program.example_inputs
    sealed = seal_with(module, tuple(args), dynamic_shapes(program, bounds=False))
    loosen(sealed)
    return sealed, record


class _Pruner:
    def __init__(self, module: GraphModule, steps: Sequence[Step]) -> None:
        self.graph = module.graph
        inputs = {n.target: n for n in self.graph.find_nodes(op="placeholder")}
        missing = [name for name in PROMPT if name not in inputs]
        if missing:
            raise PlanError(
                "this program is no prefill of a language model",
                found=f"it has no input {', '.join(missing)}",
                fix="prunepass.vlm.split gives such programs",
            )
        self.stream, place, self.image, self.asking, self.votes = (inputs[n] for n in PROMPT)
        self.original = self.image
        hoist(self.graph, self.stream)
        fold_duplicates(self.graph)
        self.table = labelled(self.graph)
        self.cuts = bind_image_steps(self.table, steps)
        self.options = {**OPTIONS, **shared_options(steps)}
        root = Stage(self.stream)
        self.stages = [root]
        placed = behind(self.graph, place) - behind(self.graph, self.stream)
        self.lift = Lift(
            self.graph,
            TokenSequence(self.graph, self.stream),
            root,
            placed=placed,
            positions=self.options["positions"],
        )
        self.taps = self._taps(steps)
        self.transition: Node | None = None
        self.keys: dict[Node, Node] = {}  # of the next layer, as made for the last score

    def run(self) -> PassRecord:
        cuts = {cut.node: cut for cut in self.cuts}
        taps = {tap[0]: tap for tap in self.taps}
        if self.options["raters"] and self.cuts:
            self._vote()
        for node in list(self.graph.nodes):
            if node.op == "output":
                continue
            if len(self.stages) > 1 and any(
                self.lift.replaced.get(n, n) in self.lift.stage_of for n in node.all_input_nodes
            ):
                self._visit(node)
            if node in taps:
                self._tap(*taps[node])
            if node in cuts:
                self._cut(cuts[node])
        self._return_positions()
        return PassRecord(
            kind="prune_image_tokens",
            applied=tuple(cut.step.site for cut in self.cuts),
            details={"stages": len(self.stages), "taps": len(self.taps)},
        )

    def _visit(self, node: Node) -> None:
        stage = self.stages[-1]
        # What belongs to an earlier stage alone is not behind a cut and is never visited.
        node.args, node.kwargs = self.lift.arguments(node, stage, {}, node)
        self.lift.stage_of[node] = stage

    def _taps(self, steps: Sequence[Step]) -> list[tuple[Node, Node, Node]]:
        """(addition, what enters the module, what leaves it), for each module that is read."""
        found = []
        layers = self.options["accumulate"]
        reads = any("transition" in image_rule(cut.step.rule).needs for cut in self.cuts)
        if reads and not [layer for layer in layers if layer <= self.cuts[0].layer]:
            raise PlanError(
                "no transition is known where the first tokens go",
                found=f"accumulate={layers}, first step behind layer {self.cuts[0].layer}",
                fix=f"accumulate=[{self.cuts[0].layer}] or an earlier layer",
            )
        for site in branches_read(steps):
            source, addition = (self.table.get(f"{site}:{end}") for end in ("input", "output"))
            if source is None or addition is None:
                raise PlanError(
                    f"there is no {site} whose change of the image tokens could be read",
                    found=f"accumulate={layers}, and a program without that module",
                    fix="accumulate layers that are whole, or a rule that reads none: instruction",
                )
            found.append((addition, *branch_ends(self.graph, source, addition)))
        return found

    def _tap(self, addition: Node, entering: Node, leaving: Node) -> None:
        """Adds the transition variation of one module to what is known of the image tokens."""
        label = "transition"
        rows = [
            insert_call(
                self.graph, at_positions, (self._now(n), self.image), before=addition, label=label
            )
            for n in (entering, leaving)
        ]
        found = insert_call(
            self.graph, transition_variation, tuple(rows),
            {"absolute": self.options["absolute"]}, before=addition, label=label,
        )  # fmt: skip
        if self.transition is not None:
            found = insert_call(
                self.graph, torch.add, (self.transition, found), before=addition, label=label
            )
        self.transition = found

    def _now(self, node: Node) -> Node:
        return self.lift.replaced.get(node, node)

    def _vote(self) -> None:
        first = self.cuts[0].node
        self.votes = insert_call(
            self.graph, text_raters, (self.stream, self.image, self.asking, self.votes),
            before=first, label="text_raters",
        )  # fmt: skip

    def _cut(self, cut: ImageCut) -> None:
        """Inserts scores, choice and the shorter sequence right behind a layer."""
        at, label = cut.node.next, f"{cut.step.site}:reduce"
        hidden = cut.node
        roles = {name: self._role(name, cut, at) for name in image_rule(cut.step.rule).needs}
        options = {k: v for k, v in cut.step.options.items() if k not in OPTIONS}
        chosen = insert_call(
            self.graph, choose_image_tokens,
            (cut.step.rule, roles, self.image, self.original),
            {"keep": cut.keep, "options": options}, before=at, label=f"{label}.select",
        )  # fmt: skip
        shorter = insert_call(
            self.graph, without_other_image_tokens, (hidden, self.image, chosen, self.asking),
            before=at, label=f"{label}.positions",
        )  # fmt: skip
        kept, image, asking = (
            insert_call(self.graph, _item, (shorter, i), before=at, label=f"{label}.{name}")
            for i, name in enumerate(("kept", "image", "asking"))
        )
        reduced = insert_call(
            self.graph, gather_tokens, (hidden, kept), before=at, label=f"{label}.tokens"
        )
        if self.transition is not None:
            self.transition = insert_call(
                self.graph, carry, (self.transition, self.image, chosen), before=at,
                label=f"{label}.transition",
            )  # fmt: skip
        stage = Stage(reduced, self.stages[-1], kept)
        self.stages.append(stage)
        self._take_keys_over(stage, at)
        self.lift.replaced[hidden] = reduced
        self.lift.stage_of[reduced] = stage
        self.lift.made[reduced] = ((1, 0),)
        self.image, self.asking = image, asking

    # What scores are made of

    def _role(self, name: str, cut: ImageCut, at: Node) -> Node:
        if name == "transition":
            assert self.transition is not None
            return self.transition
        if name == "image":
            return insert_call(
                self.graph, at_positions, (cut.node, self.image), before=at,
                label=f"{cut.step.site}:reduce.image",
            )  # fmt: skip
        return self._instruction(cut, at)

    def _instruction(self, cut: ImageCut, at: Node) -> Node:
        """[B, I N]: attention that the asking rows pay to the image tokens."""
        label, here = f"{cut.step.site}:reduce.score", self.stages[-1]
        asked = cut.step.options.get("layer", OPTIONS["layer"])
        block = cut.layer if asked == "next" else cut.layer - 1
        core = self.table[f"block[{block}].attention:core"]
        rows = Stage(cut.node, here, self.asking, rows=True)
        key = ungrouped(self.table[f"block[{block}].attention:key"])
        query = self.table[f"block[{block}].attention:query"]
        if asked == "next":
            picked = insert_call(
                self.graph, gather_tokens, (cut.node, self.asking), before=at, label=label
            )
            rows.hidden = picked
            query = self._copies(cut.node, picked, query, rows, at)[query]
            self.keys = self._copies(cut.node, cut.node, key, here, at)
            key = self.keys[key]
        else:
            query = self.lift.operand(query, rows, rank=4, before=at)
        mask = core.args[3] if len(core.args) > 3 else core.kwargs.get("attn_mask")
        if isinstance(mask, Node):
            mask = self.lift.operand(mask, here, rank=4, before=at)
            mask = insert_call(self.graph, mask_rows, (mask, self.asking), before=at, label=label)
        return insert_call(
            self.graph, paid_to_image, (query, key, mask, self.asking, self.votes, self.image),
            {"scale": core.kwargs.get("scale")}, before=at, label=label,
        )  # fmt: skip

    def _copies(
        self, source: Node, given: Node, end: Node, stage: Stage, at: Node
    ) -> dict[Node, Node]:
        """The way from `source` to `end` once more, from `given`, with the tokens of a stage."""
        copies = {source: given}
        for node in between(self.graph, source, [end]):
            args, kwargs = self.lift.arguments(node, stage, copies, at)
            with self.graph.inserting_before(at):
                copy = self.graph.create_node(node.op, node.target, args, kwargs)
            copy.meta = {k: v for k, v in node.meta.items() if k != "custom"}
            copies[node] = copy
        return copies

    def _take_keys_over(self, stage: Stage, at: Node) -> None:
        """The next layer's keys, made for scoring, are not made again for the tokens that stay."""
        keys, self.keys = self.keys, {}
        for node, copy in keys.items():
            if node.target is not torch.ops.aten.linear.default:
                continue
            taken = insert_call(
                self.graph, gather_tokens, (copy, stage.kept), before=at, label="sequence:keys"
            )
            self.lift.replaced[node] = taken
            self.lift.stage_of[taken] = stage
            self.lift.made[taken] = ((1, 0),)

    def _return_positions(self) -> None:
        output = next(n for n in self.graph.nodes if n.op == "output")
        extra = [self.lift.origin(stage) for stage in self.stages[1:]]
        if extra:
            self.graph.set_codegen(torch.fx.graph.CodeGen())
            given = output.args[0]
            flat, _ = torch.utils._pytree.tree_flatten(given)
            output.args = ((*flat, *extra),)


def _item(values: Any, index: int) -> Any:
    return values[index]
