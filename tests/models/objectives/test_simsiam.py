from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import build_objective
from cytolake.models.objectives.simsiam import negative_cosine


def test_the_loss_is_the_published_one_written_out():
    predicted, target = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    pairs = zip(predicted.double().numpy(), target.double().numpy(), strict=True)
    cosines = [p @ z / np.linalg.norm(p) / np.linalg.norm(z) for p, z in pairs]
    assert negative_cosine(predicted, target).item() == pytest.approx(-np.mean(cosines), rel=1e-5)


def test_no_gradient_reaches_the_target():
    predicted, target = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    negative_cosine(predicted, target).backward()
    assert predicted.grad is not None
    assert target.grad is None


def test_the_objective_is_the_mean_of_both_directions():
    objective = build_objective(MODEL, CONFIGS["simsiam"], 0)
    views = views_of(CONFIGS["simsiam"], mixed_crops(5))
    projected = [objective.projector(objective.encoder.features(view.crops)[1]) for view in views]
    predicted = [objective.predictor(each) for each in projected]
    wanted = (negative_cosine(predicted[0], projected[1]) + negative_cosine(predicted[1], projected[0])) / 2
    torch.testing.assert_close(objective(views)["loss"], wanted)


def test_the_projector_has_three_layers_normalised_to_the_last_and_the_predictor_a_bottleneck():
    objective = build_objective(MODEL, CONFIGS["simsiam"], 0)
    linear = [part for part in objective.projector if isinstance(part, torch.nn.Linear)]
    assert [part.out_features for part in linear] == [32, 32, 16]
    assert [part.out_features for part in objective.predictor if isinstance(part, torch.nn.Linear)] == [8, 16]
    assert isinstance(objective.predictor[-1], torch.nn.Linear)


def test_a_collapse_shows_in_the_spread_and_not_in_the_loss():
    objective = build_objective(MODEL, CONFIGS["simsiam"], 0)
    with torch.no_grad():
        objective.projector[-1].forward = lambda rows: torch.ones_like(rows)  # whatever the crop
        losses = objective(views_of(CONFIGS["simsiam"], mixed_crops(4)))
    assert losses["spread"].item() == pytest.approx(0, abs=1e-6)
