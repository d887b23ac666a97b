from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from prunepass.rules.merge import gather_tokens, joining, merge_tokens
from prunepass.rules.select import keep_everything, select_by_score
from prunepass.rules.selection import Selection
from tests.rules.example import numbers


def select(kept: list[int], dropped: list[int], target: list[int]) -> Selection:
    return Selection(*(torch.tensor([part]) for part in (kept, dropped, target)))


def test_four_tokens_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 0.0], [7.0, 4.0]]])
    size = torch.tensor([[1.0, 1.0, 3.0, 2.0]])
    merged, joint = merge_tokens(x, size, select([0, 2], [1, 3], [2, 2]))
    assert joint.tolist() == [[1.0, 6.0]]
    expected = torch.tensor([[[1.0, 2.0], [(3 + 15 + 14) / 6, (6 + 0 + 8) / 6]]])
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=0)


def test_gather_for_any_trailing_axes() -> None:
    index = torch.tensor([[3, 0], [1, 1]])
    for shape in ((2, 4), (2, 4, 3), (2, 4, 3, 5)):
        x = numbers(*shape)
        expected = torch.stack([x[0, [3, 0]], x[1, [1, 1]]])
        assert torch.equal(gather_tokens(x, index), expected)


def test_joining_has_a_one_for_each_dropped_token() -> None:
    matrix = joining(torch.tensor([[0, 2, 5]]), torch.tensor([[5, 0, 5]]), dtype=torch.float64)
    assert matrix.tolist() == [[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]]


def test_weights_set_the_mean_and_the_norm_of_the_parts_stays() -> None:
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [5.0, 12.0]]], dtype=torch.float64)
    size = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.25, 0.75, 1.0]], dtype=torch.float64)
    merged, joint = merge_tokens(x, size, select([1, 2], [0], [1])._replace(weight=weight))
    assert joint.tolist() == [[3.0, 1.0]]
    mean = torch.tensor([0.75, 3.0], dtype=torch.float64)
    expected = mean / mean.norm() * (0.25 * 3 + 0.75 * 4)
    torch.testing.assert_close(merged[0, 0], expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged[0, 1], x[0, 2], rtol=1e-14, atol=0)


def test_nothing_dropped_returns_the_inputs() -> None:
    x, size = numbers(2, 4, 3), torch.ones(2, 4, dtype=torch.float64)
    merged, joint = merge_tokens(x, size, keep_everything(x))
    assert merged is x
    assert joint is size


def test_untouched_tokens_are_unchanged() -> None:
    x = numbers(1, 6, 5, dtype=torch.float32)
    size = torch.tensor([[1.0, 3.0, 7.0, 1.0, 3.0, 1.0]])
    merged, _ = merge_tokens(x, size, select([0, 1, 2, 4], [3, 5], [1, 1]))
    torch.testing.assert_close(merged[0, [0, 2, 3]], x[0, [0, 2, 4]], rtol=1e-6, atol=0)


def test_sizes_and_weighted_sum_are_preserved() -> None:
    x, size = numbers(2, 12, 5), numbers(2, 12, seed=1).abs() + 0.5
    merged, joint = merge_tokens(
        x, size, select_by_score(numbers(2, 12, seed=2), x, keep=5, prefix=1)
    )
    torch.testing.assert_close(joint.sum(1), size.sum(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        (merged * joint.unsqueeze(-1)).sum(1),
        (x * size.unsqueeze(-1)).sum(1),
        rtol=1e-12,
        atol=1e-13,
    )


def test_large_half_precision_tokens_stay_finite() -> None:
    x = torch.full((1, 4, 3), 6e4, dtype=torch.float16)
    size = torch.tensor([[1.0, 40.0, 100.0, 2.0]], dtype=torch.float16)
    merged, _ = merge_tokens(x, size, select([0, 2], [1, 3], [2, 2]))
    assert merged.dtype == torch.float16
    torch.testing.assert_close(merged.float(), torch.full((1, 2, 3), 6e4), rtol=2e-3, atol=0)


class Merge(torch.nn.Module):
    """merge_tokens with the selection as inputs, to be exported."""

    def forward(
        self, x: torch.Tensor, size: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor,
        target: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        return merge_tokens(x, size, Selection(kept, dropped, target))


def test_half_precision_runs_in_onnx_runtime(tmp_path: Path) -> None:
    x, size = numbers(2, 9, 5, dtype=torch.float16), torch.ones(2, 9, dtype=torch.float16)
    selection = select_by_score(numbers(2, 9, seed=1), x.double(), keep=3, prefix=1)
    batch = torch.export.Dim("batch", min=1, max=64)
    arguments = (x, size, *selection[:3])
    program = torch.export.export(
        Merge(), arguments, dynamic_shapes=tuple({0: batch} for _ in arguments)
    )
    path = tmp_path / "merge.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
    merged, joint = session.run(None, feed)
    expected = merge_tokens(x, size, selection)
    assert merged.dtype == np.float16
    np.testing.assert_array_equal(joint, expected[1].numpy())
    np.testing.assert_allclose(merged, expected[0].numpy(), rtol=2e-3, atol=1e-3)
