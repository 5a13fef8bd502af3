from __future__ import annotations

import torch
from tests.fork_server import run_two_workers
from torch import nn

from cytolake.models.shared_norm import SharedBatchNorm2d

MAPS = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 100
GRADIENT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))


def norm() -> SharedBatchNorm2d:
    made = SharedBatchNorm2d(4)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        made.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return made


def test_two_workers_compute_what_torch_s_norm_computes_of_all_crops(tmp_path):
    run_two_workers(_worker, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    theirs = nn.BatchNorm2d(4)
    theirs.load_state_dict(norm().state_dict())
    wanted = _pass(theirs, MAPS, GRADIENT)
    for name in ("output", "input gradient"):
        found = torch.stack([part[name] for part in parts], dim=1).flatten(0, 1)  # worker r has rows r, r + 2, ...
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-4)
    for name in ("weight", "bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], wanted[name], rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(parts[0][name], parts[1][name])
        torch.testing.assert_close(parts[0][name], wanted[name])


def test_alone_and_in_evaluation_it_is_torch_s():
    theirs, ours = nn.BatchNorm2d(4), SharedBatchNorm2d(4)
    for each in (theirs, ours):
        each(MAPS)
    assert torch.equal(ours(MAPS), theirs(MAPS))
    assert torch.equal(ours.eval()(MAPS), theirs.eval()(MAPS))


def _pass(module: nn.BatchNorm2d, maps: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = maps.clone().requires_grad_(True)
    output = module(maps)
    output.backward(gradient)
    return {
        "output": output.detach(),
        "input gradient": maps.grad,
        "weight": module.weight.grad,
        "bias": module.bias.grad,
        **{name: value.clone() for name, value in module.named_buffers()},
    }


def _worker(rank: int, folder: str) -> None:
    torch.save(_pass(norm(), MAPS[rank::2], GRADIENT[rank::2]), f"{folder}/{rank}.pt")
