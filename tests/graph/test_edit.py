from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import dynamic_shapes, open_module, seal
from prunepass.graph.text import text
from prunepass.specialise import specialise
from tests.conftest import Captured
from tests.tiny_models import images


def test_opening_and_sealing_changes_nothing(captured: Captured) -> None:
    program = captured("class")
    sealed = seal(open_module(program), program)
    x = images(3, seed=41)
    result, expected = (p.module(check_guards=False)(x) for p in (sealed, program))
    assert torch.equal(result, expected)
    assert list(sealed.state_dict) == list(program.state_dict)
    assert len(text(sealed).splitlines()) <= len(text(program).splitlines())


def test_an_opened_graph_is_a_copy(captured: Captured) -> None:
    program = captured("class")
    before = text(program)
    module = open_module(program)
    for node in module.graph.nodes:
        meta.add_label(node, "mine")
    module.graph.erase_node(module.graph.find_nodes(op="output")[0])
    assert text(program) == before


def test_a_fixed_batch(captured: Captured) -> None:
    fixed = specialise(captured("class"), batch=5)
    assert all(isinstance(size, int) for n in fixed.graph.nodes for size in meta.shape(n) or ())
    x = images(5, seed=42)
    expected = captured("class").module(check_guards=False)(x)
    torch.testing.assert_close(fixed.module()(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):
        fixed.module()(images(3))


def test_the_batch_stays_dynamic(captured: Captured) -> None:
    sealed = specialise(captured("class"))
    for batch in (1, 4):
        assert sealed.module()(images(batch)).shape == (batch, 11)


def test_a_missed_frozen_size_does_not_trace(captured: Captured) -> None:
    program = captured("class")
    module = open_module(program)
    site = meta.labelled(module.graph)["block[0].output:output"]
    with module.graph.inserting_after(site):
        fewer = module.graph.call_function(torch.ops.aten.slice.Tensor, (site, 1, 0, 13))
    site.replace_all_uses_with(fewer, delete_user_cb=lambda user: user is not fewer)
    with pytest.raises(UnsupportedGraph, match="does not trace") as e:
        seal(module, program)
    assert "[s" in str(e.value.found)
    assert "21, 3, 2, 14]" in str(e.value.found)


def test_dynamic_sizes_keep_their_bounds() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.sum(dim=1) + y

    n, t = torch.export.Dim("n", min=1, max=9), torch.export.Dim("t", min=3, max=64)
    program = torch.export.export(
        Model(), (torch.ones(4, 5), torch.ones(4)), dynamic_shapes=({0: n, 1: t}, {0: n})
    )
    first, second = dynamic_shapes(program)
    assert first[0].__name__ == second[0].__name__
    assert first[0] is second[0]
    assert (first[0].min, first[0].max) == (1, 9)
    assert (first[1].min, first[1].max) == (3, 64)
    sealed = seal(open_module(program), program)
    assert sorted((v.lower, v.upper) for v in sealed.range_constraints.values()) == [
        (1, 9),
        (3, 64),
    ]
