from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunepass.analyse.flops import macs
from prunepass.analyse.scan import find_scans, step_bias, token_orders
from prunepass.analyse.sites import sites
from prunepass.capturing import capture
from prunepass.graph import meta
from tests.tiny_ssm import MODELS, model_and_program


@pytest.mark.parametrize("name", MODELS)
def test_scans_have_their_blocks_steps_and_orders(name: str) -> None:
    model, program = model_and_program(name)
    scans = find_scans(program.graph)
    each = 2 if name == "vim" else 4
    assert len(scans) == 3 * each
    assert all(scan.steps is None and step_bias(scan.core) is not None for scan in scans)
    orders = token_orders(program.graph)
    found = [orders.get(scan.core) for scan in scans[:each]]
    if name == "vim":
        assert found == [None, tuple(reversed(range(26)))]
    else:
        ways = [tuple(order) for order, _ in model.backbone.layers[0].mamba.ways]
        assert found == ways
    blocks = [s.label for s in sites(program) if s.kind == "scan"]
    assert blocks == [f"block[{i}].scan" for i in range(3)]
    mixed = meta.labelled(program.graph)["block[1].scan:mixed"]
    assert meta.concrete_shape(mixed, 2) == (2, 26 if name == "vim" else 25, 24)


def test_macs_of_a_vim_in_closed_form() -> None:
    _, program = model_and_program("vim")
    tokens, c, depth, states = 26, 12, 3, 5
    inner, rank = 2 * c, 1
    layer = c * 2 * inner + inner * c
    layer += 2 * inner * (4 + rank + 2 * states + rank + 3 * states + 1)
    expected = depth * tokens * layer + 25 * c * 3 * 64 + c * 7
    assert macs(program) == expected


class _StepByStep(nn.Module):
    """A recurrence as models write it that unroll it in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(6, 12), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        decay, enter = self.project(x).chunk(2, dim=2)
        decay = torch.sigmoid(decay)
        state, found = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + enter[:, t]
            found.append(state)
        return x + self.out(torch.stack(found, 1))


def test_a_recurrence_written_out_is_one_scan() -> None:
    program = capture(_StepByStep().eval(), (torch.randn(2, 9, 6),))
    (scan,) = find_scans(program.graph)
    assert scan.steps == 9
    (site,) = [s for s in sites(program) if s.kind == "scan"]
    assert site.label == "block[0].scan"
    assert site.refusal is not None  # its steps are written out, one a token


class _States(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeds: Tensor) -> Tensor:
        found = self.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        assert isinstance(found, Tensor)
        return found


@pytest.mark.parametrize("version", [1, 2])
def test_language_models_of_transformers_are_recognised(version: int) -> None:
    from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel

    common = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 50}
    model = (
        MambaModel(MambaConfig(state_size=4, **common))
        if version == 1
        else Mamba2Model(
            Mamba2Config(state_size=8, num_heads=4, head_dim=8, n_groups=1, chunk_size=4, **common)
        )
    )
    program = capture(_States(model).eval(), (torch.randn(2, 12, 16),))
    scans = find_scans(program.graph)
    if version == 1:
        assert [(s.form, s.steps) for s in scans] == [("steps", 12)] * 2
    else:
        assert {s.form for s in scans} == {"blocks"}
    assert [s.label for s in sites(program) if s.kind == "scan"] == [
        "block[0].scan", "block[1].scan"
    ]  # fmt: skip
