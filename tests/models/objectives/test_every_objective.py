"""Claims that hold for every objective."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from tests.fast_cases import fast_cases
from tests.models.objectives.small_objectives import (
    CONFIGS,
    MODEL,
    NEW,
    RESNET,
    mixed_crops,
    on_resnet,
    pair_crops,
    views_of,
)

from cytolake.models import build_encoder
from cytolake.models.objectives import (
    BarlowTwinsConfig,
    ByolConfig,
    DinoConfig,
    MoCoV2PlusConfig,
    MoCoV3Config,
    Objective,
    ObjectiveConfig,
    SimClrConfig,
    SimSiamConfig,
    VicRegConfig,
    build_objective,
)

every_objective = pytest.mark.parametrize("name", CONFIGS)
new_objectives = pytest.mark.parametrize("name", NEW)


@every_objective
def test_the_encoder_is_the_one_of_the_seed_whatever_the_objective(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (build_objective(MODEL, CONFIGS[name], seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.keys() == same.keys()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["encoder.patch_embedding.weight"], other["encoder.patch_embedding.weight"])
    bare = build_encoder(MODEL, 0).state_dict()
    kept = build_objective(MODEL, CONFIGS[name], 0).final_encoder
    assert kept.config == MODEL
    for key, value in bare.items():
        assert torch.equal(one[f"encoder.{key}"], value)
        assert torch.equal(kept.state_dict()[key], value)


@every_objective
def test_the_config_has_the_views_that_the_objective_takes(name):
    objective = build_objective(MODEL, CONFIGS[name], 0)
    assert objective.n_views == CONFIGS[name].n_views
    views = views_of(CONFIGS[name], mixed_crops(2))
    assert len(views) == objective.n_views
    with pytest.raises(ValueError, match=f"{len(views) - 1} views of the crops"):
        objective(views[:-1])


@new_objectives
@pytest.mark.parametrize("architecture", ["chada_vit", "ca_mae_vit"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_trained_weight_has_a_gradient_from_crops_of_mixed_channel_counts(name, architecture, pooling):
    config = CONFIGS[name]
    config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), pooling=pooling)})
    objective = build_objective(dataclasses.replace(MODEL, architecture=architecture), config, 0)
    views = views_of(config, mixed_crops(4))
    assert len(set(views[0].crops.n_channels)) == 3
    losses = objective(views)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    losses["loss"].backward()
    assert [key for key, weight in objective.named_parameters() if weight.requires_grad == (weight.grad is None)] == []
    assert objective.encoder.patch_embedding.weight.grad.abs().max() > 0


@new_objectives
def test_crops_with_fixed_channels_train_too(name):
    model = dataclasses.replace(MODEL, architecture="mae_vit", channels=("DNA", "ER"))
    objective = build_objective(model, CONFIGS[name], 0)
    objective(views_of(CONFIGS[name], [crop for crop in mixed_crops(9) if len(crop) == 2]))["loss"].backward()
    assert objective.encoder.patch_embedding.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", fast_cases(NEW, "simsiam"))
def test_a_resnet_trains_with_it_and_continues_from_its_state_with_the_same_losses(name):
    config = on_resnet(CONFIGS[name])
    first, resumed = (build_objective(RESNET, config, seed) for seed in (0, 1))
    views = views_of(config, pair_crops(4))
    for objective in (first, resumed):
        objective.train()
    first(views)["loss"].backward()
    assert [key for key, weight in first.named_parameters() if weight.requires_grad == (weight.grad is None)] == []
    first.after_step(0.1)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    later = [objective(views) for objective in (first, resumed)]
    assert {key: value.item() for key, value in later[0].items()} == {k: v.item() for k, v in later[1].items()}
    # running statistics of whatever is kept have moved
    mean = first.final_encoder.net.bn1.running_mean
    assert not torch.equal(mean, torch.zeros_like(mean))


def test_a_masked_autoencoder_of_a_resnet_and_a_cls_token_of_one_are_refused():
    with pytest.raises(ValueError, match="objective mae hides tokens, and a resnet has none"):
        build_objective(RESNET, ObjectiveConfig(), 0)
    with pytest.raises(ValueError, match=r"objective.dino.pooling is cls, which resnet does not have. Take mean"):
        build_objective(RESNET, ObjectiveConfig(name="dino"), 0)


@pytest.mark.parametrize("name", fast_cases([name for name in NEW if name not in ("dino", "moco_v2_plus")], "vicreg"))
def test_training_lowers_the_loss_and_features_do_not_collapse(name):
    """The same of DINO, whose centre must settle first, and of MoCo v2+, whose queue must fill, is in their files."""
    objective = build_objective(MODEL, CONFIGS[name], 0)
    crops = views_of(CONFIGS[name], mixed_crops(8))[0].crops
    before = objective.encoder.pooled_blocks(crops)["mean"][-1].std(dim=0).mean()
    losses = _train(objective, CONFIGS[name], range(40))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert objective.encoder.pooled_blocks(crops)["mean"][-1].std(dim=0).mean() > 0.5 * before


@every_objective
def test_a_resumed_objective_continues_exactly_where_it_was(name):
    """From another seed's weights, so that everything must come from the state."""
    config = CONFIGS[name]
    first, resumed = (build_objective(MODEL, config, seed) for seed in (0, 1))
    _train(first, config, range(3))
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    go_on = [_train(objective, config, range(3, 6)) for objective in (first, resumed)]
    assert go_on[0] == go_on[1]


@new_objectives
def test_looking_at_a_loss_changes_nothing(name):
    objective = build_objective(MODEL, CONFIGS[name], 0).eval()
    before = copy.deepcopy(objective.state_dict())
    views = views_of(CONFIGS[name], mixed_crops(4))
    losses = [objective(views)["loss"].item() for _ in range(2)]
    assert losses[0] == losses[1]
    objective.after_step(1.0)  # at the end of a run a teacher does not move any more
    after = objective.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if key != "share_done")


@new_objectives
def test_autocast_to_bf16_changes_the_loss_by_no_more_than_weights_of_8_bits_would(name):
    """bf16 rounds to 8 bits. How much that moves a loss is the objective's own condition, which differs a hundredfold:
    it is measured in fp32 with weights that are off by as much, at random."""
    objective = build_objective(MODEL, CONFIGS[name], 0)
    views = views_of(CONFIGS[name], mixed_crops(6))
    exact = objective(views)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(views)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    by_weights = []
    for seed in range(5):
        off, random = copy.deepcopy(objective), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in off.parameters():
                weight *= 1 + 2**-8 * (2 * torch.rand(weight.shape, generator=random) - 1)
        by_weights.append(abs(off(views)["loss"].item() - exact))
    assert abs(losses["loss"].item() - exact) < 4 * max(by_weights)


def test_only_dino_has_views_of_a_part_of_the_crop():
    for name in CONFIGS:
        if name != "dino":
            assert {CONFIGS[name].view_crop(view) for view in range(CONFIGS[name].n_views)} == {(None, None)}
    dino = ObjectiveConfig(name="dino", dino=DinoConfig(n_local_views=1, local_size=24, local_scale=(0.1, 0.3)))
    assert [dino.view_crop(view) for view in range(3)] == [((0.4, 1.0), None), ((0.4, 1.0), None), ((0.1, 0.3), 24)]


def test_what_the_data_feed_needs():
    assert [CONFIGS[name].masks_tokens for name in CONFIGS] == [True] + [False] * len(NEW)
    assert all(config.compares_crops for config in CONFIGS.values())
    plain = ObjectiveConfig()
    assert (plain.name, plain.n_views, plain.compares_crops) == ("mae", 1, False)
    assert dataclasses.replace(CONFIGS["mae"], name="simclr").n_views == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ObjectiveConfig(name="moco"), "choose one of mae, dino, simclr, byol, vicreg, barlow_twins"),
        (lambda: SimClrConfig(temperature=0.0), "simclr temperature is 0.0: expected more than 0"),
        (lambda: SimClrConfig(pooling="max"), "choose one of cls, mean"),
        (lambda: ByolConfig(momentum=1.0), "byol momentum is 1.0: expected 0 <= momentum < 1"),
        (lambda: VicRegConfig(covariance_weight=-1.0), "vicreg covariance_weight is -1.0"),
        (lambda: BarlowTwinsConfig(projected_width=0), "barlow_twins projected_width is 0"),
        (lambda: BarlowTwinsConfig(off_diagonal_weight=-1.0), "off_diagonal_weight is -1.0"),
        (lambda: MoCoV2PlusConfig(queue_size=0), "moco_v2_plus queue_size is 0"),
        (lambda: MoCoV2PlusConfig(last_momentum=1.0), "last_momentum is 1.0: expected 0 <= last_momentum < 1"),
        (lambda: MoCoV3Config(projector_layers=0), "moco_v3 projector_layers is 0"),
        (lambda: SimSiamConfig(predictor_width=-1), "simsiam predictor_width is -1"),
        (lambda: DinoConfig(n_local_views=-1), "n_local_views is -1"),
        (lambda: DinoConfig(local_scale=(0.4, 0.1)), "local_scale is 0.4 to 0.1"),
        (lambda: DinoConfig(warmup_share=1.5), "warmup_share is 1.5"),
        (lambda: build_objective(MODEL, ObjectiveConfig(name="dino", dino=DinoConfig(local_size=10)), 0), "patches of"),
    ],
)
def test_settings_that_cannot_train_are_refused_at_once(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def _train(objective: Objective, config: ObjectiveConfig, steps: range) -> list[float]:
    """Losses of plain gradient steps without momentum, so that the weights are all the state there is."""
    crops = mixed_crops(8)
    objective.train()
    losses = []
    for step in steps:
        losses.append(objective(views_of(config, crops, epoch=step)))
        weights = [weight for weight in objective.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(losses[-1]["loss"], weights)
        length = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * gradient / max(length, 1.0)
        objective.after_step((step + 1) / 40)
    return [loss["loss"].item() for loss in losses]
