"""What a run would cost: against reported budgets, sums by hand, and the pack that is there."""

from __future__ import annotations

import dataclasses

import pytest

from cytolake.models import ModelConfig, published_size
from cytolake.models.cost import parameter_units, training_cost
from cytolake.models.devices import find_device
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.packs.pack import Pack
from cytolake.train.config import PretrainConfig
from cytolake.train.dry_run import DEVICE, dry_run, state_bytes

STAINS = ("DNA", "ER", "RNA", "Actin", "Mito", "Golgi")
DECODER = MaeConfig(decoder_width=512, decoder_depth=8, decoder_heads=16)
SMALL = PretrainConfig(
    model=ModelConfig(crop_size=16, patch_size=8, width=16, depth=2, heads=2), minibatch_size=8, epochs=3
)


def published(size: str, *, minibatch_size: int, epochs: int, **changes) -> PretrainConfig:
    return PretrainConfig(
        model=published_size(size, channels=STAINS),
        objective=ObjectiveConfig(mae=DECODER),
        optimiser="lion",
        minibatch_size=minibatch_size,
        epochs=epochs,
        **changes,
    )


G8 = published("g8", minibatch_size=8192, epochs=500, parallel="fsdp")
L8 = published("l8", minibatch_size=16384, epochs=500)
CA_S16 = dataclasses.replace(
    published("s16", minibatch_size=2048, epochs=100),
    model=published_size("s16", "ca_mae_vit", STAINS),
    objective=ObjectiveConfig(mae=dataclasses.replace(DECODER, decoder="per_channel")),
)


# Kenyon-Dean et al. 2024, arXiv 2411.02572: GPU-hours of three runs.
@pytest.mark.parametrize(
    ("config", "n_crops", "device", "n_gpus", "reported"),
    [
        pytest.param(G8, 16_000_000, "H100 SXM", 256, 48_000, id="MAE-G/8"),
        pytest.param(L8, 16_000_000, "H100 SXM", 128, 15_360, id="MAE-L/8"),
        pytest.param(CA_S16, 2_200_000, "A100", 16, 400, id="CA-MAE-S/16"),
    ],
)
def test_reported_budgets_are_predicted_within_a_quarter(config, n_crops, device, n_gpus, reported):
    found = dry_run(config, n_crops=n_crops, n_channels=6, device=device, n_gpus=(n_gpus,))
    print(f"predicted {found.gpu_hours:,.0f} GPU-hours, reported {reported:,}: {found.gpu_hours / reported:.2f}")
    assert found.gpu_hours == pytest.approx(reported, rel=0.25)
    assert found.n_samples == n_crops * config.epochs
    (on,) = found.on_gpus
    assert on.fits, "the published run fitted"
    assert on.hours * n_gpus == pytest.approx(found.gpu_hours)


def test_one_share_of_the_peak_would_not_predict_all_three():
    shares = []
    for config, n_crops, device, reported in (
        (G8, 16_000_000, "H100 SXM", 48_000),
        (L8, 16_000_000, "H100 SXM", 15_360),
        (CA_S16, 2_200_000, "A100", 400),
    ):
        cost = training_cost(config.model, config.objective, 6)
        seconds = reported * 3600 / (n_crops * config.epochs)
        shares.append(cost.training_flops / seconds / (find_device(device).peak_tflops * 1e12))
    assert max(shares) / min(shares) > 1.25 / 0.75


def test_the_largest_model_needs_fsdp_and_many_gpus():
    def on(n_gpus, **changes):
        return dry_run(dataclasses.replace(G8, **changes), n_gpus=(n_gpus,)).on_gpus[0]

    assert on(256).fits
    assert not on(1).fits
    assert not on(64).fits
    assert on(64, recompute=True).fits
    assert on(256, parallel="ddp").state_bytes > 4 * on(256).state_bytes


def test_memory_of_weights_is_that_of_a_sum_by_hand():
    config = dataclasses.replace(SMALL, optimiser="adamw", model=dataclasses.replace(SMALL.model, channels=STAINS))
    cost = training_cost(config.model, config.objective, 5)
    units = parameter_units(config.model, config.objective)
    n = cost.trained_parameters
    # weights, gradients, two moments, bf16 copies; several GPUs: buckets of gradients
    assert state_bytes(config, cost, units, 1) == n * (4 + 4 + 8 + 2)
    assert state_bytes(config, cost, units, 4) == n * (4 + 4 + 8 + 2 + 4)
    lion = dataclasses.replace(config, optimiser="lion")
    assert state_bytes(lion, cost, units, 1) == n * (4 + 4 + 4 + 2)
    assert state_bytes(dataclasses.replace(lion, precision="fp32"), cost, units, 1) == n * (4 + 4 + 4)
    shared = dataclasses.replace(lion, parallel="fsdp")
    gathered = 8 * (units[""] + 2 * max(size for name, size in units.items() if name))
    assert state_bytes(shared, cost, units, 8) == pytest.approx(n * 12 / 8 + 2 * n + gathered)


def test_what_a_pack_holds_is_what_is_counted(make_pack):
    pack = Pack.open(make_pack(n=30, channels=(STAINS[:1], STAINS[:3], STAINS[:5])))
    found = dry_run(SMALL, pack=pack)
    assert (found.n_crops, found.n_samples, found.n_steps) == (30, 90, 12)
    assert found.cost.tokens == pytest.approx((1 + 3 + 5) / 3 * 4)
    assert found.gpu_hours == pytest.approx(90 * found.seconds_per_crop / 3600)


def test_without_a_pack_the_run_is_as_long_as_its_steps_or_unknown():
    unknown = dry_run(SMALL)
    assert (unknown.n_samples, unknown.n_steps, unknown.gpu_hours) == (None, None, None)
    assert unknown.gpu_hours_per_million == pytest.approx(3e6 * unknown.seconds_per_crop / 3600)
    known = dry_run(dataclasses.replace(SMALL, steps=100))
    assert (known.n_samples, known.n_steps) == (800, 100)


def test_a_limit_of_tokens_makes_more_and_smaller_steps():
    limited = dataclasses.replace(SMALL, minibatch_tokens=4 * 5 * 4)  # four crops of five channels of four patches
    found = dry_run(limited, n_crops=800, n_gpus=(1, 2))
    assert found.n_steps == 600
    assert [on.crops_per_gpu for on in found.on_gpus] == [4, 2]


def test_more_gpus_than_crops_are_no_faster():
    speeds = [on.crops_per_s for on in dry_run(SMALL, n_gpus=(1, 2, 8, 32)).on_gpus]
    assert speeds[1] == pytest.approx(2 * speeds[0])
    assert speeds[2] == pytest.approx(8 * speeds[0])
    assert speeds[3] == speeds[2]


def test_a_measured_share_of_the_peak_is_taken_as_it_is():
    found = dry_run(L8, mfu=0.5)
    assert found.mfu == pytest.approx(0.5)
    assert 1 / found.seconds_per_crop == pytest.approx(0.5 * 989e12 / found.cost.training_flops)
    with pytest.raises(ValueError, match="mfu is 50"):
        dry_run(L8, mfu=50)


def test_recomputing_saves_memory_and_costs_time():
    kept, again = (dry_run(dataclasses.replace(L8, recompute=recompute), n_gpus=(128,)) for recompute in (False, True))
    assert again.on_gpus[0].activation_bytes < 0.6 * kept.on_gpus[0].activation_bytes
    assert 1.1 < again.seconds_per_crop / kept.seconds_per_crop < 1.4


def test_the_gpu_is_the_one_named_or_the_one_of_the_declared_peak():
    assert dry_run(SMALL).device.name == DEVICE
    assert dry_run(SMALL, device="NVIDIA L4").device.memory_gb == 24
    assert dry_run(dataclasses.replace(SMALL, device_peak_tflops=312)).device.name == "A100"
    other = dry_run(dataclasses.replace(SMALL, device_peak_tflops=494.5)).device
    assert (other.peak_tflops, other.bandwidth_gb_s) == (494.5, 1675)
    with pytest.raises(ValueError, match=r"no GPU 'abacus' is declared: there are B200, .*pretrain.device_peak_tflops"):
        dry_run(SMALL, device="abacus")


def test_a_resnet_s_run_is_predicted():
    config = PretrainConfig(
        model=ModelConfig(architecture="resnet", channels=STAINS[:3], crop_size=32),
        objective=ObjectiveConfig(name="moco_v3"),
        minibatch_size=512,
        epochs=200,
    )
    found = dry_run(config, n_crops=50_000)
    assert found.n_steps == 50_000 * 200 // 512
    assert found.cost.encoder_parameters == pytest.approx(11.17e6, rel=0.001)
    # Two views and two of the teacher: forward, backward and twice forward.
    assert found.cost.training_flops == pytest.approx((2 * 3 + 2) * found.cost.inference_flops, rel=0.05)
