"""How many workers share a minibatch changes nothing."""

from __future__ import annotations

import pytest
import torch
from tests.fork_server import run_two_workers
from tests.models.objectives.small_objectives import (
    CONFIGS,
    MODEL,
    RESNET,
    mixed_crops,
    on_resnet,
    pair_crops,
    views_of,
)
from torch import Tensor

from cytolake.models.objectives import build_objective
from cytolake.models.workers import check_several_crops, gather_rows, mean_over_workers

N_CROPS = 6
ON_RESNET = " on a resnet"
NAMES = (*CONFIGS, f"moco_v2_plus{ON_RESNET}")


def test_two_workers_are_one(tmp_path):
    """Mean losses, mean gradients, and after a step with those the losses and the state again."""
    run_two_workers(_worker, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in NAMES:
        whole = _two_steps(name, list(range(N_CROPS)))
        for kind, values in whole.items():
            largest = max(value.abs().max() for value in values.values())
            for key, value in values.items():
                shared = [part[name][kind][key] for part in parts]
                where = f"{name}, {kind}: {key}"
                if kind == "state":  # copies, which must not drift apart
                    assert torch.equal(*shared), where
                mean = (shared[0] + shared[1]) / 2
                # Both sum the same terms in another order: an error by the size of the largest gradients, not its own.
                assert (mean - value).abs().max() <= 1e-4 * value.abs().max() + 1e-5 * largest, where


def test_a_worker_alone_does_not_have_the_loss_of_all():
    """Else the test above could not fail."""
    for name in ("simclr", "byol", "vicreg", "barlow_twins", "moco_v3", "simsiam"):
        whole = _two_steps(name, list(range(N_CROPS)))["losses"]["loss"]
        halves = [_two_steps(name, half)["losses"]["loss"] for half in ([0, 1, 2], [3, 4, 5])]
        assert abs((halves[0] + halves[1]) / 2 - whole) > 1e-3 * whole, name


def test_without_a_process_group_rows_and_means_are_this_process_own():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) == (rows, 0)
    assert mean_over_workers(rows) is rows


def test_one_crop_is_refused():
    check_several_crops(2)
    with pytest.raises(ValueError, match="takes 2 or more"):
        check_several_crops(1)


def _two_steps(name: str, mine: list[int]) -> dict[str, dict[str, Tensor]]:
    """Losses, the mean over workers of the gradients, and after a step with these the losses and state again."""
    is_shared = torch.distributed.is_initialized()
    config, model, crops = CONFIGS[name.removesuffix(ON_RESNET)], MODEL, mixed_crops(N_CROPS)
    if name.endswith(ON_RESNET):
        config, model, crops = on_resnet(config), RESNET, pair_crops(N_CROPS)
    objective = build_objective(model, config, 0)
    optimiser = torch.optim.SGD([weight for weight in objective.parameters() if weight.requires_grad], 0.01)
    views = views_of(config, [crops[i] for i in mine], mine)
    losses = objective(views)
    losses["loss"].backward()
    trained = {key: weight for key, weight in objective.named_parameters() if weight.requires_grad}
    row = torch.cat([weight.grad.flatten() for weight in trained.values()])
    if is_shared:
        torch.distributed.all_reduce(row)
        row /= torch.distributed.get_world_size()
    parts = row.split([weight.numel() for weight in trained.values()])
    gradients = {key: part.view_as(trained[key]) for key, part in zip(trained, parts, strict=True)}
    for key, weight in trained.items():
        weight.grad = gradients[key].clone()
    optimiser.step()
    objective.after_step(0.5)
    with torch.no_grad():
        later = objective(views)
    return {
        "losses": {key: value.detach() for key, value in losses.items()},
        "gradients": gradients,
        "later losses": later,
        "state": {key: value.clone() for key, value in objective.state_dict().items()},
    }


def _worker(rank: int, folder: str) -> None:
    mine = list(range(rank, N_CROPS, 2))  # as the sampler shares them
    torch.save({name: _two_steps(name, mine) for name in NAMES}, f"{folder}/{rank}.pt")
