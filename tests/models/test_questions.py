"""Pictures with questions: the same for every run, and every answer true."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from prunepass.models.questions import ANSWERS, COLOURS, SHAPES, SIZE, WORDS, picture, token_numbers

MANY = [picture(i) for i in range(400)]


def test_a_picture_is_a_function_of_its_number() -> None:
    again = picture(7)
    assert torch.equal(again.pixels, MANY[7].pixels)
    assert (again.objects, again.questions) == (MANY[7].objects, MANY[7].questions)
    assert not torch.equal(again.pixels, MANY[8].pixels)
    assert again.pixels.shape == (3, SIZE, SIZE)
    assert again.pixels.dtype == torch.float32
    bytes_ = again.pixels * 255
    torch.testing.assert_close(bytes_, bytes_.round(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="number -1"):
        picture(-1)


def test_every_answer_is_true() -> None:
    for made in MANY:
        colours = {thing.shape: thing.colour for thing in made.objects}
        shapes = {thing.colour: thing.shape for thing in made.objects}
        assert len(colours) == len(shapes) == len(made.objects) in (2, 3, 4)
        assert len(made.questions) == 6
        for question in made.questions:
            words = question.text.split()
            if words[:2] == ["what", "color"]:
                assert question.answer == colours[words[4]]
            elif words[:2] == ["what", "shape"]:
                assert question.answer == shapes[words[3]]
            elif words[:2] == ["is", "there"]:
                assert question.answer == ("yes" if words[3] in colours else "no")
            else:
                assert words[:2] == ["is", "the"]
                assert question.answer == ("yes" if colours[words[2]] == words[3] else "no")


def test_objects_stand_where_they_say_in_their_colour() -> None:
    for made in MANY[:100]:
        for thing in made.objects:
            if thing.shape == "ring":
                continue
            found = made.pixels[:, int(thing.y), int(thing.x)]
            gaps = {
                name: float((found - torch.tensor(colour)).abs().max())
                for name, colour in COLOURS.items()
            }
            assert min(gaps, key=gaps.__getitem__) == thing.colour


def test_answers_are_spread() -> None:
    counts = Counter(q.answer for made in MANY for q in made.questions)
    assert set(counts) == set(ANSWERS)
    assert 0.8 < counts["yes"] / counts["no"] < 1.25
    for group in (COLOURS, SHAPES):
        numbers = [counts[name] for name in group]
        assert min(numbers) > 0.6 * max(numbers)


def test_every_word_is_a_token() -> None:
    assert len(set(WORDS)) == len(WORDS)
    for made in MANY:
        for question in made.questions:
            numbers = token_numbers(f"{question.text} answer : {question.answer}")
            assert WORDS.index("<unk>") not in numbers
            assert len(numbers) <= 10
    assert token_numbers("is there a hexagon ?")[3] == WORDS.index("<unk>")
