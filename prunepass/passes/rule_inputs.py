"""The tensors that a scoring rule asks for, found at a cut of a graph whose tokens are reduced."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch.fx import Graph, Node

from prunepass.analyse.sites import roles
from prunepass.errors import PlanError
from prunepass.graph.splice import insert_call
from prunepass.passes.bind_steps import Cut
from prunepass.passes.token_stages import Stages, unit_sizes
from prunepass.rules.attention import attention_with_probabilities
from prunepass.rules.table import rule
from prunepass.rules.token_gaps import among


class RuleInputs:
    """Finds what rules ask for. Each tensor has the tokens that arrive at the cut.

    Args:
        graph: The opened graph.
        table: Label -> node.
        stages: The stages of the walk.
        fixed: Numbers in the whole sequence of tokens that always stay besides the prefix.
    """

    def __init__(
        self, graph: Graph, table: dict[str, Node], stages: Stages, fixed: Sequence[int]
    ) -> None:
        self.graph, self.table, self.stages, self.fixed = graph, table, stages, fixed

    def of(self, cut: Cut) -> dict[str, Node]:
        """Name -> tensor, for the rule of a cut.

        Raises:
            PlanError: The site does not have one of them.
        """
        site, block = cut.step.site, block_of(cut)
        available = roles(self.table, block, self.stages.every[0].tokens)
        wanted = [*rule(cut.step.rule).needs]
        wanted += [n for n in ("key" if "key" in available else "hidden",) if n not in wanted]
        found: dict[str, Node] = {}
        for name in wanted:
            if name not in available:
                raise PlanError(
                    f"rule {cut.step.rule!r} needs `{name}`, which {site} does not have",
                    found=f"it has {', '.join(available)}",
                    fix="choose a rule that needs less; `prunepass methods` lists what each needs",
                )
            if name == "hidden":
                found[name] = cut.node
            elif name == "size":
                found[name] = self.sizes(cut, cut.node.next)
            elif name == "attention":
                found[name] = self._attention(cut, block)
            elif name == "scan_output":
                found[name] = self._scan(cut, block)
            else:
                found[name] = self._projected(self.table[f"block[{block}].attention:{name}"], cut)
        if self.fixed:
            found["fixed"] = self._fixed(cut)
        return found

    def sizes(self, cut: Cut, before: Node) -> Node:
        """[B, T], how many original tokens each token stands for."""
        label = f"{cut.step.site}:reduce.size"
        return self.stages.here.size or insert_call(
            self.graph, unit_sizes, (cut.node,), before=before, label=label
        )

    def _fixed(self, cut: Cut) -> Node:
        """[B, T] bool: which tokens are to stay whatever they score."""
        here = self.stages.numbers(cut.node, self.stages.number, cut.step.site)
        at = max((here, cut.node), key=list(self.graph.nodes).index).next
        return insert_call(
            self.graph, among, (here, self.fixed), before=at, label=f"{cut.step.site}:reduce.fixed"
        )

    def _scan(self, cut: Cut, block: int) -> Node:
        """[B, T, C], what the scans of a block found."""
        node = self.table[f"block[{block}].scan:mixed"]
        if self.stages.at(node) != self.stages.number:
            raise PlanError(
                f"rule {cut.step.rule!r} needs `scan_output`, which {cut.step.site} no longer has",
                found="another step removes tokens between the scan and this site",
                fix="one step a block",
            )
        return node

    def _projected(self, node: Node, cut: Cut) -> Node:
        """Queries, keys or values [B, H, T, D]."""
        behind, stage = self.stages.at(node), self.stages.number
        if behind == stage:
            return node
        return self.stages.gather(node, behind, stage, ((2, 0),), 4, cut.node.next)

    def _attention(self, cut: Cut, block: int) -> Node:
        """Attention probabilities [B, H, T, T]."""
        core = self.table[f"block[{block}].attention:core"]
        if self.stages.at(core) != self.stages.number:
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
        name = f"block[{block}].attention:core"
        core = self.table[name]
        written = insert_call(
            self.graph, attention_with_probabilities, core.args, core.kwargs, before=core,
            label=f"block[{block}].attention:written_out",
        )  # fmt: skip
        output = item(self.graph, written, 0, core, name)
        self.table[label] = item(self.graph, written, 1, core, label)
        core.replace_all_uses_with(output)
        # Fused attention counts as random (it has a dropout), so dead code removal would keep it.
        self.graph.erase_node(core)
        self.table[name] = output
        self.stages.follow(core, output)
        return self.table[label]


def block_of(cut: Cut) -> int:
    """3 of a cut at `block[3].attention`."""
    return int(cut.step.site[len("block[") : cut.step.site.index("]")])


def item(graph: Graph, node: Node, index: int, before: Node, label: str) -> Node:
    """One of the values of a node that has several."""
    return insert_call(graph, operator.getitem, (node, index), before=before, label=label)
