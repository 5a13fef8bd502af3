from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import MODEL

from cytolake.models.objectives import VicReg, VicRegConfig
from cytolake.models.objectives.vicreg import missing_spread, redundancy


def losses_of(first: torch.Tensor, second: torch.Tensor, **weights: float) -> dict[str, float]:
    objective = VicReg(MODEL, VicRegConfig(hidden_width=4, projected_width=4, **weights))
    return {name: value.item() for name, value in objective.losses(first, second).items()}


def test_the_losses_are_the_published_ones_written_out():
    first, second = (0.6 * torch.randn(7, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    a, b = first.double().numpy(), second.double().numpy()
    invariance = np.mean([(a[i, j] - b[i, j]) ** 2 for i in range(7) for j in range(4)])
    variance = covariance = 0.0
    for view in (a, b):
        variance += np.mean([max(0, 1 - np.sqrt(view[:, j].var(ddof=1) + 1e-4)) for j in range(4)])
        matrix = np.cov(view.T)
        covariance += sum(matrix[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    said = losses_of(first, second, invariance_weight=3, variance_weight=5, covariance_weight=7)
    assert said["invariance"] == pytest.approx(invariance, rel=1e-5)
    assert said["variance"] == pytest.approx(variance, rel=1e-5)
    assert said["covariance"] == pytest.approx(covariance, rel=1e-5)
    assert said["loss"] == pytest.approx(3 * invariance + 5 * variance + 7 * covariance, rel=1e-5)


def test_a_standard_deviation_of_1_is_enough():
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    unit = (rows - rows.mean(dim=0)) / rows.std(dim=0)
    assert missing_spread(unit).item() == 0
    assert missing_spread(4 * unit).item() == 0
    assert missing_spread(0.5 * unit).item() == pytest.approx(0.5, rel=1e-3)


def test_a_collapse_has_its_known_value():
    said = losses_of(torch.ones(5, 4), torch.ones(5, 4))
    assert said == pytest.approx({"loss": 25 * 1.98, "invariance": 0, "variance": 1.98, "covariance": 0}, rel=1e-5)


def test_features_without_correlation_are_not_redundant_and_copies_are():
    x, y = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
    assert redundancy(torch.stack([x, y], dim=1)).item() == 0
    assert redundancy(torch.stack([x, x], dim=1)).item() == pytest.approx((4 / 3) ** 2)  # two covariances, halved
