"""One worker's part of every global minibatch, read ahead of the model by a background thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from cytolake.models import CropBatch, ModelConfig, collate, flip_rotate, masking_noise
from cytolake.models.seeding import sample_bits
from cytolake.packs.pack import Pack
from cytolake.packs.sampler import minibatches

_PARTNER = 1 << 20  # purpose of `sample_bits`, far from those of masks and turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Minibatch:
    """What one training step of one worker needs."""

    crops: CropBatch
    noise: Tensor
    """(B, L) random numbers that choose the hidden tokens."""
    second_crops: CropBatch | None = None
    """The same crops turned another way, for the contrastive term; None where the model has none."""
    second_noise: Tensor | None = None

    def to(self, device: torch.device) -> tuple[CropBatch, Tensor, CropBatch | None, Tensor | None]:
        """The model's arguments, on its device."""
        second = None if self.second_crops is None else self.second_crops.to(device, non_blocking=True)
        return self.crops.to(device, non_blocking=True), self.noise, second, self.second_noise


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSettings:
    """Which crops a worker sees, and how they are turned."""

    model: ModelConfig
    seed: int
    minibatch_size: int
    """Crops of a global minibatch, all workers together."""
    flip_rotate: bool
    pairs_wells: bool = False
    """The second view is of another crop of the same well."""
    rank: int
    world_size: int
    first_step: int
    """Step to begin with, counted from the start of the run."""
    n_steps: int
    """Steps of the whole run."""
    pin_memory: bool = False


def steps_per_epoch(n_crops: int, minibatch_size: int) -> int:
    """Whole global minibatches of an epoch; the rest of the crops get their turn in another epoch's order."""
    return n_crops // minibatch_size


def read_minibatches(pack: Pack, settings: FeedSettings) -> Iterator[Minibatch]:
    """Minibatches `first_step` to `n_steps` - 1 of one worker.

    What a minibatch holds is a function of (seed, epoch, global sample index): a worker that begins in the middle of
    an epoch reads exactly what it would have read there.
    """
    per_epoch = steps_per_epoch(pack.n_crops, settings.minibatch_size)
    step = settings.first_step
    identities: dict[tuple[str, ...], tuple[int, ...]] = {}
    partners = _Partners(pack) if settings.pairs_wells and settings.model.contrastive_weight > 0 else None

    def identities_of(rows: np.ndarray) -> list[tuple[int, ...]]:
        indices = []
        for row in rows.tolist():
            names = tuple(pack.channels(row))
            if names not in identities:
                identities[names] = settings.model.channel_indices(names)
            indices.append(identities[names])
        return indices

    while step < settings.n_steps:
        epoch, start = divmod(step, per_epoch)
        rows_of_epoch = minibatches(
            pack.n_crops,
            settings.seed,
            epoch,
            settings.minibatch_size,
            settings.rank,
            settings.world_size,
            start=start,
        )
        for rows in rows_of_epoch:
            if step == settings.n_steps or step // per_epoch != epoch:
                break
            images, indices = pack.read(rows), identities_of(rows)
            crops, noise = _view(images, indices, settings, epoch, rows, 0)
            if settings.model.contrastive_weight > 0:
                if partners is not None:
                    others = partners.of(rows, settings.seed, epoch)
                    images, indices = pack.read(others), identities_of(others)
                second_crops, second_noise = _view(images, indices, settings, epoch, rows, 1)
                yield Minibatch(crops=crops, noise=noise, second_crops=second_crops, second_noise=second_noise)
            else:
                yield Minibatch(crops=crops, noise=noise)
            step += 1


class _Partners:
    """For each crop one of its well, itself among them: a function of (seed, epoch, global sample index)."""

    def __init__(self, pack: Pack) -> None:
        wells = np.asarray(pack.index["well_id"].to_pylist())
        _, well_of_row, self._n = np.unique(wells, return_inverse=True, return_counts=True)
        self._well_of_row = well_of_row
        self._rows_by_well = np.argsort(well_of_row, kind="stable")
        self._first = np.cumsum(self._n) - self._n

    def of(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        wells = self._well_of_row[rows]
        choice = sample_bits(seed, epoch, rows, _PARTNER) % self._n[wells].astype(np.uint64)
        partners: np.ndarray = self._rows_by_well[self._first[wells] + choice.astype(np.int64)]
        return partners


def _view(
    images: Sequence[np.ndarray],
    indices: Sequence[Sequence[int]],
    settings: FeedSettings,
    epoch: int,
    rows: np.ndarray,
    view: int,
) -> tuple[CropBatch, Tensor]:
    """One view of every crop, turned and masked on its own."""
    if settings.flip_rotate:
        images = flip_rotate(images, settings.seed, epoch, rows, view=view)
    crops = collate(images, indices)
    n_streams = 1 if settings.model.architecture == "mae_vit" else crops.pixels.shape[1]
    noise = masking_noise(settings.seed, epoch, rows, n_streams * settings.model.n_patches, view=view)
    return (crops.pin_memory(), noise.pin_memory()) if settings.pin_memory else (crops, noise)


class Prefetcher:
    """Runs an iterator of minibatches in a thread, `depth` ahead, and measures how long the model waits for it.

    Use as a context manager; leaving it ends the thread.
    """

    def __init__(self, source: Iterator[Minibatch], depth: int) -> None:
        self.waited_s = 0.0
        """Seconds that `next` has blocked so far."""
        self._source = source
        self._queue: queue.Queue[Minibatch | BaseException | None] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="minibatch-prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Minibatch:
        started = time.perf_counter()
        item = self._queue.get()
        self.waited_s += time.perf_counter() - started
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        item: Minibatch | BaseException | None
        try:
            for item in self._source:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # handed to the training thread, which is the one that can stop the run
            self._put(error)

    def _put(self, item: Minibatch | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False
