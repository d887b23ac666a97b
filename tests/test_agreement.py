"""How far apart two computations of the same thing are."""

from __future__ import annotations

import pytest
import torch

from prunepass.agreement import (
    ENGINE,
    Limit,
    difference,
    differences_by_example,
    largest_difference,
    random_inputs,
)

INF = float("inf")


def test_differences_are_relative_to_the_largest_number() -> None:
    told = torch.tensor([[1.0, -4.0], [0.0, 2.0]])
    assert difference(told, told) == 0.0
    assert difference(told + torch.tensor([[0.0, 0.0], [1.0, 0.0]]), told) == 0.25
    assert difference(10 * told + 1, 10 * told) == pytest.approx(1 / 40)


@pytest.mark.parametrize("wrong", [float("nan"), INF])
def test_what_is_no_number_is_infinitely_far(wrong: float) -> None:
    told = torch.ones(2, 3)
    found = told.clone()
    found[1, 2] = wrong
    assert difference(found, told) == INF
    assert difference(told, found) == INF
    assert differences_by_example([found], [told], examples=2).tolist() == [0.0, INF]


def test_other_shapes_and_other_numbers_of_outputs_are_infinitely_far() -> None:
    told = torch.ones(2, 3)
    assert difference(torch.ones(2, 1), told) == INF
    assert largest_difference([told, told], [told]) == INF
    assert largest_difference([], [told]) == INF


def test_the_largest_of_several_outputs_counts() -> None:
    told = [torch.ones(2, 3), torch.full((2,), 4), torch.empty(2, 0)]
    found = [torch.full((2, 3), 1.125), torch.full((2,), 5), torch.empty(2, 0)]
    assert largest_difference(found, told) == 0.25


def test_an_output_for_all_examples_counts_for_each() -> None:
    told = [torch.ones(3, 2), torch.tensor(1.0)]
    found = [torch.tensor([[1.0, 1.0], [1.5, 1.0], [1.0, 1.0]]), torch.tensor(1.25)]
    each = differences_by_example(found, told, examples=3)
    assert each.tolist() == [0.25, 0.5, 0.25]


def test_small_differences_of_half_precision_are_not_lost() -> None:
    told = torch.full((2, 2), 1000.0, dtype=torch.float16)
    assert difference(told.double() + 0.01, told.double()) == pytest.approx(1e-5)
    assert difference(told + 1, told) == pytest.approx(1e-3)


def test_limits_follow_the_precision_of_any_output() -> None:
    limit = Limit(single=1.0, half=2.0)
    whole, single, half = torch.ones(2).long(), torch.ones(2), torch.ones(2).half()
    assert limit.of([whole]) == limit.of([single, whole]) == limit.of([single.double()]) == 1.0
    assert limit.of([single, half]) == limit.of([half.bfloat16()]) == 2.0
    assert ENGINE.single < ENGINE.half


def test_random_inputs_have_the_shapes_and_types_of_the_examples() -> None:
    examples = (torch.zeros(2, 3).half(), torch.tensor([[7, 8], [9, 9]]))
    made = random_inputs(examples, seed=0)
    assert [(x.shape, x.dtype) for x in made] == [(x.shape, x.dtype) for x in examples]
    assert torch.equal(made[1], examples[1])
    assert bool((made[0] != 0).any())
    assert all(map(torch.equal, made, random_inputs(examples, seed=0)))
    assert not torch.equal(made[0], random_inputs(examples, seed=1)[0])


def test_random_inputs_of_another_batch() -> None:
    examples = (torch.zeros(2, 3), torch.tensor([[7, 8], [9, 9]]))
    floats, numbers = random_inputs(examples, seed=0, batch=3)
    assert floats.shape == (3, 3)
    assert numbers.tolist() == [[7, 8]] * 3
