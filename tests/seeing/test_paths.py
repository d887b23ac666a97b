"""Where tokens go: by hand, and against what the program does to sizes."""

from __future__ import annotations

import pytest
import torch

from prunepass.errors import InternalError
from prunepass.seeing.paths import follow, stages


def test_five_tokens_by_hand() -> None:
    owner = follow(torch.arange(5), 5, torch.tensor([0, 2, 4]))
    assert owner.tolist() == [0, -1, 1, -1, 2]
    merged = follow(
        torch.arange(5), 5, torch.tensor([0, 2, 4]), torch.tensor([3, 1]), torch.tensor([4, 2])
    )
    assert merged.tolist() == [0, 1, 1, 2, 2]
    # A token that was merged goes where its target goes, and one that is gone stays away.
    assert follow(merged, 3, torch.tensor([0, 2])).tolist() == [0, -1, -1, 1, 1]
    assert follow(owner, 3, torch.tensor([0, 1])).tolist() == [0, -1, 1, -1, -1]


def test_every_kept_token_stands_for_as_many_as_merging_counts() -> None:
    from prunepass.rules.merge import merge_tokens
    from prunepass.rules.tome import tome

    torch.manual_seed(0)
    x, size = torch.randn(1, 21, 8), torch.ones(1, 21)
    owner = torch.arange(21)
    for keep in (14, 9):
        before = x.shape[1]
        selection = tome(x[:, None], keep=keep, prefix=1)
        owner = follow(owner, before, *(part[0] for part in selection[:3]))
        x, size = merge_tokens(x, size, selection)
        assert torch.equal(owner.bincount(minlength=keep).float(), size[0])


def test_stages_are_told_apart_and_checked() -> None:
    told = {"b:reduce.kept": torch.tensor([[0, 2], [0, 1]])}
    (stage,) = stages(told, {"b": (3, 2), "c": (2, 1)}, image=1)
    assert (stage.before, stage.after, stage.owner.tolist()) == (3, 2, [0, 1, -1])
    assert not stage.merges
    with pytest.raises(InternalError, match="other tokens"):
        stages(told, {"b": (3, 1)})
