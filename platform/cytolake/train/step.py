"""One optimiser step: forward, backward, clip, update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cytolake.models.objectives import Objective
from cytolake.models.seeding import sample_bits
from cytolake.train.config import PretrainConfig
from cytolake.train.feed import Minibatch
from cytolake.train.optimiser import learning_rate_at
from cytolake.train.parallel import clip_gradients, distribute

_DROP_PATH = 3 << 20  # purpose of `sample_bits`, far from those of masks, augmentations and partners


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of a step, as tensors that are not waited for."""

    losses: dict[str, Tensor]
    """Of this worker's crops."""
    gradient_norm: Tensor
    """Of all workers' gradients, before it was clipped."""
    learning_rate: float


class TrainingStep:
    """Updates an objective's weights for one minibatch after another. The schedule depends on the position of the
    minibatch in the run, not on earlier steps."""

    def __init__(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        config: PretrainConfig,
        n_samples: int,
        device: torch.device,
        rank: int = 0,
    ) -> None:
        """`n_samples` is the number of crops of the whole run, see `PretrainConfig.n_samples`."""
        self._objective, self._optimiser = objective, optimiser
        self._config, self._n_samples, self._device, self._rank = config, n_samples, device, rank
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # for what autocast leaves in fp32, such as Fourier magnitudes
        self._parallel = distribute(objective, config.parallel, device)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(config.precision, device))

    def __call__(self, minibatch: Minibatch) -> StepResult:
        config, whole = self._config, minibatch.whole
        # In units of full minibatches, so that minibatches of any size see the same schedule.
        learning_rate = learning_rate_at(
            whole.end / config.minibatch_size - 1,
            self._n_samples / config.minibatch_size,
            config.learning_rate,
            config.warmup_share,
            config.schedule,
        )
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        if config.model.drop_path > 0:  # its random numbers must not depend on how often the run was resumed
            torch.manual_seed(int(sample_bits(config.seed, self._rank, [whole.first], _DROP_PATH)[0]) >> 1)
        with self._autocast, _fastest_attention(self._device):
            losses: dict[str, Tensor] = self._parallel(minibatch.to(self._device))
        (losses["loss"] * minibatch.weight).backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(self._objective, config.gradient_clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._objective.after_step(whole.end / self._n_samples)
        return StepResult(losses, norm, learning_rate)


def _fastest_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU, cuDNN's attention where available: on an H200 1.2 to 1.6 times as fast as torch's default."""
    if device.type != "cuda":
        return nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    found: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return found


def uses_bf16(precision: str, device: torch.device) -> bool:
    """`auto` takes bf16 on a GPU, and on a CPU that multiplies it natively; elsewhere it would be slower than fp32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return True
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
