"""Tokens of crops of different lengths in one row."""

from __future__ import annotations

import pytest
import torch

from cytolake.models.runs import join_runs, split_runs, spread, starts

RUNS = ((2, 3), (1, 5), (3, 1))
LENGTHS = (3, 3, 5, 1, 1, 1)


@pytest.mark.parametrize("runs", [RUNS, RUNS[:1]])
def test_splitting_and_joining_are_inverse_with_their_gradients(runs):
    row = torch.randn(sum(n * length for n, length in runs), 4, requires_grad=True)
    stacks = split_runs(row, runs)
    assert [tuple(stack.shape) for stack in stacks] == [(n, length, 4) for n, length in runs]
    joined = join_runs(stacks)
    assert torch.equal(joined, row)
    weights = torch.randn_like(row)
    (joined * weights).sum().backward()
    assert torch.equal(row.grad, weights)


def test_what_is_known_of_a_crop_reaches_each_of_its_tokens():
    of_crop = torch.randn(2, len(LENGTHS))
    want = torch.cat([of_crop[:, [i]].expand(-1, length) for i, length in enumerate(LENGTHS)], dim=1)
    assert torch.equal(spread(of_crop, RUNS), want)


def test_starts_are_where_crops_start_and_the_last_one_ends():
    with torch.inference_mode():
        found = starts(RUNS, torch.device("cpu"))
    assert found.tolist() == [sum(LENGTHS[:i]) for i in range(len(LENGTHS) + 1)]
    assert found.dtype == torch.int32
    assert not found.is_inference()  # or a training step could not use it
