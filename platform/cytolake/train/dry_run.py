"""Predict the cost of a pretraining run: parameters, memory, speed, GPU-hours, the FSDP plan.

Everything is computed from the config: no GPU, no Ray and no pack are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cytolake.models.cost import TrainingCost, parameter_units, training_cost
from cytolake.models.devices import DEVICES, Device, find_device
from cytolake.packs.pack import Pack
from cytolake.train.config import PretrainConfig, with_vocabulary
from cytolake.train.knobs_without_effect import knobs_without_effect

DEVICE = "H100 SXM"
N_GPUS = (1, 2, 8, 32, 128, 256)
N_CHANNELS = 5
"""Of a crop for a channel-adaptive model where no pack says otherwise: Cell Painting."""

MEMORY_PASSES = 9
"""How often each byte that is kept for the backward pass crosses the GPU's memory in one training step without compiled
blocks. Counted over the operations of a parallel block in bf16: 412 bytes read and written for 44 bytes kept."""
EFFICIENCY = 0.34
"""Share of the device's declared speeds that a run reaches, all its waiting included: see `seconds_per_crop`."""

_CONTEXT_BYTES = 2e9  # of CUDA, cuBLAS and NCCL, on top of torch's own memory
_FP32_SHARE = 1 / 16  # of the bf16 peak: 19.5 of 312 TFLOP/s (A100), 67 of 989 (H100)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnGpus:
    """The run on a number of GPUs."""

    n_gpus: int
    crops_per_gpu: int
    """Of one step."""
    state_bytes: float
    """Weights, gradients and the optimiser's moments on one GPU, with what is gathered or copied of them."""
    activation_bytes: float
    """Kept for the backward pass on one GPU."""
    crops_per_s: float
    """All GPUs together."""
    memory_bytes: float
    """Of one GPU, in total."""
    fits: bool
    hours: float | None
    """Wall time of the run; None where its length is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """The predicted cost of a run."""

    config: PretrainConfig
    device: Device
    cost: TrainingCost
    """Of one crop."""
    seconds_per_crop: float
    """On one GPU."""
    mfu: float
    """Share of the device's declared peak that this speed means, of the FLOPs a step needs without recomputing."""
    is_mfu_given: bool
    """True where it was given, not predicted by `seconds_per_crop`."""
    n_crops: int | None
    """In the pack; None where there is none yet."""
    n_samples: int | None
    """Crops of the whole run, counted as often as they are seen; None where `steps` is not set and there is no pack."""
    n_steps: int | None
    gpu_hours: float | None
    """Of the whole run."""
    gpu_hours_per_million: float
    """Of each million crops of a pack, for all epochs."""
    on_gpus: tuple[OnGpus, ...]
    units: Mapping[str, int]
    """Trained parameters of each FSDP unit: each transformer block by its name, all the rest under `""`."""
    without_effect: Mapping[str, str]
    """Augmentations that are on and change nothing that the encoder gets, and why."""


def dry_run(
    config: PretrainConfig,
    *,
    pack: Pack | None = None,
    n_crops: int | None = None,
    n_channels: int | Mapping[int, float] | None = None,
    n_gpus: Sequence[int] = N_GPUS,
    device: str | Device | None = None,
    mfu: float | None = None,
) -> DryRun:
    """Predict the cost of a run.

    Args:
        n_crops: Crops of the pack, where there is none yet.
        n_channels: Channels of a crop, or the number of crops of each channel count, where there is no pack yet. None
            means those of a `mae_vit`, and `N_CHANNELS` for a model that takes any.
        n_gpus: Numbers of GPUs to predict memory and speed for. A run scales with them, as the published runs did that
            the speed is calibrated on, as long as all GPUs have equally many crops of a step.
        device: Name of the GPU, see `models.devices.DEVICES`. None means the one of `config.device_peak_tflops` where
            that is set, else `DEVICE`.
        mfu: Share of the peak to assume instead of the prediction of `seconds_per_crop`, such as a measured one: the
            last `mfu` of a run's history.

    Raises:
        ValueError: An unknown device, an impossible share or number, or crops that the model does not take.
    """
    gpu = _device(config, device)
    if mfu is not None and not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu}: expected more than 0, and 1 or less.")
    if pack is not None:
        if pack.crop_size != config.model.crop_size:
            raise ValueError(
                f"pack {pack.pack_id} has crops of {pack.crop_size} px, the model takes {config.model.crop_size} px. "
                f"Set pretrain.model.crop_size={pack.crop_size}, or ingest with crops of the model's size."
            )
        counts = pack.index["group"].value_counts().to_pylist()
        n_crops, n_channels = pack.n_crops, {row["values"]: row["counts"] for row in counts}
    if n_channels is None:
        n_channels = len(config.model.channels) if config.model.is_fused else N_CHANNELS
    config = with_vocabulary(config)
    cost = training_cost(config.model, config.objective, n_channels)
    units = parameter_units(config.model, config.objective)
    seconds = seconds_per_crop(cost, config, gpu)
    if mfu is not None:
        seconds = cost.training_flops / (mfu * gpu.peak_tflops * 1e12)
    per_step = float(config.minibatch_size)
    if config.minibatch_tokens is not None:
        per_step = max(1.0, min(per_step, config.minibatch_tokens / cost.tokens))
    n_samples = None
    if n_crops is not None or config.steps is not None:
        n_samples = config.n_samples(n_crops or 0)
    return DryRun(
        config=config,
        device=gpu,
        cost=cost,
        seconds_per_crop=seconds,
        mfu=cost.training_flops / (seconds * gpu.peak_tflops * 1e12),
        is_mfu_given=mfu is not None,
        n_crops=n_crops,
        n_samples=n_samples,
        n_steps=None if n_samples is None else math.ceil(n_samples / per_step),
        gpu_hours=None if n_samples is None else n_samples * seconds / 3600,
        gpu_hours_per_million=1e6 * config.epochs * seconds / 3600,
        on_gpus=tuple(_on_gpus(config, cost, units, gpu, n, per_step, seconds, n_samples) for n in n_gpus),
        units=units,
        without_effect=knobs_without_effect(config, pack),
    )


def seconds_per_crop(cost: TrainingCost, config: PretrainConfig, device: Device) -> float:
    """Time that one GPU takes for one crop, forward and backward.

    A GPU multiplies at its declared peak or moves bytes at its declared bandwidth, not both at once, and reaches the
    same share of either:

        seconds = (FLOPs / peak + MEMORY_PASSES * bytes kept / bandwidth) / EFFICIENCY

    The second term is why a narrow model reaches less of the peak than a wide one, and any model less of an H100's
    than of an A100's. The passes are counted; the efficiency is the one number that is fitted, to the three budgets of
    Kenyon-Dean et al. 2024 (arXiv 2411.02572), so that the largest error is smallest. GPU-hours predicted for reported:
    MAE-G/8 40,600 for 48,000; MAE-L/8 12,300 for 15,360; CA-MAE-S/16 475 for 400. Each of these alone would give
    another efficiency: 0.29, 0.27 (both on 128 H100 and more, restarts included) and 0.40 (on 16 A100). No single share
    of the peak comes within 25 % of all three. They are those authors' runs: a step measured on the GPU at hand, as
    `dry_run(mfu=...)`, predicts a run better. The time to launch kernels, which
    dominates small models, is left out.
    """
    peak, kept = device.peak_tflops * 1e12, cost.activation_bytes
    if config.precision == "fp32":
        peak, kept = peak * _FP32_SHARE, cost.activation_bytes_fp32
    if config.recompute:
        kept *= 4 / 3  # of the three passes, forward and twice that backward, the forward one is done again
    return (_all_flops(cost, config) / peak + MEMORY_PASSES * kept / (device.bandwidth_gb_s * 1e9)) / EFFICIENCY


def state_bytes(config: PretrainConfig, cost: TrainingCost, units: Mapping[str, int], n_gpus: int) -> float:
    """Bytes of weights, gradients and moments on one of `n_gpus` GPUs.

    Weights, gradients and moments are fp32, 4 bytes each: two moments of AdamW, one of Lion. Autocast keeps a bf16 copy
    of every weight through the step. `ddp` holds all of it on each GPU, and the gradients once more in the buckets that
    it exchanges. `fsdp` divides it, and on top of its share each GPU holds the weights and gradients of the rest unit
    and of two gathered blocks, the one that computes and the next. Weights of a frozen teacher have neither gradients
    nor moments.
    """
    n, moments = cost.trained_parameters, 2 if config.optimiser == "adamw" else 1
    copies = 0 if config.precision == "fp32" else 2 * n
    own = n * (4 + 4 + 4 * moments) + 4 * cost.teacher_parameters
    if config.parallel == "ddp" or n_gpus == 1:
        return own + copies + (4 * n if n_gpus > 1 else 0)
    largest_block = max((size for name, size in units.items() if name), default=0)
    return own / n_gpus + copies + (4 + 4) * (units[""] + 2 * largest_block)


def _on_gpus(
    config: PretrainConfig,
    cost: TrainingCost,
    units: Mapping[str, int],
    device: Device,
    n_gpus: int,
    per_step: float,
    seconds: float,
    n_samples: int | None,
) -> OnGpus:
    if n_gpus < 1:
        raise ValueError(f"{n_gpus} GPUs: expected 1 or more.")
    crops_per_gpu = math.ceil(per_step / n_gpus)
    kept = cost.activation_bytes_fp32 if config.precision == "fp32" else cost.activation_bytes
    if config.recompute:
        kept = cost.recomputed_activation_bytes * (2 if config.precision == "fp32" else 1)
    state = state_bytes(config, cost, units, n_gpus)
    memory = state + kept * crops_per_gpu + _CONTEXT_BYTES
    crops_per_s = per_step / (crops_per_gpu * seconds)
    return OnGpus(
        n_gpus=n_gpus,
        crops_per_gpu=crops_per_gpu,
        state_bytes=state,
        activation_bytes=kept * crops_per_gpu,
        crops_per_s=crops_per_s,
        memory_bytes=memory,
        fits=memory <= device.memory_gb * 1e9,
        hours=None if n_samples is None else n_samples / crops_per_s / 3600,
    )


def _all_flops(cost: TrainingCost, config: PretrainConfig) -> float:
    return cost.training_flops + (cost.recompute_flops if config.recompute else 0)


def _device(config: PretrainConfig, device: str | Device | None) -> Device:
    if isinstance(device, Device):
        return device
    if device is None and config.device_peak_tflops is not None:
        peak, default = config.device_peak_tflops, _default()
        for known in (default, *DEVICES):
            if known.peak_tflops == peak:
                return known
        bandwidth = default.bandwidth_gb_s * peak / default.peak_tflops
        return Device(f"GPU of {peak:g} TFLOP/s", "", peak, bandwidth, default.memory_gb)
    found = find_device(device or DEVICE)
    if found is None:
        raise ValueError(
            f"no GPU {device!r} is declared: there are {', '.join(each.name for each in DEVICES)}. Set "
            "pretrain.device_peak_tflops to its dense bf16 peak instead."
        )
    return found


def _default() -> Device:
    found = find_device(DEVICE)
    assert found is not None
    return found
