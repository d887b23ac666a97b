"""Rules that choose image features in front of a language model: diverse ones, VisionZip."""

from __future__ import annotations

import torch

from prunepass.rules.diversity import diverse_tokens
from prunepass.rules.vision_zip import vision_zip


def angles(*degrees: float) -> torch.Tensor:
    """Unit vectors [1, N, 2]."""
    turn = torch.tensor([degrees]).deg2rad()
    return torch.stack([turn.cos(), turn.sin()], dim=2)


def test_the_farthest_is_taken_first_and_then_the_farthest_from_it() -> None:
    features = angles(0, 2, 100, 185)  # 100 is farthest from its neighbours, 0 from it
    assert diverse_tokens(features, keep=1).tolist() == [[2]]
    assert diverse_tokens(features, keep=2).tolist() == [[0, 2]]
    assert diverse_tokens(features, keep=3).tolist() == [[0, 2, 3]]
    assert diverse_tokens(features, keep=4).tolist() == [[0, 1, 2, 3]]


def test_duplicates_are_not_chosen_while_others_remain() -> None:
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(3, 6, 8, generator=generator)
    features = torch.cat([distinct, distinct, distinct], dim=1)
    chosen = diverse_tokens(features, keep=6)
    for row in chosen.tolist():
        assert len({token % 6 for token in row}) == 6
    assert diverse_tokens(torch.ones(1, 4, 2), keep=3).unique().numel() == 3


def test_length_does_not_matter_and_order_only_renames() -> None:
    features = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(1))
    scaled = features * torch.linspace(0.5, 4.0, 12)[None, :, None]
    assert torch.equal(diverse_tokens(features, keep=5), diverse_tokens(scaled, keep=5))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    moved = diverse_tokens(features[:, order], keep=5)[0]
    assert sorted(order[moved].tolist()) == diverse_tokens(features, keep=5)[0].tolist()


def test_vision_zip_by_hand() -> None:
    """Token 3 is looked at most; 1 and 4 are alike, 2 stands for itself."""
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [3.0, 0.0]]])
    attention = torch.zeros(1, 1, 5, 5)
    attention[0, 0, 0] = torch.tensor([0.1, 0.1, 0.1, 0.6, 0.1])
    key = hidden[:, None]
    found = vision_zip(hidden, attention, key, keep=3, contextual=2)
    # Of 1, 2 and 4 the first two become contextual; 4 is most like 1 and is added to it whole.
    assert found.tolist() == [[[9.0, 9.0], [5.0, 5.0], [4.0, 0.0], [0.0, 1.0]]]
    plain = vision_zip(hidden, attention, key, keep=1, contextual=0)
    assert plain.tolist() == [[[9.0, 9.0], [5.0, 5.0]]]
