"""What a schedule costs before it is applied: MACs as a function of the tokens at each site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from prunepass.analyse.flops import node_macs
from prunepass.analyse.sites import fixed_tokens, narrowed_attention, prefix_tokens, restored
from prunepass.analyse.token_trace import trace_tokens
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.ops.token_places import GRID
from prunepass.plans import Action
from prunepass.records import Sites
from prunepass.rules.merge import merge_tokens
from prunepass.rules.table import rule, select

Subject = ExportedProgram | GraphModule
"""What is priced: a labelled program, or one opened."""


@dataclass(frozen=True)
class Reduction:
    """A reduction to be priced: at a site, by a rule, from some tokens to others."""

    site: str
    rule: str
    action: Action
    options: Mapping[str, object]
    before: int
    after: int


class TokenCost:
    """MACs of one program, an example, under token counts at a list of sites.

    Args:
        program: A labelled program, or one opened.
        sites: Its sites.
        at: Labels of the sites where tokens are reduced, in graph order.
        unread: Label of the last attention, if only prefix tokens are read behind it; it comes
            last.
        restore: Site behind which all tokens are back, None for nowhere.
        scoring: What scoring was found to cost, of another `TokenCost` of the same model; filled.

    Raises:
        PlanError: There is no site called `restore`.
    """

    def __init__(
        self,
        program: Subject,
        sites: Sites,
        at: Sequence[str],
        *,
        unread: str | None,
        restore: str | None = None,
        scoring: dict[tuple[object, ...], int] | None = None,
    ) -> None:
        module = program if isinstance(program, GraphModule) else open_module(program)
        table = meta.labelled(module.graph)
        self.at = (*at, unread) if unread is not None else tuple(at)
        self._sites = sites
        self._dense_shapes: dict[Node, tuple[int, ...]] = {}
        self._prefix = prefix_tokens(module.graph)
        cuts = [table[f"{label}:output"] for label in at]
        self._narrowed: Node | None = None
        if unread is not None:
            self._narrowed = narrowed_attention(table, unread)
            cuts.append(self._narrowed or table[f"{unread}:output"])
        fixed_numbers = fixed_tokens(module.graph)
        self._until = None if restore is None else restored(table, restore)
        self._trace = trace_tokens(
            module, cuts[0], prefix=self._prefix, fixed=fixed_numbers, until=self._until
        )
        self.tokens = self._trace.tokens
        self._fixed, self._counted = self._split(list(module.graph.nodes), cuts)
        self._rules = {} if scoring is None else scoring
        self.dense = self.macs([])

    def macs(self, reductions: Sequence[Reduction]) -> int:
        """MACs of the program with these reductions in it, scoring included."""
        counts, position = [self.tokens], {label: i for i, label in enumerate(self.at)}
        after = {r.site: r.after for r in reductions}
        for label in self.at:
            counts.append(after.get(label, counts[-1]))
        total = self._fixed
        for node, stage in self._counted:
            total += node_macs(node, self._shapes(node, stage, counts))
        return total + sum(self._rule_macs(r) for r in reductions if r.site in position)

    def ratio(self, reductions: Sequence[Reduction]) -> float:
        """MACs relative to the program without reductions."""
        return self.macs(reductions) / self.dense

    def _split(self, nodes: Sequence[Node], cuts: list[Node]) -> tuple[int, list[tuple[Node, int]]]:
        """MACs that no reduction changes, and the other nodes with the stage they run in."""
        stage_of: dict[Node, int] = {self._trace.site: 0}
        cut_stage = {node: i + 1 for i, node in enumerate(cuts)}
        fixed, counted = 0, []
        for node in nodes:
            stages = [
                max(stage_of[n], cut_stage.get(n, 0))
                for n in node.all_input_nodes
                if n in stage_of and n is not self._until
            ]
            on_grid = node.target is GRID  # it runs over the whole grid, whatever is left on it
            if on_grid:
                fixed += node_macs(node, lambda n: meta.concrete_shape(n, 1) or ())
            if stages and node is not self._trace.site:
                stage = max(cut_stage[node] if node is self._narrowed else 0, *stages)
                if node in self._trace.axes:
                    stage_of[node] = stage
                if not on_grid:
                    counted.append((node, stage))
            elif not on_grid:
                fixed += node_macs(node, lambda n: meta.concrete_shape(n, 1) or ())
        # Nodes without products cost nothing at any count.
        full = [(n, s) for n, s in counted if node_macs(n, lambda m: self._shape(m, self.tokens))]
        return fixed, full

    def _shapes(
        self, node: Node, stage: int, counts: Sequence[int]
    ) -> Callable[[Node], tuple[int, ...]]:
        """Shapes of a node and its operands in a stage."""
        if node is self._narrowed:
            keys = node.args[1:3]
            return lambda n: self._shape(n, counts[stage - 1 if n in keys else stage])
        return lambda n: self._shape(n, counts[stage])

    def _shape(self, node: Node, tokens: int) -> tuple[int, ...]:
        if node not in self._dense_shapes:
            # Searches ask for the same shapes a thousand times; symbols are slow to fill in.
            self._dense_shapes[node] = meta.concrete_shape(node, 1) or ()
        shape = list(self._dense_shapes[node])
        for axis, offset in self._trace.axes.get(node, ()):
            shape[axis] = tokens + offset
        return tuple(shape)

    def _rule_macs(self, reduction: Reduction) -> int:
        if reduction.after in (reduction.before, self._prefix):
            return 0
        site = self._sites[reduction.site]
        key = (
            reduction.rule,
            reduction.action,
            str(sorted(reduction.options.items())),
            reduction.before,
            reduction.after,
            site.channels,
            site.heads,
        )
        if key not in self._rules:
            self._rules[key] = _count_rule(reduction, site.channels, site.heads or 1, self._prefix)
        return self._rules[key]


def _count_rule(reduction: Reduction, channels: int, heads: int, prefix: int) -> int:
    """MACs of one selection, and of the merge, for one example, counted on meta tensors.

    What a rule works out for merging alone is counted only where tokens are merged: the rewritten
    program does not have it otherwise.
    """
    tokens, width = reduction.before, max(1, channels // heads)
    shapes = {
        "attention": (1, heads, tokens, tokens),
        "query": (1, heads, tokens, width),
        "key": (1, heads, tokens, width),
        "value": (1, heads, tokens, width),
        "hidden": (1, tokens, channels),
        "size": (1, tokens),
        "scan_output": (1, tokens, 2 * channels),
    }
    wanted = {*rule(reduction.rule).needs, "key"}  # likeness costs the same by keys or states
    roles = {name: torch.empty(shapes[name], device="meta") for name in wanted}
    with _Recorder() as recorder:
        selection = select(
            reduction.rule, roles, keep=reduction.after, prefix=prefix, **dict(reduction.options)
        )
        results = [selection.kept]
        if reduction.action == "merge":
            hidden = torch.empty(shapes["hidden"], device="meta")
            results += merge_tokens(hidden, torch.empty(1, tokens, device="meta"), selection)
    return recorder.macs_behind(results)


class _Recorder(TorchDispatchMode):
    """Every operation that runs, so that those that some results need can be told apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensors are held, so that no two of them ever have the same id.
        self._operations: list[tuple[int, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        self._operations.append((int(flops) // 2, _tensors((args, kwargs)), _tensors(result)))
        return result

    def macs_behind(self, results: Sequence[Tensor]) -> int:
        """MACs of the operations that lead to the results."""
        needed, total = {id(tensor) for tensor in results}, 0
        for macs, sources, made in reversed(self._operations):
            if any(id(tensor) in needed for tensor in made):
                needed.update(id(tensor) for tensor in sources)
                total += macs
        return total


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
