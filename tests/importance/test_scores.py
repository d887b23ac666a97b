"""Layer scores on whole programs: planted layers, checkpoints, identical runs."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.calibrate import Batch
from prunepass.capturing import capture
from prunepass.errors import ModelError, UsageError
from prunepass.importance.scores import LayerScores, layer_scores
from prunepass.importance.table import LAYER_SCORES
from prunepass.rules.input_modification import cosines
from prunepass.rules.z_scores import z_score_share
from tests.conftest import Captured
from tests.tiny_models import DEPTH, images, tiny

NAMES = tuple(LAYER_SCORES)
SEES_CRUCIAL = ("lim", "bi", "suppress", "ecoflap-first")
SEES_USELESS = ("lim", "bi", "ecoflap", "ecoflap-first", "suppress", "wpca")


def batches(count: int, *, size: int = 4) -> Iterator[Batch]:
    for i in range(count):
        yield Batch((images(size, seed=i),))


def stream_of(model: Any, x: Tensor) -> list[Tensor]:
    """The stream in front of each block, and behind the last."""
    found = [model.embed(x)]
    for block in model.blocks:
        found.append(block(found[-1]))
    return found


@pytest.fixture(scope="module")
def all_scores() -> LayerScores:
    return layer_scores(capture(tiny("class"), (images(2),)), batches(3), scores=NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_and_branch_has_a_score(name: str, all_scores: LayerScores) -> None:
    told = [f"block[{i}]{part}" for i in range(DEPTH) for part in ("", ".attention", ".mlp")]
    assert sorted(all_scores.values[name]) == sorted(told)
    assert len(all_scores.order(name)) == DEPTH
    assert len(all_scores.order(name, branches=True)) == 2 * DEPTH


def test_identical_runs_give_identical_scores(all_scores: LayerScores) -> None:
    again = layer_scores(capture(tiny("class"), (images(2),)), batches(3), scores=NAMES)
    assert again.values == all_scores.values


def test_lim_is_the_mean_of_cosines_over_the_boundary(all_scores: LayerScores) -> None:
    streams = [stream_of(tiny("class"), images(4, seed=i)) for i in range(3)]
    for block in range(DEPTH):
        told = torch.cat([cosines(s[block], s[block + 1]) for s in streams]).mean()
        found = all_scores.values["lim"][f"block[{block}]"]
        assert found == pytest.approx(-float(told), abs=1e-12)
        assert all_scores.values["bi"][f"block[{block}]"] == 1 + found


def test_the_module_tap_leaves_the_residual_out(captured: Captured) -> None:
    model: Any = tiny("class")
    found = layer_scores(captured("class"), batches(1), scores=["lim"], tap="module")
    x = stream_of(model, images(4, seed=0))[0]
    added = model.blocks[0].attn(model.blocks[0].norm1(x))
    told = -float(cosines(x, added).mean())
    assert found.values["lim"]["block[0].attention"] == pytest.approx(told, abs=1e-12)


def test_prefix_tokens_and_padding_can_be_left_out(captured: Captured) -> None:
    streams = stream_of(tiny("class"), images(4, seed=0))
    found = layer_scores(captured("class"), batches(1), scores=["lim"], prefix=1)
    told = -float(cosines(streams[0], streams[1])[:, 1:].mean())
    assert found.values["lim"]["block[0]"] == pytest.approx(told, abs=1e-12)
    valid = (torch.arange(21) < 8).expand(4, 21)
    padded = [Batch((images(4, seed=0),), valid=valid)]
    found = layer_scores(captured("class"), padded, scores=["lim"])
    told = -float(cosines(streams[0], streams[1])[:, :8].mean())
    assert found.values["lim"]["block[0]"] == pytest.approx(told, abs=1e-12)


def test_zd_is_of_the_pooled_matrices_and_needs_no_data(captured: Captured) -> None:
    model: Any = tiny("class")
    found = layer_scores(captured("class"), scores=["zd"]).values["zd"]
    block = model.blocks[1]
    matrices = [
        block.attn.qkv.weight,
        block.attn.proj.weight,
        block.mlp.fc1.weight,
        block.mlp.fc2.weight,
    ]
    assert found["block[1]"] == z_score_share(matrices)
    assert found["block[1].mlp"] == z_score_share(matrices[2:])


def planted(*, useless: int | None = None, crucial: int | None = None) -> ExportedProgram:
    """A model with a layer that adds next to nothing, or one that what follows depends on."""
    model: Any = tiny("class", seed=3)
    if useless is not None:
        # It lies in a plane besides: few hidden directions that matter.
        for part in (model.blocks[useless].attn.proj, model.blocks[useless].mlp.fc2):
            part.weight.mul_(1e-3)
            nn.init.zeros_(part.bias)
        model.blocks[useless].mlp.fc1.weight.mul_(1e-4)
        model.blocks[useless].attn.qkv.weight.mul_(1e-4)
    if crucial is not None:
        for i, block in enumerate(model.blocks):
            for part in (block.attn.proj, block.mlp.fc2):
                part.weight.mul_(2.0 if i == crucial else 0.1)
                part.bias.mul_(0.1)
    return capture(model, (images(2),))


@pytest.mark.parametrize("block", range(DEPTH))
def test_a_useless_layer_comes_last(block: int) -> None:
    found = layer_scores(planted(useless=block), batches(6), scores=SEES_USELESS)
    last = {name: found.order(name)[0] for name in SEES_USELESS}
    assert last == dict.fromkeys(SEES_USELESS, f"block[{block}]")


def test_a_crucial_layer_comes_first() -> None:
    found = layer_scores(planted(crucial=1), batches(6), scores=SEES_CRUCIAL)
    first = {name: found.order(name)[-1] for name in SEES_CRUCIAL}
    assert first == dict.fromkeys(SEES_CRUCIAL, "block[1]")


def test_zd_sees_weights_that_stand_out() -> None:
    """A few large weights: fewer lie one deviation above the mean, so the layer matters more."""
    model: Any = tiny("class")
    for part in (model.blocks[2].attn.qkv, model.blocks[2].mlp.fc1):
        part.weight[:1] *= 20
    found = layer_scores(capture(model, (images(2),)), scores=["zd"])
    assert found.order("zd")[-1] == "block[2]"


def test_weights_are_bit_identical_afterwards() -> None:
    program = capture(tiny("class"), (images(2),))
    before = {key: value.clone() for key, value in program.state_dict.items()}
    layer_scores(program, batches(1), scores=["ecoflap", "ecoflap-first", "suppress"])
    assert all(torch.equal(program.state_dict[key], value) for key, value in before.items())
    assert not any(p.requires_grad for p in program.parameters())


def test_labels_are_used_where_they_are_known(captured: Captured) -> None:
    x = images(4)
    wrong = Batch((x,), labels=torch.tensor([0, 5, 9, 2]))
    unknown = Batch((x,), labels=torch.full((4,), -1))
    values = [
        layer_scores(captured("class"), [b], scores=["ecoflap-first"]).values["ecoflap-first"]
        for b in (wrong, unknown, Batch((x,)))
    ]
    assert values[0] != values[1]
    assert values[1] == values[2]


def test_a_single_example_is_a_batch(captured: Captured) -> None:
    one = layer_scores(captured("class"), batches(1, size=1), scores=["lim"]).values["lim"]
    streams = stream_of(tiny("class"), images(1, seed=0))
    assert one["block[2]"] == pytest.approx(
        -float(cosines(streams[2], streams[3]).mean()), abs=1e-12
    )


def test_a_second_run_goes_on_from_a_checkpoint(tmp_path: Path, captured: Captured) -> None:
    names = ["lim", "suppress", "wpca"]
    path = tmp_path / "scores.pt"
    seen: list[int] = []

    def counted(count: int) -> Iterator[Batch]:
        for i, batch in enumerate(batches(count)):
            seen.append(i)
            yield batch

    whole = layer_scores(captured("class"), batches(4), scores=names)
    done: list[int] = []
    first = layer_scores(
        captured("class"), counted(2), scores=names, checkpoint=path, progress=done.append
    )
    assert first.batches == 2
    again = layer_scores(
        captured("class"), counted(4), scores=names, checkpoint=path, progress=done.append
    )
    assert done == [4] * 4
    assert again.batches == 4
    assert again.values == whole.values
    assert [p.name for p in tmp_path.iterdir()] == ["scores.pt"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, captured: Captured) -> None:
    path = tmp_path / "scores.pt"
    layer_scores(captured("class"), batches(1), scores=["lim"], checkpoint=path)
    with pytest.raises(UsageError, match="another model or other scores"):
        layer_scores(captured("class"), batches(1), scores=["wpca"], checkpoint=path)
    other = capture(tiny("class", seed=1), (images(2),))
    with pytest.raises(UsageError, match="another model"):
        layer_scores(other, batches(1), scores=["lim"], checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="cannot read"):
        layer_scores(captured("class"), batches(1), scores=["lim"], checkpoint=path)


def test_memory_does_not_grow_with_the_number_of_batches(captured: Captured) -> None:
    """What is alive between two batches is the same after the second and after the tenth."""
    alive: list[int] = []

    def counted() -> Iterator[Batch]:
        for batch in batches(10):
            if len(alive) in (2, 9):
                gc.collect()
                alive.append(sum(type(x) is torch.Tensor for x in gc.get_objects()))
            else:
                alive.append(0)
            yield batch

    layer_scores(captured("class"), counted(), scores=["lim", "wpca"])
    assert alive[2] >= alive[9] - 2 > 0


def test_wrong_requests_are_refused(captured: Captured) -> None:
    program = captured("class")
    with pytest.raises(UsageError, match="no layer score"):
        layer_scores(program, batches(1), scores=["limm"])
    with pytest.raises(UsageError, match="no tap"):
        layer_scores(program, batches(1), tap="modul")
    with pytest.raises(ModelError, match="needs calibration data"):
        layer_scores(program, [], scores=["lim"])
    with pytest.raises(ModelError, match="does not run"):
        layer_scores(program, [Batch((torch.zeros(2, 5),))], scores=["lim"])
    with pytest.raises(ModelError, match="class scores"):
        layer_scores(captured("tokens_out"), batches(1), scores=["ecoflap"])


def test_four_models_of_other_kinds(captured: Captured) -> None:
    for name, score in itertools.product(
        ("post_norm", "sum_of_three", "rotary", "windows"), ("lim", "wpca")
    ):
        found = layer_scores(captured(name), batches(1), scores=[score]).values[score]
        assert all(v == v for v in found.values()), (name, score)
