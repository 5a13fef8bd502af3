from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import build_objective
from cytolake.models.objectives.moco_v3 import minibatch_loss


def test_the_loss_is_the_published_one_written_out():
    query, key = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    q, k = (
        each.double().numpy() / np.linalg.norm(each.double().numpy(), axis=1, keepdims=True) for each in (query, key)
    )
    losses = [-np.log(np.exp(q[i] @ k[i] / 0.3) / np.exp(k @ q[i] / 0.3).sum()) for i in range(5)]
    assert minibatch_loss(query, key, 0.3).item() == pytest.approx(2 * 0.3 * np.mean(losses), rel=1e-5)


def test_matches_at_right_angles_and_a_collapse_have_their_known_values():
    wanted = 2 * 0.2 * math.log(1 + 3 * math.exp(-1 / 0.2))
    assert minibatch_loss(torch.eye(4), 7 * torch.eye(4), 0.2).item() == pytest.approx(wanted, rel=1e-5)
    assert minibatch_loss(torch.ones(4, 3), torch.ones(4, 3), 0.2).item() == pytest.approx(0.4 * math.log(4), rel=1e-5)


def test_no_gradient_reaches_the_keys():
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    minibatch_loss(query, key, 0.2).backward()
    assert query.grad is not None
    assert key.grad is None


def test_the_objective_sums_both_directions_from_predictor_to_teacher():
    config = CONFIGS["moco_v3"]
    objective = build_objective(MODEL, config, 0)
    views = views_of(config, mixed_crops(5))
    pooled = [objective.encoder.features(view.crops)[1] for view in views]
    query = [objective.predictor(objective.projector(each)) for each in pooled]
    key = [objective.teacher.head(objective.teacher.encoder.features(view.crops)[1]) for view in views]
    wanted = minibatch_loss(query[0], key[1], 0.2) + minibatch_loss(query[1], key[0], 0.2)
    torch.testing.assert_close(objective(views)["loss"], wanted)


def test_projector_and_predictor_end_in_a_normalisation_without_gain():
    objective = build_objective(MODEL, CONFIGS["moco_v3"], 0)
    for head, n_linear in ((objective.projector, 3), (objective.predictor, 2)):
        assert sum(isinstance(part, torch.nn.Linear) for part in head) == n_linear
        entry = torch.randn(50, head[0].in_features)
        torch.testing.assert_close(head(entry).mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
        assert [name for name, _ in head[-1].named_parameters()] == []
