from __future__ import annotations

import torch
from torch import Tensor

from prunepass.graph import meta
from prunepass.graph.edit import open_module, seal
from prunepass.graph.splice import insert_call
from tests.conftest import Captured
from tests.tiny_models import images


def squash(x: Tensor, *, by: float) -> Tensor:
    return (x * by).tanh() / by


def test_a_plain_function_is_inlined_and_labelled(captured: Captured) -> None:
    program = captured("class")
    module = open_module(program)
    site = meta.labelled(module.graph)["block[1].output:output"]
    after = site.next
    call = insert_call(module.graph, squash, (site,), {"by": 0.3}, before=after, label="squash")
    site.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    assert meta.module_path(call) == meta.module_path(after)
    sealed = seal(module, program)
    inlined = [n for n in sealed.graph.nodes if "squash" in meta.labels(n)]
    assert [str(n.target) for n in inlined] == [
        "aten.mul.Tensor",
        "aten.tanh.default",
        "aten.div.Tensor",
    ]
    x = images(3, seed=40)
    result = sealed.module(check_guards=False)(x)
    torch.testing.assert_close(result, module(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(result, program.module(check_guards=False)(x), rtol=1e-3, atol=1e-3)
