"""Token reduction: fewer tokens behind a site, by dropping or merging, inside the graph.

All steps are laid into one opened graph, then sealed once, so the cost grows linearly with depth.
Every value with a token axis belongs to a stage (`token_stages`); what a rule scores by is found
where it is asked for (`rule_inputs`).

Which tokens stay, go and are merged where is labelled `SITE:reduce.kept`, `.dropped` and `.target`
in the program that comes out, so that an engine can be asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.attention import find_attentions
from prunepass.graph import meta
from prunepass.graph.arguments import operands, replace_argument
from prunepass.graph.edit import open_module, seal
from prunepass.graph.splice import insert_call
from prunepass.passes.bind_steps import Cut, bind
from prunepass.passes.insert_reduction import insert_reduction
from prunepass.passes.missing_tokens import MissingTokens
from prunepass.passes.rule_inputs import RuleInputs
from prunepass.passes.token_sizes import bias_attention, weigh_mean
from prunepass.passes.token_stages import Stage, Stages
from prunepass.plans import Step
from prunepass.records import PassRecord
from prunepass.rules.prefix import first_positions, first_queries
from prunepass.rules.token_gaps import note_widths, put_back


def reduce_tokens(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """The program with every step's reduction in it, and a record of what was done.

    Raises:
        PlanError: A step names an unknown site, asks for more tokens than there are, or for a
            tensor that its block does not have.
        UnsupportedGraph: The graph does not allow another number of tokens at a site.
    """
    module = open_module(program)
    reducer = _Reducer(module, steps)
    record = reducer.run()
    return seal(module, program, told=reducer.told), record


def draft(program: ExportedProgram, steps: Sequence[Step]) -> tuple[GraphModule, PassRecord]:
    """As `reduce_tokens`, but as an unsealed module that runs eagerly: quick, for searching."""
    module = open_module(program)
    return module, edit(module, steps)


def edit(module: GraphModule, steps: Sequence[Step]) -> PassRecord:
    """As `reduce_tokens`, in place, on an opened program."""
    record = _Reducer(module, steps).run()
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return record


class _Reducer:
    """One walk over an opened graph."""

    def __init__(self, module: GraphModule, steps: Sequence[Step]) -> None:
        self.graph = module.graph
        bound = bind(module, steps)
        self.cuts, self.prefix, self.table = bound.cuts, bound.prefix, bound.table
        self.trace, self.narrowed = bound.trace, bound.narrowed
        self.attentions = {a.core: a for a in find_attentions(self.graph)}
        self.biased = 0
        self.told: dict[str, Node] = {}
        self.places, self.until = bound.places, bound.until
        self.last: Node | None = None
        self.missing = MissingTokens(
            self.graph, bound.places, bound.orders, tokens=self.trace.tokens, fixed=bound.fixed,
            positions=lambda stage: self.stages.positions(0, stage), widths=self._widths,
        )  # fmt: skip
        self.stages = Stages(
            self.graph, self.trace.axes, self.trace.tokens, lifted=self.missing.lifted
        )
        self.inputs = RuleInputs(self.graph, self.table, self.stages, bound.fixed)

    def run(self) -> PassRecord:
        cuts = {cut.node: cut for cut in self.cuts}
        frozen: dict[Node, list[Any]] = {}
        live: dict[Node, dict[Any, Any]] = {}
        for size in self.trace.frozen:
            frozen.setdefault(size.node, []).append(size)
        for live_in in self.trace.live_ins:
            live.setdefault(live_in.node, {})[live_in.path] = live_in
        self.stages.of[self.trace.site] = 0
        nodes = list(self.graph.nodes)
        for node in nodes[nodes.index(self.trace.site) :]:
            if node is not self.trace.site and any(
                n in self.stages.of for n in node.all_input_nodes
            ):
                self._visit(node, frozen.get(node, []), live.get(node, {}))
            if node in cuts and node not in self.stages.replaced:
                self._cut(cuts[node])
            if self.until is not None and node is self.until:
                self._restore(self.until)
                break
        return PassRecord(
            kind="reduce_tokens",
            applied=tuple(cut.step.site for cut in self.cuts),
            tokens={cut.step.site: (cut.before, cut.after) for cut in self.cuts},
            always_kept=(*range(self.prefix), *self.inputs.fixed),
            details={
                "frozen_sizes": len(self.trace.frozen),
                "live_ins": len(self.trace.live_ins),
                "biased_attentions": self.biased,
                **({"aligned_scans": self.missing.aligned} if self.missing.aligned else {}),
            },
        )

    def _narrow(self, node: Node, cut: Cut, live: dict[Any, Any]) -> None:
        """Lets only the prefix tokens ask: the queries of a fused attention are sliced."""
        stage = self._lift_operands(node, live)
        self._bias(node, stage)
        label = f"{cut.step.site}:reduce"
        query, prefix = node.args[0], self.prefix
        sliced = insert_call(
            self.graph, first_queries, (query, prefix), before=node, label=f"{label}.queries"
        )
        node.args = (sliced, *node.args[1:])
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if isinstance(mask, Node):
            rows = insert_call(
                self.graph, first_queries, (mask, prefix), before=node, label=f"{label}.mask"
            )
            replace_argument(
                node, ("args", 3) if len(node.args) > 3 else ("kwargs", "attn_mask"), rows
            )
        kept = insert_call(
            self.graph, first_positions, (query, prefix), before=node, label=f"{label}.kept"
        )
        self.stages.every.append(Stage(prefix, kept, None, {stage: kept}))
        self.stages.of[node] = stage + 1
        self.stages.replaced[cut.node] = cut.node

    def _visit(self, node: Node, frozen: list[Any], live: dict[Any, Any]) -> None:
        """Brings a node's operands to one stage, and its sizes to that stage's count."""
        if node not in self.trace.axes:
            stage = self._lift_operands(node, live)
            source = node.args[0] if node.args else None
            if stage and self.missing.reads_fixed(node, self.trace.axes.get(source, ())):  # type: ignore[arg-type]
                self.missing.read_fixed(node, stage)
                return
            # Attention whose queries are no tokens: a pooling latent, a class token.
            self._bias(node, stage)
            size = self.stages.every[stage].size
            if size is not None:
                weigh_mean(self.graph, node, size, self.trace.axes)
            return
        if node in self.narrowed:
            self._narrow(node, self.narrowed[node], live)
            return
        stage = self._lift_operands(node, live)
        self.stages.of[node] = stage
        if stage == 0:
            return
        for size in frozen:
            replace_argument(node, size.path, self.stages.every[stage].tokens + size.offset)
        self._bias(node, stage)
        self.missing.treat(node, stage, self.stages.every[stage].tokens)

    def _lift_operands(self, node: Node, live: dict[Any, Any]) -> int:
        stages = self.stages
        current = [stages.current(n) for n in node.all_input_nodes]
        stage = max(stages.of[n] for n in current if n in stages.of)
        rank = len(meta.shape(node) or ())
        for path, operand in operands(node):
            if path in live:
                if stage > 0:
                    axes = live[path].axes
                    new = stages.gather(operand, 0, stage, axes, rank, node)
                    replace_argument(node, path, new)
                continue
            new = stages.current(operand)
            behind = stages.of.get(new, stage)
            if behind < stage and stages.axes[new]:
                new = stages.gather(new, behind, stage, stages.axes[new], rank, node)
            if new is not operand:
                replace_argument(node, path, new)
        return stage

    def _bias(self, node: Node, stage: int) -> None:
        """Keys that stand for several tokens count as often, if the node is an attention."""
        size = self.stages.every[stage].size
        if node in self.attentions and size is not None:
            self.biased += bias_attention(self.graph, self.attentions[node], size, self.trace.axes)

    def _cut(self, cut: Cut) -> None:
        """Inserts selection and reduction right behind the residual addition of a site."""
        stage = self.stages.number + 1
        if cut.after == cut.before:
            return
        at = cut.node.next
        if self.until is not None:
            self.last = self._remember(cut.node, stage - 1, at)
        made = insert_reduction(
            self.graph, cut, self.inputs, size=self.stages.here.size, prefix=self.prefix, at=at
        )
        self.told |= made.told
        reduced = made.tokens
        self.stages.every.append(Stage(cut.after, made.kept, made.size, {stage - 1: made.kept}))
        self.stages.replaced[cut.node] = reduced
        self.stages.of[reduced] = stage
        self.stages.axes[reduced] = ((1, 0),)
        if self.places.alignment == "decay" and self.missing.biases:
            self.stages.here.widths = self._note_widths(cut, stage)

    def _remember(self, node: Node, stage: int, at: Node) -> Node:
        """[B, T, C], all tokens as they last were, those at a node as they are there."""
        if self.last is None:
            return node
        args = (self.last, node, self.stages.positions(0, stage))
        return insert_call(self.graph, put_back, args, before=at, label="restore_tokens")

    def _restore(self, node: Node) -> None:
        """Lets what follows a node see all tokens again."""
        stage = self.stages.number
        if stage == 0:
            return
        users = list(node.users)
        back = self._remember(node, stage, node.next)
        for user in users:
            user.replace_input_with(node, back)

    def _note_widths(self, cut: Cut, stage: int) -> Node:
        """[B, T], what each token that is gone behind a cut amounts to."""
        here = self.stages.numbers(cut.node, stage - 1, cut.step.site)
        before = self.stages.every[stage - 1].widths
        kept = self.stages.positions(0, stage)
        block = cut.step.site[: cut.step.site.index("]") + 1]
        width = self.missing.widths_of(f"{block}.scan:core", here, before=kept.next)
        if before is None:
            before = insert_call(
                self.graph, no_widths, (here, self.trace.tokens), before=width.next, label=block
            )
        after = max((before, width), key=list(self.graph.nodes).index)
        return insert_call(
            self.graph, note_widths, (before, here, kept, width), before=after.next,
            label=f"{cut.step.site}:reduce.widths",
        )  # fmt: skip

    def _widths(self, stage: int) -> Node:
        found = self.stages.every[stage].widths
        assert found is not None
        return found


def no_widths(here: torch.Tensor, tokens: int) -> torch.Tensor:
    """[B, tokens] zeros, as many rows as `here` [B, K]."""
    return torch.zeros(here.shape[0], tokens, device=here.device)
