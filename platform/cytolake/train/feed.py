"""One worker's part of every global minibatch, read ahead of the model by a background thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from cytolake.models import CropBatch, ModelConfig, masking_noise
from cytolake.models.augment import AugmentConfig, augment
from cytolake.models.objectives import ObjectiveConfig, View
from cytolake.models.seeding import sample_bits
from cytolake.packs.crop_batches import crop_batch
from cytolake.packs.pack import Pack
from cytolake.packs.sampler import GlobalMinibatch, Rows, minibatches

_PARTNER = 1 << 20  # purpose of `sample_bits`, far from those of masks and turns


@dataclass(frozen=True, kw_only=True, slots=True)
class Minibatch:
    """Input of one training step of one worker."""

    views: tuple[View, ...]
    whole: GlobalMinibatch
    """The crops of all workers."""
    rows: Rows
    """Crops of this worker, in the order of the views."""
    weight: float
    """Weight of its mean loss in the mean over workers: 1 where all have equally many crops, 0 where it has no crop and
    computes with one of another worker."""
    n_tokens: int
    """Patch tokens of all views."""

    def to(self, device: torch.device) -> tuple[View, ...]:
        """The model's argument, on its device."""
        return tuple(View(view.crops.to(device, non_blocking=True), _there(view.noise, device)) for view in self.views)


def _there(noise: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if noise is None else noise.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedSettings:
    """Which crops a worker sees, and how they are augmented."""

    model: ModelConfig
    objective: ObjectiveConfig
    seed: int
    minibatch_size: int
    """Most crops of a global minibatch, all workers together."""
    minibatch_tokens: int | None = None
    """Most patch tokens of a global minibatch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How each view is changed."""
    pairs_wells: bool = False
    """Views beyond the first are of another crop of the same well."""
    rank: int
    world_size: int
    first_sample: int
    """Sample to begin with, counted from the start of the run."""
    end_sample: int | None
    """Sample to end before; None means no end."""
    pin_memory: bool = False


def changed_view(
    crops: CropBatch,
    config: AugmentConfig,
    objective: ObjectiveConfig,
    *,
    seed: int,
    epochs: int | Rows,
    sample_index: Rows,
    view: int,
) -> CropBatch:
    """One view of crops as an objective gets it: changed by `augment`, at the crop scale and size of this view."""
    crop_scale, size = objective.view_crop(view)
    return augment(
        crops,
        config,
        seed=seed,
        epochs=epochs,
        sample_index=sample_index,
        view=view,
        crop_scale=crop_scale,
        size=size,
    )


def read_minibatches(pack: Pack, settings: FeedSettings) -> Iterator[Minibatch]:
    """One worker's parts of the minibatches of a run.

    The content of a minibatch is a function of (seed, epoch, global sample index): a worker that begins in the middle
    of an epoch reads the same as one that began at its start.
    """
    return _Reader(pack, settings).minibatches()


class _Reader:
    def __init__(self, pack: Pack, settings: FeedSettings) -> None:
        self._pack, self._settings = pack, settings
        self._identities: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._n_views = settings.objective.n_views
        self._partners = _Partners(pack) if settings.pairs_wells and self._n_views > 1 else None
        self._tokens = None
        if settings.minibatch_tokens is not None:
            of_count = {int(group): settings.model.n_tokens(int(group)) for group in np.unique(pack.index["group"])}
            self._tokens = np.array([of_count[group] for group in pack.index["group"].to_pylist()])

    def minibatches(self) -> Iterator[Minibatch]:
        settings = self._settings
        whole_ones = minibatches(
            self._pack.n_crops,
            settings.seed,
            settings.minibatch_size,
            first=settings.first_sample,
            end=settings.end_sample,
            tokens=self._tokens,
            max_tokens=settings.minibatch_tokens,
        )
        for whole in whole_ones:
            rows, epochs = whole.share(settings.rank, settings.world_size)
            weight = len(rows) * settings.world_size / len(whole.rows)
            read_rows, read_epochs = (rows, epochs) if len(rows) else (whole.rows[:1], whole.epochs[:1])
            views = tuple(self._view(read_rows, read_epochs, view) for view in range(self._n_views))
            n_tokens = sum(_n_tokens(settings.model, view.crops) for view in views) if len(rows) else 0
            yield Minibatch(views=views, whole=whole, rows=rows, weight=weight, n_tokens=n_tokens)

    def _view(self, rows: Rows, epochs: Rows, view: int) -> View:
        """One view of every crop, changed and masked on its own."""
        settings = self._settings
        shown = rows
        if view > 0 and self._partners is not None:
            shown = self._partners.of(rows, settings.seed, epochs)
        crops = changed_view(
            crop_batch(
                self._pack, shown, settings.model, identities=[self._identities_of(row) for row in shown.tolist()]
            ),
            settings.augment,
            settings.objective,
            seed=settings.seed,
            epochs=epochs,
            sample_index=rows,
            view=view,
        )
        noise = None
        if settings.objective.masks_tokens:
            n_tokens = settings.model.n_tokens(crops.pixels.shape[1])
            noise = masking_noise(settings.seed, epochs, rows, n_tokens, view=view)
        if settings.pin_memory:
            return View(crops.pin_memory(), None if noise is None else noise.pin_memory())
        return View(crops, noise)

    def _identities_of(self, row: int) -> tuple[int, ...]:
        names = tuple(self._pack.channels(row))
        if names not in self._identities:
            self._identities[names] = self._settings.model.channel_indices(names)
        return self._identities[names]


def _n_tokens(model: ModelConfig, crops: CropBatch) -> int:
    """Patch tokens of crops of any size."""
    n_patches = model.n_patches_of(crops.pixels.shape[-1])
    return n_patches * (len(crops) if model.is_fused else sum(crops.n_channels))


class _Partners:
    """For each crop one of its well, itself among them: a function of (seed, epoch, global sample index)."""

    def __init__(self, pack: Pack) -> None:
        wells = np.asarray(pack.index["well_id"].to_pylist())
        _, well_of_row, self._n = np.unique(wells, return_inverse=True, return_counts=True)
        self._well_of_row = well_of_row
        self._rows_by_well = np.argsort(well_of_row, kind="stable")
        self._first = np.cumsum(self._n) - self._n

    def of(self, rows: Rows, seed: int, epochs: Rows | int) -> Rows:
        wells = self._well_of_row[rows]
        choice = sample_bits(seed, epochs, rows, _PARTNER) % self._n[wells].astype(np.uint64)
        partners: Rows = self._rows_by_well[self._first[wells] + choice.astype(np.int64)]
        return partners


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
