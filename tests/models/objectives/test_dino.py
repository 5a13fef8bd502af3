from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of

from cytolake.models.objectives import Dino, ObjectiveConfig, build_objective
from cytolake.models.objectives.dino import agreement_loss

CONFIG = CONFIGS["dino"]
FREE = torch.tensor(False)


def build(**changes: object) -> tuple[Dino, ObjectiveConfig]:
    config = dataclasses.replace(CONFIG, dino=dataclasses.replace(CONFIG.dino, **changes))
    objective = build_objective(MODEL, config, 0)
    assert isinstance(objective, Dino)
    return objective, config


def outputs_of(encoder, head, views) -> list[np.ndarray]:
    with torch.no_grad():
        return [head(encoder.features(view.crops)[0], FREE).double().numpy() for view in views]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(("share_done", "temperature"), [(0.0, 0.04), (0.1, 0.055), (0.2, 0.07), (0.9, 0.07)])
def test_the_loss_is_the_published_one_written_out(share_done, temperature):
    objective, config = build(warmup_share=0.2)
    views = views_of(config, mixed_crops(3))
    with torch.no_grad():
        objective.centre.copy_(torch.randn(24, generator=torch.Generator().manual_seed(0)) / 10)
        for weight in objective.teacher.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        objective.share_done.fill_(share_done)
    said = objective(views)
    student = outputs_of(objective.encoder, objective.head, views)
    teacher = outputs_of(objective.teacher.encoder, objective.teacher.head, views[:2])
    centre = objective.centre.double().numpy()
    losses, entropies = [], []
    for q in range(2):
        for crop in range(3):
            target = softmax((teacher[q][crop] - centre) / temperature)
            entropies.append(-np.sum(target * np.log(target)))
            losses += [-np.sum(target * np.log(softmax(student[v][crop] / 0.1))) for v in range(4) if v != q]
    assert len(losses) == 2 * 3 * 3
    assert said["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert said["entropy"].item() == pytest.approx(np.mean(entropies), rel=1e-4)


def test_without_a_warm_up_the_teacher_s_temperature_is_its_last():
    objective, config = build(warmup_share=0.0)
    warm, _ = build(warmup_share=0.5)
    warm.share_done.fill_(0.5)
    views = views_of(config, mixed_crops(3))
    assert torch.equal(objective(views)["loss"], warm(views)["loss"])


def test_a_collapse_to_all_prototypes_alike_costs_log_k():
    uniform = torch.full((3, 8), 1 / 8)
    assert agreement_loss([torch.zeros(3, 8)] * 4, [uniform] * 2).item() == pytest.approx(math.log(8), rel=1e-6)


def test_a_view_is_not_compared_with_itself():
    target = torch.eye(8)[:1]
    right, wrong = 50 * target, -50 * target
    assert agreement_loss([wrong, right], [target]).item() == pytest.approx(0, abs=1e-6)
    assert agreement_loss([right, wrong], [target]).item() > 50


def test_the_centre_follows_the_mean_of_the_teacher_s_outputs():
    objective, config = build()
    views = views_of(config, mixed_crops(3))
    wanted = np.zeros(24)
    for step in (1, 2):
        mean = np.mean(outputs_of(objective.teacher.encoder, objective.teacher.head, views[:2]), axis=(0, 1))
        objective(views)
        np.testing.assert_allclose(objective.centre.numpy(), wanted, atol=1e-6)  # moves with the step, not before
        objective.after_step(step / 2)
        wanted = 0.9 * wanted + 0.1 * mean
        np.testing.assert_allclose(objective.centre.numpy(), wanted, atol=1e-6)


def test_the_centre_takes_the_mean_of_all_looks_since_the_last_step():
    objective, config = build()
    crops = mixed_crops(4)
    objective(views_of(config, crops))
    objective.after_step(0.5)
    parts, _ = build()
    for half in ([0, 1], [2, 3]):
        parts(views_of(config, [crops[i] for i in half], half))
    parts.after_step(0.5)
    torch.testing.assert_close(parts.centre, objective.centre)


def test_prototypes_keep_their_directions_until_their_share_of_the_steps():
    objective, config = build(freeze_last_layer_share=0.5)
    optimiser = torch.optim.AdamW([w for w in objective.parameters() if w.requires_grad], 0.01, weight_decay=0.5)
    views = views_of(config, mixed_crops(4))
    moved = []
    for step in range(1, 5):
        before = torch.nn.functional.normalize(objective.head.prototypes.detach(), dim=-1).clone()
        optimiser.zero_grad()
        objective(views)["loss"].backward()
        optimiser.step()
        objective.after_step(step / 4)
        after = torch.nn.functional.normalize(objective.head.prototypes.detach(), dim=-1)
        moved.append((after - before).abs().max().item() > 1e-4)
    assert moved == [False, False, True, True]


def test_small_views_reach_the_student_alone():
    objective, config = build()
    views, others = (views_of(config, mixed_crops(3), epoch=epoch) for epoch in (0, 1))
    mixed = [*views[:2], *others[2:]]
    one, two = objective(views), objective(mixed)
    assert one["entropy"] == two["entropy"]
    assert one["loss"] != two["loss"]


def test_a_student_comes_to_agree_with_its_teacher_and_does_not_collapse():
    """What the loss exceeds the teacher's entropy by is their divergence. The centre takes 20 steps to settle."""
    objective, config = build(n_local_views=1)
    optimiser = torch.optim.AdamW([w for w in objective.parameters() if w.requires_grad], 3e-3)
    crops = mixed_crops(8)
    divergences = []
    for step in range(50):
        with torch.set_grad_enabled(step >= 20):
            losses = objective(views_of(config, crops, epoch=step))
        if step >= 20:
            optimiser.zero_grad()
            losses["loss"].backward()
            optimiser.step()
        objective.after_step((step + 1) / 50)
        divergences.append((losses["loss"] - losses["entropy"]).item())
    assert np.mean(divergences[-5:]) < 0.75 * divergences[20]
    assert 0.2 * math.log(24) < losses["entropy"].item() < 0.98 * math.log(24)
    batch = views_of(config, crops)[0].crops
    untrained = build_objective(MODEL, config, 0).encoder
    spreads = [each.pooled_blocks(batch)["cls"][-1].std(dim=0).mean() for each in (objective.encoder, untrained)]
    assert spreads[0] > 0.5 * spreads[1]
