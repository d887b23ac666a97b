"""Token reduction: fewer tokens behind a site, by dropping or merging, inside the graph.

All steps are laid into one opened graph, then sealed once, so the cost grows linearly with depth.
A *stage* is the stretch between two reductions; stage 0 has all tokens. Every value with a token
axis belongs to a stage, and an operand from an earlier stage is gathered where it is used.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.attention import Attention, find_attentions
from prunepass.analyse.sites import (
    labelled,
    narrowed_attention,
    prefix_tokens,
    roles,
    tokens_kept_apart,
)
from prunepass.analyse.token_trace import (
    Axes,
    Refusal,
    TokenTrace,
    replace_argument,
    trace_tokens,
)
from prunepass.errors import PlanError, UnsupportedGraph, nearest
from prunepass.graph import meta
from prunepass.graph.edit import open_module, seal
from prunepass.graph.splice import insert_call
from prunepass.plan import Step
from prunepass.records import PassRecord
from prunepass.rules.attention import attention_with_probabilities
from prunepass.rules.live_in import compose, gather_live_in
from prunepass.rules.merge import gather_tokens, merge_tokens
from prunepass.rules.proportional import biased_mask, biased_scores, weighted_mean
from prunepass.rules.table import UNREAD, check_options, rule, select


def reduce_tokens(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """The program with every step's reduction in it, and a record of what was done.

    Raises:
        PlanError: A step names an unknown site, asks for more tokens than there are, or for a
            tensor that its block does not have.
        UnsupportedGraph: The graph does not allow another number of tokens at a site.
    """
    module, record = draft(program, steps)
    return seal(module, program), record


def draft(program: ExportedProgram, steps: Sequence[Step]) -> tuple[GraphModule, PassRecord]:
    """As `reduce_tokens`, but as an unsealed module that runs eagerly: quick, for searching."""
    module = open_module(program)
    record = _Reducer(module, steps).run()
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module, record


@dataclass(frozen=True)
class _Cut:
    """A step bound to the graph."""

    step: Step
    node: Node
    before: int
    after: int


@dataclass
class _Stage:
    """What is known of the tokens between two reductions.

    Attributes:
        tokens: Their number.
        kept: [B, tokens], their positions in the stage before; None in stage 0.
        size: [B, tokens], how many original tokens each stands for; None while all count one.
        origin: Stage -> [B, tokens], their positions in that stage.
    """

    tokens: int
    kept: Node | None = None
    size: Node | None = None
    origin: dict[int, Node] = field(default_factory=dict)


class _Reducer:
    """One walk over an opened graph."""

    def __init__(self, module: GraphModule, steps: Sequence[Step]) -> None:
        self.module, self.graph = module, module.graph
        self.table = labelled(self.graph)
        self.prefix = prefix_tokens(self.graph)
        self.cuts = self._bind(steps)
        self.trace = self._trace()
        self.narrowed = self._narrowed()
        self.attentions = {a.core: a for a in find_attentions(self.graph)}
        self.stages = [_Stage(self.trace.tokens)]
        self.stage_of: dict[Node, int] = {}
        self.replaced: dict[Node, Node] = {}
        self.gathered: dict[tuple[Node, int, Axes, int], Node] = {}
        self.biased = 0

    def run(self) -> PassRecord:
        cuts = {cut.node: cut for cut in self.cuts}
        frozen: dict[Node, list[Any]] = {}
        live: dict[Node, dict[Any, Any]] = {}
        for size in self.trace.frozen:
            frozen.setdefault(size.node, []).append(size)
        for item in self.trace.live_ins:
            live.setdefault(item.node, {})[item.path] = item
        self.stage_of[self.trace.site] = 0
        nodes = list(self.graph.nodes)
        for node in nodes[nodes.index(self.trace.site) :]:
            if node is not self.trace.site and any(
                n in self.stage_of for n in node.all_input_nodes
            ):
                self._visit(node, frozen.get(node, []), live.get(node, {}))
            if node in cuts and node not in self.replaced:
                self._cut(cuts[node])
        return PassRecord(
            kind="reduce_tokens",
            applied=tuple(cut.step.site for cut in self.cuts),
            tokens={cut.step.site: (cut.before, cut.after) for cut in self.cuts},
            details={
                "frozen_sizes": len(self.trace.frozen),
                "live_ins": len(self.trace.live_ins),
                "biased_attentions": self.biased,
            },
        )

    def _bind(self, steps: Sequence[Step]) -> list[_Cut]:
        if not steps:
            raise PlanError("no step to apply", found="0 steps", fix="plan at least one step")
        merged = any(label.endswith(":reduce.merge") for label in self.table)
        if merged and any(step.action == "merge" for step in steps):
            # How many tokens each stands for is known inside one plan only.
            raise PlanError(
                "cannot merge tokens of a program that merges tokens already",
                found="its merged tokens would count as one each",
                fix="put all merging steps into one plan, or use action `drop`",
            )
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        bound: dict[Node, Step] = {}
        for step in steps:
            node = self.table.get(f"{step.site}:output")
            if node is None:
                known = [k.removesuffix(":output") for k in self.table if k.endswith(":output")]
                raise PlanError(
                    f"unknown site {step.site!r}",
                    found=f"{len(known)} sites in this program",
                    fix=f"one of {', '.join(nearest(step.site, known).split(', ')[:5])}",
                )
            if node in bound:
                raise PlanError(
                    "two steps reduce tokens at the same place",
                    found=f"{bound[node].site} and {step.site}",
                    fix="`block[i].output` is where the last branch of block i ends",
                )
            bound[node] = step
            check_options(rule(step.rule), step.options)
        first = min(bound, key=lambda n: order[n])
        tokens = (meta.concrete_shape(first, 2) or (0, 0))[1]
        cuts = []
        for node in sorted(bound, key=lambda n: order[n]):
            step = bound[node]
            after = step.count(tokens, self.prefix)
            exact = step.rule == UNREAD and after == self.prefix > 0
            if not self.prefix < after <= tokens and not exact:
                raise PlanError(
                    f"cannot keep {after} tokens at {step.site}",
                    found=f"{tokens} tokens arrive there, {self.prefix} of them prefix tokens",
                    fix=f"keep between {self.prefix + 1} and {tokens}",
                )
            cuts.append(_Cut(step, node, tokens, after))
            tokens = after
        return cuts

    def _trace(self) -> TokenTrace:
        first = self.cuts[0]
        try:
            trace = self._trace_before(first)
            if trace is None:
                trace = trace_tokens(self.module, first.node, prefix=self.prefix)
        except Refusal as refusal:
            raise UnsupportedGraph(
                f"cannot remove tokens at {first.step.site} ({meta.module_path(first.node)})",
                found=f"{refusal.what}: {refusal.found}",
                fix="`prunepass inspect MODEL` lists the sites and what they support",
            ) from refusal
        if trace.reaches_output:
            raise UnsupportedGraph(
                f"cannot remove tokens at {first.step.site}",
                found="an output of the model carries the tokens, it would change its shape",
                fix="capture a model that returns what is pooled from the tokens",
            )
        for cut in self.cuts:
            if trace.axes.get(cut.node) != ((1, 0),):
                raise UnsupportedGraph(
                    f"cannot remove tokens at {cut.step.site} together with {first.step.site}",
                    found="the two are not on one token stream",
                    fix="reduce tokens at one of the two only",
                )
        return trace

    def _trace_before(self, first: _Cut) -> TokenTrace | None:
        """The trace from in front of an attention, where the first step may narrow that one."""
        start = self.table.get(f"{first.step.site}:input")
        core = narrowed_attention(self.table, first.step.site)
        if first.step.rule != UNREAD or start is None or core is None:
            return None
        try:
            trace = trace_tokens(self.module, start, prefix=self.prefix)
        except Refusal:
            return None
        return trace if trace.axes.get(first.node) == ((1, 0),) else None

    def _narrowed(self) -> dict[Node, _Cut]:
        """Attentions whose queries are cut to the prefix, by the step that allows it."""
        found = {}
        for cut in self.cuts:
            if cut.step.rule != UNREAD:
                continue
            if not tokens_kept_apart(cut.node, self.trace):
                raise PlanError(
                    f"rule {UNREAD!r} does not fit {cut.step.site}",
                    found="other tokens than the prefix are read behind it",
                    fix="use it at the last attention of a model that reads its class token only",
                )
            core = narrowed_attention(self.table, cut.step.site)
            if core is not None and core in self.trace.axes:
                found[core] = cut
        return found

    def _narrow(self, node: Node, cut: _Cut, live: dict[Any, Any]) -> None:
        """Lets only the prefix tokens ask: the queries of a fused attention are sliced."""
        stage = self._lift_operands(node, live)
        if self.stages[stage].size is not None:
            self._bias(self.attentions[node], stage)
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
        self.stages.append(_Stage(prefix, kept, None, {stage: kept}))
        self.stage_of[node] = stage + 1
        self.replaced[cut.node] = cut.node

    def _visit(self, node: Node, frozen: list[Any], live: dict[Any, Any]) -> None:
        """Brings a node's operands to one stage, and its sizes to that stage's count."""
        if node not in self.trace.axes:
            stage = self._lift_operands(node, live)
            # Attention whose queries are no tokens: a pooling latent, a class token.
            if node in self.attentions and self.stages[stage].size is not None:
                self._bias(self.attentions[node], stage)
            self._weigh_mean(node)
            return
        if node in self.narrowed:
            self._narrow(node, self.narrowed[node], live)
            return
        stage = self._lift_operands(node, live)
        self.stage_of[node] = stage
        if stage == 0:
            return
        for size in frozen:
            replace_argument(node, size.path, self.stages[stage].tokens + size.offset)
        if node in self.attentions and self.stages[stage].size is not None:
            self._bias(self.attentions[node], stage)

    def _lift_operands(self, node: Node, live: dict[Any, Any]) -> int:
        current = [self._current(n) for n in node.all_input_nodes]
        stage = max(self.stage_of[n] for n in current if n in self.stage_of)
        rank = len(meta.shape(node) or ())
        for path, operand in _operands(node):
            if path in live:
                if stage > 0:
                    axes = live[path].axes
                    new = self._gather(operand, 0, stage, axes, rank, node)
                    replace_argument(node, path, new)
                continue
            new = self._current(operand)
            behind = self.stage_of.get(new, stage)
            if behind < stage and self.trace.axes[new]:
                new = self._gather(new, behind, stage, self.trace.axes[new], rank, node)
            if new is not operand:
                replace_argument(node, path, new)
        return stage

    def _current(self, node: Node) -> Node:
        return self.replaced.get(node, node)

    def _gather(
        self, source: Node, behind: int, stage: int, axes: Axes, rank: int, user: Node
    ) -> Node:
        key = (source, stage, axes, rank)
        if key not in self.gathered:
            self.gathered[key] = insert_call(
                self.graph,
                gather_live_in,
                (source, self._positions(behind, stage)),
                {"axes": axes, "rank": rank},
                before=user,
                label="reduce_tokens:live_in",
            )
        return self.gathered[key]

    def _positions(self, behind: int, stage: int) -> Node:
        """[B, K]: where the tokens of a stage stood in an earlier one."""
        here = self.stages[stage]
        if behind not in here.origin:
            assert here.kept is not None
            previous = self._positions(behind, stage - 1)
            here.origin[behind] = insert_call(
                self.graph,
                compose,
                (previous, here.kept),
                before=here.kept.next,
                label="reduce_tokens:positions",
            )
        return here.origin[behind]

    def _bias(self, attention: Attention, stage: int) -> None:
        """Proportional attention: log(size) on the scores of keys that stand for several tokens."""
        node, size = attention.core, self.stages[stage].size
        rank = len(meta.shape(node) or ())
        fused = attention.probabilities is None and attention.core is attention.output
        keys = node.args[1] if fused else node.args[0]
        assert isinstance(keys, Node)
        axis = (len(meta.shape(keys) or ()) - 2) if fused else rank - 1
        offset = dict(self.trace.axes.get(keys, ())).get(axis)
        if offset is None:
            return
        self.biased += 1
        label = "reduce_tokens:size_bias"
        if not fused:
            scores = insert_call(
                self.graph,
                biased_scores,
                (keys, size),
                {"offset": offset},
                before=node,
                label=label,
            )
            node.args = (scores, *node.args[1:])
            return
        if (len(node.args) > 5 and node.args[5]) or node.kwargs.get("is_causal"):
            raise UnsupportedGraph(
                f"cannot merge tokens before {meta.module_path(node)}",
                found="causal fused attention takes no size bias",
                fix="use action `drop`",
            )
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        bias = insert_call(
            self.graph,
            biased_mask,
            (mask, size),
            {"offset": offset, "rank": rank},
            before=node,
            label=label,
        )
        if len(node.args) > 3:
            node.args = (*node.args[:3], bias, *node.args[4:])
        else:
            node.kwargs = {**node.kwargs, "attn_mask": bias}

    def _weigh_mean(self, node: Node) -> None:
        """A mean over merged tokens counts each as often as it stands for tokens."""
        if node.target is not torch.ops.aten.mean.dim:
            return
        source = node.args[0]
        assert isinstance(source, Node)
        axes = dict(self.trace.axes.get(source, ()))
        dims: Any = node.args[1]
        stage = self.stage_of.get(source)
        size = self.stages[stage].size if stage is not None else None
        if (
            size is None
            or 1 not in axes
            or len(meta.shape(node) or ()) + (0 if _keeps(node) else 1) != 3
        ):
            return
        if list(dims) not in ([1], [-2]):
            return
        mean = insert_call(
            self.graph,
            weighted_mean,
            (source, size),
            {"offset": axes[1], "keepdim": _keeps(node)},
            before=node,
            label="reduce_tokens:weighted_mean",
        )
        node.replace_all_uses_with(mean)

    def _cut(self, cut: _Cut) -> None:
        """Inserts selection and reduction right behind the residual addition of a site."""
        stage, here = len(self.stages), self.stages[-1]
        if cut.after == cut.before:
            return
        step, label = cut.step, f"{cut.step.site}:reduce"
        at = cut.node.next
        if step.rule == UNREAD:
            kept, size, reduced = self._cut_to_prefix(cut, label, at)
        else:
            selection = insert_call(
                self.graph,
                select,
                (step.rule, self._roles(cut, here)),
                {"keep": cut.after, "prefix": self.prefix, **step.options},
                before=at,
                label=f"{label}.select",
            )
            kept = self._item(selection, 0, at, f"{label}.kept")
            size = here.size
            if step.action == "merge":
                size = size if size is not None else self._ones(cut.node, at, label)
                merged = insert_call(
                    self.graph,
                    merge_tokens,
                    (cut.node, size, selection),
                    before=at,
                    label=f"{label}.merge",
                )
                reduced = self._item(merged, 0, at, f"{label}.tokens")
                size = self._item(merged, 1, at, f"{label}.size")
            else:
                reduced = insert_call(
                    self.graph,
                    gather_tokens,
                    (cut.node, kept),
                    before=at,
                    label=f"{label}.tokens",
                )
                if size is not None:
                    size = insert_call(
                        self.graph, gather_tokens, (size, kept), before=at, label=f"{label}.size"
                    )
        self.stages.append(_Stage(cut.after, kept, size, {stage - 1: kept}))
        self.replaced[cut.node] = reduced
        self.stage_of[reduced] = stage
        self.trace.axes[reduced] = ((1, 0),)

    def _cut_to_prefix(self, cut: _Cut, label: str, at: Node) -> tuple[Node, Node | None, Node]:
        """Keeps the prefix tokens only: a slice, no scores."""
        kept = insert_call(
            self.graph, first_positions, (cut.node, self.prefix), before=at, label=f"{label}.kept"
        )
        reduced = insert_call(
            self.graph, first_tokens, (cut.node, self.prefix), before=at, label=f"{label}.tokens"
        )
        size = self.stages[-1].size
        if size is not None:
            size = insert_call(
                self.graph, first_tokens, (size, self.prefix), before=at, label=f"{label}.size"
            )
        return kept, size, reduced

    def _item(self, node: Node, index: int, at: Node, label: str) -> Node:
        return insert_call(self.graph, operator.getitem, (node, index), before=at, label=label)

    def _ones(self, like: Node, at: Node, label: str) -> Node:
        return insert_call(self.graph, unit_sizes, (like,), before=at, label=f"{label}.size")

    def _roles(self, cut: _Cut, here: _Stage) -> dict[str, Node]:
        """The tensors the step's rule asks for."""
        block = int(cut.step.site[len("block[") : cut.step.site.index("]")])
        available = roles(self.table, block, self.trace.tokens)
        wanted = [*rule(cut.step.rule).needs]
        if "key" in available and "key" not in wanted:
            wanted.append("key")
        found: dict[str, Node] = {}
        for name in wanted:
            if name not in available:
                raise PlanError(
                    f"rule {cut.step.rule!r} needs `{name}`, which {cut.step.site} does not have",
                    found=f"it has {', '.join(available)}",
                    fix="choose a rule that needs less; `prunepass methods` lists what each needs",
                )
            if name == "hidden":
                found[name] = cut.node
            elif name == "size":
                found[name] = here.size or self._ones(cut.node, cut.node.next, cut.step.site)
            elif name == "attention":
                found[name] = self._attention_role(cut, block)
            else:
                node = self.table[f"block[{block}].attention:{name}"]
                found[name] = self._at_last_stage(node, cut)
        return found

    def _at_last_stage(self, node: Node, cut: _Cut) -> Node:
        """Queries, keys or values [B, H, T, D] of the tokens that arrive at a cut."""
        behind, stage = self.stage_of.get(node, 0), len(self.stages) - 1
        if behind == stage:
            return node
        return self._gather(node, behind, stage, ((2, 0),), 4, cut.node.next)

    def _attention_role(self, cut: _Cut, block: int) -> Node:
        """Attention probabilities [B, H, T, T] of the tokens that arrive at a cut."""
        core = self.table[f"block[{block}].attention:core"]
        if self.stage_of.get(core, 0) != len(self.stages) - 1:
            raise PlanError(
                f"rule {cut.step.rule!r} needs `attention`, which {cut.step.site} no longer has",
                found="another step removes tokens between the attention and this site",
                fix="one step a block, or a rule that reads keys, such as tome",
            )
        return self._probabilities(block)

    def _probabilities(self, block: int) -> Node:
        """Attention probabilities of a block, its fused attention written out where needed."""
        label = f"block[{block}].attention:probabilities"
        if label in self.table:
            return self.table[label]
        core = self.table[f"block[{block}].attention:core"]
        written = insert_call(
            self.graph,
            attention_with_probabilities,
            core.args,
            core.kwargs,
            before=core,
            label=f"block[{block}].attention:written_out",
        )
        output = self._item(written, 0, core, f"block[{block}].attention:core")
        self.table[label] = self._item(written, 1, core, label)
        core.replace_all_uses_with(output)
        # Fused attention counts as random (it has a dropout), so dead code removal would keep it.
        self.graph.erase_node(core)
        self.table[f"block[{block}].attention:core"] = output
        if core in self.stage_of:
            self.stage_of[output] = self.stage_of[core]
            self.trace.axes[output] = self.trace.axes[core]
        return self.table[label]


def first_tokens(x: torch.Tensor, count: int) -> torch.Tensor:
    """The first tokens of `x`: [B, T, ...] -> [B, count, ...]."""
    return x[:, :count]


def first_queries(x: torch.Tensor, count: int) -> torch.Tensor:
    """The first rows of queries or a mask: [B, H, Q, D] -> [B, H, count, D]; one row stays one."""
    return x if x.shape[-2] == 1 else x[..., :count, :]


def first_positions(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count] int64: 0, 1, ..., count - 1 for each item of `x` [B, T, C]."""
    return torch.arange(count, device=x.device).expand(x.shape[0], count)


def unit_sizes(x: torch.Tensor) -> torch.Tensor:
    """[B, T] ones: each token of `x` [B, T, C] stands for itself."""
    return torch.ones_like(x[:, :, 0])


def _operands(node: Node) -> list[tuple[tuple[int | str, ...], Node]]:
    found: list[tuple[tuple[int | str, ...], Node]] = []

    def walk(value: Any, path: tuple[int | str, ...]) -> None:
        if isinstance(value, Node):
            found.append((path, value))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*path, key))
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                walk(item, (*path, index))

    walk(node.args, ("args",))
    walk(dict(node.kwargs), ("kwargs",))
    return found


def _keeps(mean: Node) -> bool:
    """Whether a mean keeps the axis it averages over."""
    return bool(mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False))
