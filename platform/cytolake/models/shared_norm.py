"""Batch normalisation of maps by the crops of all workers, on any device.

torch's own `SyncBatchNorm` needs a GPU, and would let a run on CPUs depend on the number of its workers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cytolake.models.workers import mean_over_workers, n_workers


class SharedBatchNorm2d(nn.BatchNorm2d):
    """torch's `BatchNorm2d`, with the statistics of all workers' crops in training. All have equally many.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167; over all workers as SimCLR, BYOL and MoCo v3 have it.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, S, S) to the same shape; updates the running statistics in training."""
        if not self.training or n_workers() == 1:
            return super().forward(maps)
        values = maps.float()
        mean = mean_over_workers(values.mean(dim=(0, 2, 3)))
        centred = values - mean[:, None, None]
        variance = mean_over_workers(centred.square().mean(dim=(0, 2, 3)))
        self._follow(mean.detach(), variance.detach(), n=maps.numel() // maps.shape[1] * n_workers())
        gain = (variance + self.eps).rsqrt() * self.weight
        return (centred * gain[:, None, None] + self.bias[:, None, None]).to(maps.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, n: int) -> None:
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.num_batches_tracked is not None and self.momentum is not None  # noqa: PT018
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (n / max(1, n - 1)), self.momentum)
