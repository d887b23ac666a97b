"""Linear layers that read only the inputs that matter, and only those rows of their weight.

A layer becomes one `gated_linear` whose weight is stored input-major, in place of the weight as it
was: nothing is held twice. More rows than pay for it (prefill, batches) take a dense product with
the same stored weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.projections import activated_gate, projections, role_of
from prunepass.errors import PlanError, UnsupportedGraph, nearest
from prunepass.graph import meta
from prunepass.graph.edit import open_module, seal
from prunepass.graph.splice import insert_call
from prunepass.kernels.sparse_linear import checked_count, gated_linear
from prunepass.plans import Step
from prunepass.records import PassRecord
from prunepass.rules.input_table import input_rule
from prunepass.rules.low_rank import low_rank_part
from prunepass.rules.weight_aware import column_norm, input_score

OPTIONS: Mapping[str, Any] = {
    "threshold": None,  # a number: inputs whose score lies above it are read, however many
    "rank": 0,  # of a dense low-rank part that all inputs go through (R-Sparse)
    "rows": 1,  # tokens at once up to which the sparse product is taken
    # Numbers of a weight below which the layer stays dense. Which layers gain is the planner's to
    # know; every step of the plans it once wrote has this option, so they are still read.
    "smallest": 0,
}


class _Dense(NamedTuple):
    """Why a layer stays dense, and what to do about it."""

    why: str
    instead: str


_SMALL = "a larger model, or smallest=0 (--smallest 0) for the sake of trying"


def sparsify_inputs(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """The program with linear layers that read part of their inputs.

    A layer stays dense, and the record says why, where nothing is gained: it keeps all inputs, its
    weight is small, shared with something else, or not of floating point.

    Args:
        program: A program whose projections are labelled, see `label_projections`.
        steps: Of kind `sparsify_inputs`, at sites such as `block[3].attention.k`.

    Raises:
        PlanError: A step names an unknown site, rule or option, or keeps less than one input.
        UnsupportedGraph: No layer of the plan can be made sparse.
    """
    module = open_module(program)
    record = edit(module, steps)
    return (seal(module, program) if record.applied else program), record


def edit(module: GraphModule, steps: Sequence[Step]) -> PassRecord:
    """As `sparsify_inputs`, in place, on an opened program."""
    sites = projections(module.graph)
    applied: list[str] = []
    left: dict[str, _Dense] = {}
    for step in steps:
        node = _bound(step, sites)
        options = {**OPTIONS, **step.options}
        reason = _why_dense(module, node, step, options)
        if reason is None:
            _rewrite(module, node, step, options)
            applied.append(step.site)
        else:
            left[step.site] = reason
    if steps and not applied and any(step.keep != 1.0 for step in steps):
        # Of several reasons the one is told that is easily mended.
        site = next((s for s, reason in left.items() if reason.instead == _SMALL), next(iter(left)))
        raise UnsupportedGraph(
            "no linear layer of this plan can read fewer inputs and gain",
            found=f"{site}: {left[site].why}"
            + (f"; {len(left) - 1} more" if len(left) > 1 else ""),
            fix=left[site].instead,
        )
    why = {site: reason.why for site, reason in left.items()}
    return PassRecord("sparsify_inputs", tuple(applied), left=why)


def _bound(step: Step, sites: Mapping[str, Node]) -> Node:
    input_rule(step.rule)
    if step.site not in sites:
        raise PlanError(
            f"there is no linear layer at {step.site!r}",
            found=f"{len(sites)} layers with a label",
            fix=f"one of {', '.join(nearest(step.site, sites).split(', ')[:5])}"
            if sites
            else "a decoder from prunepass.language.capture",
        )
    for option, value in step.options.items():
        if option not in OPTIONS:
            raise PlanError(
                f"sparsify_inputs has no option {option!r}",
                found=f"{option}={value!r}",
                fix=f"one of {nearest(option, OPTIONS)}",
            )
    _check_options({**OPTIONS, **step.options}, step.site)
    if input_rule(step.rule).score == "gate" and role_of(step.site) != "down":
        raise PlanError(
            f"rule {step.rule!r} scores what a gated MLP hands down",
            found=step.site,
            fix="a site that ends in .down, or the rule magnitude",
        )
    return sites[step.site]


def _check_options(options: Mapping[str, Any], site: str) -> None:
    """Raises PlanError where an option is not of its kind; plans may come from a file."""
    limit = options["threshold"]
    wrong = [
        name
        for name in ("rank", "rows", "smallest")
        if type(options[name]) is not int or options[name] < 0
    ]
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float))):
        wrong.append("threshold")
    if wrong:
        raise PlanError(
            f"option {wrong[0]!r} of the step at {site} is not of its kind",
            found=f"{wrong[0]}={options[wrong[0]]!r}",
            fix="a number; of threshold also none, of the others a whole one of at least 0",
        )


def _why_dense(
    module: GraphModule, node: Node, step: Step, options: Mapping[str, Any]
) -> _Dense | None:
    weight = node.args[1]
    assert isinstance(weight, Node)
    value = meta.value(weight)
    if weight.op != "get_attr" or not value.dtype.is_floating_point or value.is_quantized:
        return _Dense(
            "its weight is not a matrix of floating point (quantised, or computed)",
            "the model with its original weights, stored as numbers of floating point",
        )
    others = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == weight.target]
    if len(weight.users) > 1 or len(others) > 1:
        return _Dense(
            "its weight is shared with another layer",
            "a copy of the weight for each layer that reads it, or a plan for other layers",
        )
    outputs, inputs = value.shape
    limit = options["threshold"]
    everything = checked_count(step.keep, inputs) == inputs if limit is None else limit < 0
    if everything:
        return _Dense("it keeps all of its inputs", "a smaller keep, or a threshold of at least 0")
    if outputs * inputs < options["smallest"]:
        return _Dense(f"its weight has {outputs * inputs} numbers, too few to gain", _SMALL)
    if input_rule(step.rule).score == "gate" and activated_gate(node) is None:
        return _Dense("its MLP has no gate", "the rule magnitude, which asks for none")
    return None


def _rewrite(module: GraphModule, node: Node, step: Step, options: Mapping[str, Any]) -> None:
    """Puts the sparse product in place of a linear layer, its weight input-major."""
    x, place = node.args[:2]
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    assert isinstance(x, Node)
    assert isinstance(place, Node)
    weight = _tensor(module, str(place.target))
    rule = input_rule(step.rule)
    count = checked_count(step.keep, weight.shape[1])
    site, role = step.site.rpartition(".")[::2]
    label = f"{site}:{role}"
    norm = gate = None
    if rule.score == "norm":
        norm = _stored(module, f"{place.target}_norm", column_norm(weight), node)
    elif rule.score == "gate":
        gate = activated_gate(node)
    parts: tuple[Node, Node] | None = None
    if options["rank"]:
        down, up = low_rank_part(weight, int(options["rank"]))
        weight = weight - up @ down
        parts = (
            _stored(module, f"{place.target}_down", down, node),
            _stored(module, f"{place.target}_up", up, node),
        )
    _replace(module, str(place.target), weight)
    new = insert_call(
        module.graph, gated_layer, (x, gate, norm, place, bias, parts),
        {"keep": count, "threshold": options["threshold"], "rows": options["rows"]},
        before=node, label=label,
    )  # fmt: skip
    for other in meta.labels(node):
        meta.add_label(new, other)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def gated_layer(
    x: Tensor,
    gate: Tensor | None,
    norm: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
    *,
    keep: int,
    threshold: float | None,
    rows: int,
) -> Tensor:
    """A layer [..., n_out] that reads the inputs x [..., n_in] of the largest score.

    Args:
        x: [..., n_in].
        gate: [..., n_in], scores in place of those of x.
        norm: [n_in] or None, see `input_score`.
        weight: [n_in, n_out], input-major.
        bias: [n_out] or None.
        low_rank: [r, n_in] and [n_out, r], a dense part beside it.
        keep: Inputs that are read.
        threshold: See `gated_linear`.
        rows: See `gated_linear`.
    """
    score = input_score(x, norm) if gate is None else input_score(gate, None)
    found = gated_linear(x, score, weight, keep, threshold, rows)
    if low_rank is not None:
        down, up = low_rank
        found = found + nn.functional.linear(nn.functional.linear(x, down), up)
    return found if bias is None else found + bias


def _tensor(module: GraphModule, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found.detach()


def _replace(module: GraphModule, name: str, weight: Tensor) -> None:
    """Stores a weight [n_out, n_in] input-major under the name it had."""
    owner, _, leaf = name.rpartition(".")
    place = module.get_submodule(owner)
    made = nn.Parameter(weight.t().contiguous(), requires_grad=False)
    delattr(place, leaf)
    place.register_parameter(leaf, made)


def _stored(module: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """A node that reads a new tensor of the module."""
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_buffer(leaf, value.contiguous())
    with module.graph.inserting_before(before):
        return module.graph.get_attr(name)
