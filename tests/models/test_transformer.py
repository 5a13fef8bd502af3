"""Attention over packed crops, drop-path, and compiled blocks."""

from __future__ import annotations

import pytest
import torch

from cytolake.models.transformer import (
    Block,
    ParallelBlock,
    SequentialBlock,
    attend,
    attend_in_one_call,
    attend_run_by_run,
    compile_blocks,
)

RUNS = ((2, 3), (1, 7), (3, 2))
KEY_RUNS = ((2, 5), (1, 4), (3, 1))


def n_tokens(runs) -> int:
    return sum(n * length for n, length in runs)


def crops_of(row, runs):
    """Each crop's own rows."""
    return row.split([length for n, length in runs for _ in range(n)])


def test_attention_is_a_softmax_over_the_keys_of_the_same_crop():
    query, key, value = (torch.randn(n_tokens(runs), 2, 8) for runs in (RUNS, KEY_RUNS, KEY_RUNS))
    want = []
    for q, k, v in zip(crops_of(query, RUNS), crops_of(key, KEY_RUNS), crops_of(value, KEY_RUNS), strict=True):
        weights = torch.einsum("qhd,khd->hqk", q, k).div(8**0.5).softmax(dim=-1)
        want.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
    torch.testing.assert_close(attend(query, key, value, RUNS, KEY_RUNS), torch.cat(want), atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_one_call_for_all_crops_gives_what_a_call_for_each_run_gives():
    runs = ((3, 65), (1, 257), (2, 129))
    results = []
    for form in (attend_run_by_run, attend_in_one_call):
        torch.manual_seed(0)
        entered = torch.randn(n_tokens(runs), 3, 6, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        mixed = form(*entered.unbind(1), runs, runs)
        mixed.backward(torch.randn_like(mixed))
        results.append((mixed, entered.grad))
    for one, other in zip(*results, strict=True):
        # Both round in bf16, to 8 bits, after sums in another order.
        assert (one - other).float().norm() < 1e-2 * other.float().norm()


@pytest.mark.gpu
def test_packed_attention_on_a_gpu_in_half_precision_is_one_call(monkeypatch):
    calls = []

    def counted(*inputs):
        calls.append(inputs)
        return attend_in_one_call(*inputs)

    monkeypatch.setattr("cytolake.models.transformer.attend_in_one_call", counted)
    query, key, value = torch.randn(3, n_tokens(RUNS), 2, 64, device="cuda", dtype=torch.bfloat16)
    attend(query, key, value, RUNS)
    attend(query[:6], key[:6], value[:6], RUNS[:1])
    attend(query.float(), key.float(), value.float(), RUNS)
    assert len(calls) == 1


def test_drop_path_leaves_out_whole_crops_and_keeps_the_mean():
    block = SequentialBlock(32, 2, 64, drop_path=0.25).train()
    runs = ((400, 2), (300, 3))
    torch.manual_seed(0)
    kept = block._kept(torch.zeros(n_tokens(runs), 32), runs)
    of_crops = [own.unique(dim=1) for own in kept.split([2] * 400 + [3] * 300, dim=1)]
    assert all(own.shape[1] == 1 for own in of_crops)
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 4 / 3]))
    assert torch.cat(of_crops, dim=1).mean().item() == pytest.approx(1, abs=0.05)  # sd 0.015
    torch.manual_seed(0)
    assert torch.equal(block._kept(torch.zeros(n_tokens(runs), 32), runs), kept)
    assert block.eval()._kept(torch.zeros(n_tokens(runs), 32), runs) is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo's own look at its inputs
@pytest.mark.parametrize("one_shape", [False, True])
def test_compiled_blocks_compute_the_same_with_the_same_random_numbers(one_shape):
    results = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        blocks = torch.nn.ModuleList(
            ParallelBlock(32, 2, 64, drop_path=0.5, layer_scale=0.5) for _ in range(2)
        ).train()  # fmt: skip
        if is_compiled:
            compile_blocks(blocks, one_shape=one_shape, backend="aot_eager")
        tokens = start = torch.randn(4 * 5, 32, requires_grad=True)
        for block in blocks:
            assert isinstance(block, Block)
            tokens = block(tokens, ((4, 5),))
        tokens.square().sum().backward()
        results.append([tokens, start.grad, *(weight.grad for weight in blocks.parameters())])
    torch.compiler.reset()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
