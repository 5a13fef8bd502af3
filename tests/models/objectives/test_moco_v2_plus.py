from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.models.objectives.small_objectives import CONFIGS, MODEL, mixed_crops, views_of
from torch.nn import functional

from cytolake.models.objectives import MoCoV2PlusConfig, ObjectiveConfig, build_objective
from cytolake.models.objectives.moco_v2_plus import queue_loss


def unit(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def small(queue_size: int) -> ObjectiveConfig:
    part = MoCoV2PlusConfig(hidden_width=32, projected_width=8, queue_size=queue_size)
    return ObjectiveConfig(name="moco_v2_plus", moco_v2_plus=part)


def test_the_loss_is_the_published_one_written_out():
    query, key, queue = unit(5, 4, seed=0), unit(5, 4, seed=1), unit(7, 4, seed=2)
    losses = []
    for q, k in zip(query.double().numpy(), key.double().numpy(), strict=True):
        own = np.exp(q @ k / 0.3)
        losses.append(-np.log(own / (own + sum(np.exp(q @ old / 0.3) for old in queue.double().numpy()))))
    assert queue_loss(query, key, queue, 0.3).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_query_among_keys_at_right_angles_and_a_collapse_have_their_known_values():
    queue = torch.eye(8)[4:]
    first = torch.eye(8)[:4]
    assert queue_loss(first, first, queue, 0.5).item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), rel=1e-5)
    assert queue_loss(queue[:1], queue[:1], queue[:1].repeat(4, 1), 0.2).item() == pytest.approx(math.log(5), rel=1e-5)


def test_the_objective_is_symmetric_and_compares_with_keys_of_the_other_view():
    config = CONFIGS["moco_v2_plus"]
    objective = build_objective(MODEL, config, 0)
    views = views_of(config, mixed_crops(5))

    def vectors(encoder, head):
        return [functional.normalize(head(encoder.features(view.crops)[1]), dim=-1) for view in views]

    query, key = (
        vectors(objective.encoder, objective.projector),
        vectors(objective.teacher.encoder, objective.teacher.head),
    )
    queue = objective.queue
    wanted = (queue_loss(query[0], key[1], queue[1], 0.2) + queue_loss(query[1], key[0], queue[0], 0.2)) / 2
    torch.testing.assert_close(objective(views)["loss"], wanted)


def test_the_queue_keeps_the_newest_keys_of_the_teacher_in_the_order_of_the_crops():
    config = small(10)
    objective = build_objective(MODEL, config, 0)
    entered = []
    for step in range(4):  # 4 keys a step into a queue of 10: it wraps around in the third
        views = views_of(config, mixed_crops(4), epoch=step)
        with torch.no_grad():
            keys = [objective.teacher.head(objective.teacher.encoder.features(view.crops)[1]) for view in views]
        entered.append(functional.normalize(torch.stack(keys), dim=-1))
        objective(views)
        objective.after_step((step + 1) / 10)
    everything = torch.cat(entered, dim=1)
    assert int(objective.oldest) == 16 % 10
    oldest_first = objective.queue.roll(-int(objective.oldest), dims=1)
    torch.testing.assert_close(oldest_first, everything[:, -10:], atol=1e-6, rtol=0)


def test_a_minibatch_larger_than_the_queue_leaves_its_last_keys():
    config = small(3)
    objective = build_objective(MODEL, config, 0)
    views = views_of(config, mixed_crops(5))
    with torch.no_grad():
        keys = [objective.teacher.head(objective.teacher.encoder.features(view.crops)[1]) for view in views]
    objective(views)
    objective.after_step(0.1)
    torch.testing.assert_close(objective.queue, functional.normalize(torch.stack(keys), dim=-1)[:, -3:])


def test_keys_enter_the_queue_only_in_training_and_only_after_the_step():
    objective = build_objective(MODEL, CONFIGS["moco_v2_plus"], 0)
    before = objective.queue.clone()
    views = views_of(CONFIGS["moco_v2_plus"], mixed_crops(4))
    objective.eval()(views)
    objective.after_step(0.1)
    assert torch.equal(objective.queue, before)
    objective.train()(views)
    assert torch.equal(objective.queue, before)
    objective.after_step(0.2)
    assert not torch.equal(objective.queue[:, :4], before[:, :4])
    assert torch.equal(objective.queue[:, 4:], before[:, 4:])


def test_the_queue_is_part_of_the_state():
    state = build_objective(MODEL, CONFIGS["moco_v2_plus"], 0).state_dict()
    assert state["queue"].shape == (2, 16, 8)
    torch.testing.assert_close(state["queue"].norm(dim=-1), torch.ones(2, 16))
    assert state["oldest"].item() == 0


@pytest.mark.parametrize(("n_crops", "used"), [(100_000, 32_768), (32_768, 32_768), (1000, 960), (70, 64)])
def test_the_queue_is_no_longer_than_the_whole_minibatches_of_a_pack(n_crops, used):
    config = ObjectiveConfig(name="moco_v2_plus")
    assert config.fitted_to(n_crops, 64).moco_v2_plus.queue_size == used


def test_a_pack_changes_no_other_objective():
    assert ObjectiveConfig(name="simclr").fitted_to(10, 5) == ObjectiveConfig(name="simclr")


def test_the_loss_has_float32_s_digits_within_autocast():
    query, key, queue = unit(6, 4, seed=0), unit(6, 4, seed=1), unit(9, 4, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = queue_loss(query, key, queue, 0.1)
    assert torch.equal(inside, queue_loss(query, key, queue, 0.1))


def test_training_lowers_the_loss_among_a_queue_of_other_crops_and_features_do_not_collapse():
    config = small(16)  # the keys of the 16 of 24 crops that are not in the minibatch
    objective = build_objective(MODEL, config, 0)
    optimiser = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], 3e-3)
    crops = mixed_crops(24)
    look = views_of(config, crops)[0].crops
    before = objective.encoder.pooled_blocks(look)["mean"][-1].std(dim=0).mean()
    losses = []
    for step in range(60):
        first = 8 * (step % 3)
        mine = list(range(first, first + 8))
        loss = objective(views_of(config, [crops[i] for i in mine], mine, epoch=step // 3))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step((step + 1) / 60)
        losses.append(loss.item())
    assert sum(losses[-6:]) < 0.9 * sum(losses[3:9])  # the first two queues hold random directions
    assert objective.encoder.pooled_blocks(look)["mean"][-1].std(dim=0).mean() > 0.5 * before
