from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import build_objective
from cytolake.models.objectives.byol import prediction_loss, spread


def test_the_loss_is_the_published_one_written_out_in_both_directions():
    objective = build_objective(MODEL, CONFIGS["byol"], 0)
    with torch.no_grad():
        for weight in objective.teacher.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        views = views_of(CONFIGS["byol"], mixed_crops(5))
        loss = objective(views)["loss"].item()
        online = [objective.predictor(objective.projector(objective.encoder.features(v.crops)[1])) for v in views]
        target = [objective.teacher.head(objective.teacher.encoder.features(v.crops)[1]) for v in views]
    wanted = 0.0
    for of, to in ((0, 1), (1, 0)):
        for q, z in zip(online[of].double().numpy(), target[to].double().numpy(), strict=True):
            wanted += np.sum((q / np.linalg.norm(q) - z / np.linalg.norm(z)) ** 2) / 5
    assert loss == pytest.approx(wanted, rel=1e-5)


def test_distances_of_equal_orthogonal_and_opposite_vectors():
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert [prediction_loss(x, other).item() for other in (5 * x, y, -x)] == pytest.approx([0, 2, 4])


def test_a_collapse_is_seen_in_the_spread_and_not_in_the_loss():
    collapsed = torch.ones(6, 4)
    assert prediction_loss(collapsed, collapsed).item() == pytest.approx(0, abs=1e-6)
    assert spread(collapsed).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.cat([torch.eye(4), -torch.eye(4)])).item() == pytest.approx(1)
