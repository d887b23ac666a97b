"""Token reduction: fewer tokens behind a site, by dropping or merging, inside the graph.

All steps are laid into one opened graph, then sealed once, so the cost grows linearly with depth.
A *stage* is the stretch between two reductions; stage 0 has all tokens. Every value with a token
axis belongs to a stage, and an operand from an earlier stage is gathered where it is used.

Which tokens stay, go and are merged where is labelled `SITE:reduce.kept`, `.dropped` and `.target`
in the program that comes out, so that an engine can be asked for it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.attention import find_attentions
from prunepass.analyse.sites import roles
from prunepass.analyse.token_positions import Axes
from prunepass.errors import PlanError
from prunepass.graph import meta
from prunepass.graph.arguments import operands, replace_argument
from prunepass.graph.edit import open_module, seal
from prunepass.graph.splice import insert_call
from prunepass.passes.bind_steps import Cut, bind
from prunepass.passes.missing_tokens import MissingTokens
from prunepass.passes.token_sizes import bias_attention, weigh_mean
from prunepass.plans import Step
from prunepass.records import PassRecord
from prunepass.rules.attention import attention_with_probabilities
from prunepass.rules.live_in import compose, gather_live_in
from prunepass.rules.merge import gather_tokens, merge_tokens
from prunepass.rules.prefix import first_positions, first_queries, first_tokens
from prunepass.rules.table import UNREAD, rule, select
from prunepass.rules.token_gaps import among, note_widths, put_back


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


@dataclass
class _Stage:
    """What is known of the tokens between two reductions.

    Attributes:
        tokens: Their number.
        kept: [B, tokens], their positions in the stage before; None in stage 0.
        size: [B, tokens], how many original tokens each stands for; None while all count one.
        origin: Stage -> [B, tokens], their positions in that stage.
        widths: [B, T], what each token of stage 0 that is gone amounts to; None where nobody asks.
    """

    tokens: int
    kept: Node | None = None
    size: Node | None = None
    origin: dict[int, Node] = field(default_factory=dict)
    widths: Node | None = None


class _Reducer:
    """One walk over an opened graph."""

    def __init__(self, module: GraphModule, steps: Sequence[Step]) -> None:
        self.graph = module.graph
        bound = bind(module, steps)
        self.cuts, self.prefix, self.table = bound.cuts, bound.prefix, bound.table
        self.trace, self.narrowed = bound.trace, bound.narrowed
        self.attentions = {a.core: a for a in find_attentions(self.graph)}
        self.stages = [_Stage(self.trace.tokens)]
        self.stage_of: dict[Node, int] = {}
        self.replaced: dict[Node, Node] = {}
        self.gathered: dict[tuple[Node, int, Axes, int], Node] = {}
        self.biased = 0
        self.told: dict[str, Node] = {}
        self.fixed, self.places, self.until = bound.fixed, bound.places, bound.until
        self.last: Node | None = None
        self.missing = MissingTokens(
            self.graph, bound.places, bound.orders, tokens=self.trace.tokens, fixed=bound.fixed,
            positions=lambda stage: self._positions(0, stage), widths=self._widths,
        )  # fmt: skip

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
            if self.until is not None and node is self.until:
                self._restore(self.until)
                break
        return PassRecord(
            kind="reduce_tokens",
            applied=tuple(cut.step.site for cut in self.cuts),
            tokens={cut.step.site: (cut.before, cut.after) for cut in self.cuts},
            always_kept=(*range(self.prefix), *self.fixed),
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
        self.stages.append(_Stage(prefix, kept, None, {stage: kept}))
        self.stage_of[node] = stage + 1
        self.replaced[cut.node] = cut.node

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
            size = self.stages[stage].size
            if size is not None:
                weigh_mean(self.graph, node, size, self.trace.axes)
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
        self._bias(node, stage)
        self.missing.treat(node, stage, self.stages[stage].tokens)

    def _lift_operands(self, node: Node, live: dict[Any, Any]) -> int:
        current = [self._current(n) for n in node.all_input_nodes]
        stage = max(self.stage_of[n] for n in current if n in self.stage_of)
        rank = len(meta.shape(node) or ())
        for path, operand in operands(node):
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
            where = self._positions(behind, stage) if behind else self.missing.lifted(source, stage)
            self.gathered[key] = insert_call(
                self.graph,
                gather_live_in,
                (source, where),
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

    def _bias(self, node: Node, stage: int) -> None:
        """Keys that stand for several tokens count as often, if the node is an attention."""
        size = self.stages[stage].size
        if node in self.attentions and size is not None:
            self.biased += bias_attention(self.graph, self.attentions[node], size, self.trace.axes)

    def _cut(self, cut: Cut) -> None:
        """Inserts selection and reduction right behind the residual addition of a site."""
        stage, here = len(self.stages), self.stages[-1]
        if cut.after == cut.before:
            return
        step, label = cut.step, f"{cut.step.site}:reduce"
        at = cut.node.next
        if self.until is not None:
            self.last = self._remember(cut.node, stage - 1, at)
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
            self.told[f"{label}.kept"] = kept
            size = here.size
            if step.action == "merge":
                for i, what in ((1, "dropped"), (2, "target")):
                    self.told[f"{label}.{what}"] = self._item(selection, i, at, f"{label}.{what}")
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
        if self.places.alignment == "decay" and self.missing.biases:
            self.stages[-1].widths = self._note_widths(cut, stage)

    def _cut_to_prefix(self, cut: Cut, label: str, at: Node) -> tuple[Node, Node | None, Node]:
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

    def _roles(self, cut: Cut, here: _Stage) -> dict[str, Node]:
        """The tensors the step's rule asks for."""
        block = int(cut.step.site[len("block[") : cut.step.site.index("]")])
        available = roles(self.table, block, self.trace.tokens)
        wanted = [*rule(cut.step.rule).needs]
        wanted += [n for n in ("key" if "key" in available else "hidden",) if n not in wanted]
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
            elif name == "scan_output":
                found[name] = self._scan_role(cut, block)
            else:
                node = self.table[f"block[{block}].attention:{name}"]
                found[name] = self._at_last_stage(node, cut)
        if self.fixed:
            found["fixed"] = self._fixed_role(cut)
        return found

    def _remember(self, node: Node, stage: int, at: Node) -> Node:
        """[B, T, C], all tokens as they last were, those at a node as they are there."""
        if self.last is None:
            return node
        args = (self.last, node, self._positions(0, stage))
        return insert_call(self.graph, put_back, args, before=at, label="restore_tokens")

    def _restore(self, node: Node) -> None:
        """Lets what follows a node see all tokens again."""
        stage = len(self.stages) - 1
        if stage == 0:
            return
        users = list(node.users)
        back = self._remember(node, stage, node.next)
        for user in users:
            user.replace_input_with(node, back)

    def _numbers(self, cut: Cut, stage: int) -> Node:
        """[B, T], the numbers in the whole sequence of the tokens that arrive at a cut."""
        if stage:
            return self._positions(0, stage)
        return insert_call(
            self.graph, numbers, (cut.node,), before=cut.node.next, label=cut.step.site
        )

    def _note_widths(self, cut: Cut, stage: int) -> Node:
        """[B, T], what each token that is gone behind a cut amounts to."""
        here, before = self._numbers(cut, stage - 1), self.stages[stage - 1].widths
        kept = self._positions(0, stage)
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
        found = self.stages[stage].widths
        assert found is not None
        return found

    def _fixed_role(self, cut: Cut) -> Node:
        """[B, T] bool: which of the tokens that arrive at a cut are to stay whatever they score."""
        numbers_here = self._numbers(cut, len(self.stages) - 1)
        at = max((numbers_here, cut.node), key=list(self.graph.nodes).index).next
        return insert_call(
            self.graph,
            among,
            (numbers_here, self.fixed),
            before=at,
            label=f"{cut.step.site}:reduce.fixed",
        )

    def _scan_role(self, cut: Cut, block: int) -> Node:
        """[B, T, C], what the scans of a block found of the tokens that arrive at a cut."""
        node = self.table[f"block[{block}].scan:mixed"]
        if self.stage_of.get(node, 0) != len(self.stages) - 1:
            raise PlanError(
                f"rule {cut.step.rule!r} needs `scan_output`, which {cut.step.site} no longer has",
                found="another step removes tokens between the scan and this site",
                fix="one step a block",
            )
        return node

    def _at_last_stage(self, node: Node, cut: Cut) -> Node:
        """Queries, keys or values [B, H, T, D] of the tokens that arrive at a cut."""
        behind, stage = self.stage_of.get(node, 0), len(self.stages) - 1
        if behind == stage:
            return node
        return self._gather(node, behind, stage, ((2, 0),), 4, cut.node.next)

    def _attention_role(self, cut: Cut, block: int) -> Node:
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


def numbers(x: torch.Tensor) -> torch.Tensor:
    """[B, T] int64: 0, 1, 2 .. for the tokens of `x` [B, T, C]."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], x.shape[1])


def no_widths(here: torch.Tensor, tokens: int) -> torch.Tensor:
    """[B, tokens] zeros, as many rows as `here` [B, K]."""
    return torch.zeros(here.shape[0], tokens, device=here.device)


def unit_sizes(x: torch.Tensor) -> torch.Tensor:
    """[B, T] ones: each token of `x` [B, T, C] stands for itself."""
    return torch.ones_like(x[:, :, 0])
