"""Where text and images stand in a batch of prompts."""

from __future__ import annotations

import pytest

from prunepass.errors import UsageError
from prunepass.vlm import Layout

PLAIN = Layout(image_token=3, image_tokens=4, padding=0)


def test_a_mark_becomes_the_tokens_of_an_image() -> None:
    assert PLAIN.expanded([1, 3, 8], 1) == [1, 3, 3, 3, 3, 8]
    assert PLAIN.expanded([1, 3, 3, 3, 3, 8], 1) == [1, 3, 3, 3, 3, 8]
    assert PLAIN.expanded([1, 8], 0) == [1, 8]


@pytest.mark.parametrize(("tokens", "images"), [([1, 8], 1), ([3, 3], 1), ([3, 8], 2), ([3], 0)])
def test_marks_and_images_must_agree(tokens: list[int], images: int) -> None:
    with pytest.raises(UsageError, match="prompt and images disagree"):
        PLAIN.expanded(tokens, images)


def test_a_batch_is_padded_on_the_left() -> None:
    found = PLAIN.prompts([[1, 3, 8], [1, 5, 3, 8, 9]], [1, 1])
    assert found.input_ids.tolist() == [[0, 0, 1, 3, 3, 3, 3, 8], [1, 5, 3, 3, 3, 3, 8, 9]]
    assert found.attention_mask.tolist() == [[0, 0, *[1] * 6], [1] * 8]
    assert found.position_ids.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [*range(8)]]
    assert found.image_positions.tolist() == [[[3, 4, 5, 6]], [[2, 3, 4, 5]]]
    assert found.asking_positions.tolist() == [[6, 7], [6, 7]]
    assert found.asking_votes.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert found.next_position.tolist() == [6, 8]


def test_the_last_token_alone_may_ask() -> None:
    found = PLAIN.prompts([[3, 8, 9]], [1], rows="last")
    assert found.asking_positions.tolist() == [[5]]
    image_last = PLAIN.prompts([[8, 3]], [1])
    assert image_last.asking_positions.tolist() == [[4]]
    assert image_last.asking_votes.tolist() == [[1.0]]


def test_text_behind_the_last_of_several_images_asks() -> None:
    found = PLAIN.prompts([[3, 7, 3, 8, 9]], [2])
    assert found.image_positions.tolist() == [[[0, 1, 2, 3], [5, 6, 7, 8]]]
    assert found.asking_positions.tolist() == [[9, 10]]


def test_positions_of_time_row_and_column() -> None:
    found = Layout(3, 6, 0, grid=(2, 3)).prompts([[1, 3, 8, 9]], [1])
    assert found.position_ids[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]
    assert found.next_position.tolist() == [6]


def test_text_alone_has_no_image() -> None:
    found = PLAIN.prompts([[4, 5], [6]], [0, 0])
    assert found.image_positions.shape == (2, 0, 4)
    assert found.asking_positions.tolist() == [[1], [1]]


def test_what_makes_no_batch() -> None:
    with pytest.raises(UsageError, match="same number of images"):
        PLAIN.prompts([[3, 8], [8]], [1, 0])
    with pytest.raises(UsageError, match="no token"):
        PLAIN.prompts([[]], [0])
