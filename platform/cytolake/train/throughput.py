"""Losses, speed and memory of a run since its last report, over all workers."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cytolake.packs.sampler import Rows
from cytolake.train.feed import Minibatch
from cytolake.train.parallel import is_distributed


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A step whose loss or gradient is not a number."""

    rows: Rows
    """Crops that it saw, all workers together."""
    steps_before_report: int
    """0 for the newest step."""
    loss: float
    gradient_norm: float


class Window:
    """Steps since the last report. Adding a step does not wait for a GPU; closing does."""

    def __init__(self, device: torch.device, flops_of: Callable[[int], float], peak_tflops: float | None) -> None:
        """
        Args:
            flops_of: Operations of one training step on a crop by its number of channels, see `models.cost`.
            peak_tflops: Dense peak of one worker's device, 10^12 operations in a second; None where it is not known.
        """
        self._device, self._flops_of, self._peak_tflops = device, flops_of, peak_tflops
        self._forget()
        self.skip(0.0)

    def skip(self, waited_s: float) -> None:
        """Restart the clock; `waited_s` is the prefetcher's total."""
        self._started, self._waited_s = time.perf_counter(), waited_s

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Exclude the time of a block that is no part of training."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def add(self, minibatch: Minibatch, losses: dict[str, Tensor], gradient_norm: Tensor) -> None:
        """Add one step; its tensors stay on their device."""
        self._rows.append(minibatch.whole.rows)
        if len(minibatch.rows):
            self._tokens += minibatch.n_tokens
            self._operations += sum(map(self._flops_of, minibatch.views[0].crops.n_channels))
        self._losses.append({name: value.detach() * minibatch.weight for name, value in losses.items()})
        self._norms.append(gradient_norm.detach())

    def close(self, waited_s: float) -> tuple[dict[str, float], NotFinite | None]:
        """Means over the steps and all workers, as a row of the history; and the first step that is not finite.

        All workers get the same, and must all call it after the same step.
        """
        names, n_steps = sorted(self._losses[0]), len(self._losses)
        losses = torch.stack([torch.stack([each[name].float() for name in names]) for each in self._losses])
        norms = torch.stack([norm.float() for norm in self._norms])
        amounts = torch.tensor([self._tokens, self._operations / 1e12], dtype=torch.float64, device=self._device)
        most = torch.tensor([self._memory_mb()], dtype=torch.float64, device=self._device)
        n_workers = 1
        if is_distributed():
            n_workers = torch.distributed.get_world_size()
            torch.distributed.all_reduce(losses)
            losses /= n_workers
            torch.distributed.all_reduce(amounts)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        losses, norms = losses.cpu(), norms.cpu()
        seconds = time.perf_counter() - self._started
        tflops = float(amounts[1]) / seconds / n_workers
        row = dict(zip(names, losses.mean(dim=0).tolist(), strict=True)) | {
            "grad_norm": float(norms.mean()),
            "crops_per_s": sum(map(len, self._rows)) / seconds,
            "tokens_per_s": float(amounts[0]) / seconds,
            "tflops_per_s": tflops,
            "data_wait_share": min(1.0, (waited_s - self._waited_s) / seconds),
            "memory_mb": float(most[0]),
        }
        if self._peak_tflops is not None:
            row["mfu"] = tflops / self._peak_tflops
        wrong = self._first_not_finite(losses[:, names.index("loss")], norms, n_steps)
        self._forget()
        return row, wrong

    def _first_not_finite(self, loss: Tensor, norms: Tensor, n_steps: int) -> NotFinite | None:
        bad = (~(torch.isfinite(loss) & torch.isfinite(norms))).nonzero()
        if len(bad) == 0:
            return None
        i = int(bad[0])
        return NotFinite(self._rows[i], n_steps - 1 - i, float(loss[i]), float(norms[i]))

    def _memory_mb(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def _forget(self) -> None:
        self._rows: list[Rows] = []
        self._tokens, self._operations = 0, 0.0
        self._losses: list[dict[str, Tensor]] = []
        self._norms: list[Tensor] = []
