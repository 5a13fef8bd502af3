"""What the endpoints call: the champion, the catalog and the search index, kept up to date.

Shapes: B crops, C channels, S side of a crop in pixels, D width of the vector.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, channel_vocabulary
from cytolake.performance_prediction.registered import RegisteredPredictor, find_query_predictor
from cytolake.serving.champion import Champion, load_champion
from cytolake.serving.decoding import DecodingBudget
from cytolake.serving.guard import GuardConfig, guard_from_environment
from cytolake.serving.problems import ServingError
from cytolake.serving.search import TABLES, CropIndex, read_index
from cytolake.tracking import CHAMPION, TrackingConfig, resolve_alias

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """One service: whose champion, for whom, and how much at once."""

    root: str = "cytolake_data"
    """Catalog root."""
    alias: str = CHAMPION
    """MLflow alias to follow."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Model registry; an empty `uri` means the catalog root's own."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Keys and body sizes."""
    budget: DecodingBudget = field(default_factory=DecodingBudget)
    """Size of the arrays that are taken."""
    minibatch_size: int = 64
    """Crops of one forward pass; requests that arrive together share one."""
    batch_wait_s: float = 0.005
    """How long a crop waits for company, seconds."""
    refresh_s: float = 10.0
    """How old the knowledge of alias and tables may be, seconds, before a request sets off a look."""
    device: str = "auto"
    """torch device; `auto` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if not self.root or not self.alias:
            raise ValueError(
                "root and alias must not be empty: set CYTOLAKE_ROOT and CYTOLAKE_ALIAS, or leave them out"
            )
        if self.minibatch_size < 1 or self.batch_wait_s < 0 or self.refresh_s < 0:
            raise ValueError("minibatch_size must be 1 or more, batch_wait_s and refresh_s 0 or more")


def config_from_environment(environment: Mapping[str, str], *, sets_request_id: bool = True) -> ServingConfig:
    """Read `CYTOLAKE_ROOT`, `CYTOLAKE_ALIAS`, `CYTOLAKE_TRACKING_URI` and the guard's variables.

    A relative root is made absolute here: the replicas' working directory is another one.

    Raises:
        ValueError: What `guard_from_environment` and the configs refuse.
    """
    root = environment.get("CYTOLAKE_ROOT", "") or "cytolake_data"
    return ServingConfig(
        root=str(Path(root).expanduser().resolve()),
        alias=environment.get("CYTOLAKE_ALIAS", "") or CHAMPION,
        tracking=TrackingConfig(uri=environment.get("CYTOLAKE_TRACKING_URI", "")),
        guard=guard_from_environment(environment, sets_request_id=sets_request_id),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Everything that answers come from, of one moment. Replaced as a whole, so no answer mixes two versions."""

    catalog: Catalog
    champion: Champion
    index: CropIndex
    performance: RegisteredPredictor | None
    """Tells how well a search will do; None where none was fitted on the champion's representation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Minibatch:
    """Crops on their way into one forward pass."""

    champion: Champion
    images: Sequence[NDArray[Any]]
    indices: Sequence[Sequence[int]]


RunMinibatches = Callable[[list[Minibatch]], Awaitable[list[NDArray[np.float32]]]]
RunMinibatch = Callable[[Minibatch], Awaitable[NDArray[np.float32]]]


def one_by_one(run: RunMinibatches, config: ServingConfig) -> RunMinibatch:
    """No dynamic batching: each minibatch is a forward pass of its own. For use without Ray Serve."""

    async def run_one(minibatch: Minibatch) -> NDArray[np.float32]:
        return (await run([minibatch]))[0]

    return run_one


class Service:
    """The champion at work. Starts without one, says why, and takes it up when it appears."""

    def __init__(
        self, config: ServingConfig, batched: Callable[[RunMinibatches, ServingConfig], RunMinibatch] = one_by_one
    ) -> None:
        self.config = config
        self._tracking = config.tracking.at(config.root)
        self._loaded: Loaded | None = None
        self._reason = "the model is being loaded."
        self._looked_at = -float("inf")
        self._loading = threading.Lock()
        self._refresh: asyncio.Task[None] | None = None
        self._run = batched(self._run_minibatches, config)

    def load(self) -> None:
        """Look at alias and tables and take up what is new. Keeps what it has when that fails; never raises."""
        with self._loading:
            try:
                self._loaded = self._read()
                self._reason = ""
            except Exception as error:  # whatever is wrong with registry or disk, the service stays up and says so
                self._reason = _first_lines(error)
                level = logging.WARNING if self._loaded is None else logging.ERROR
                logger.log(level, "alias %s of %s: %s", self.config.alias, self.config.root, self._reason)
            finally:
                self._looked_at = time.monotonic()

    def why_not_ready(self) -> str:
        """ "" when requests can be answered, else the reason and what to do."""
        return "" if self._loaded is not None else self._reason

    def keep_current(self) -> None:
        """Set off a look at alias and tables in the background when the last one is `refresh_s` ago."""
        is_due = time.monotonic() - self._looked_at >= self.config.refresh_s
        if is_due and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(asyncio.to_thread(self.load))

    def current(self) -> Loaded:
        """What answers come from now.

        Raises:
            ServingError: 503 with the reason, nothing is loaded.
        """
        loaded = self._loaded
        if loaded is None:
            retry_s = str(max(1, round(self.config.refresh_s)))
            raise ServingError(status=503, detail=self._reason, headers={"Retry-After": retry_s})
        return loaded

    async def embed_stored(self, loaded: Loaded, crop_ids: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) vectors of stored crops, from their source pixels.

        Raises:
            ServingError: 404 unknown crops, 422 crops that this encoder cannot take, 503 pixels that cannot be read.
        """
        images, channels = await asyncio.to_thread(_read_crops, loaded.catalog, crop_ids)
        return await self._embed(loaded.champion, images, channels, crop_ids)

    async def embed_pixels(
        self, loaded: Loaded, pixels_BCHW: NDArray[Any], channels: Sequence[str]
    ) -> NDArray[np.float32]:
        """(B, D) vectors of crops as sent.

        Args:
            loaded: What `current` gave.
            pixels_BCHW: (B, C, S, S) raw intensities, any scale.
            channels: C stain names, any spelling that catalog/channels.yaml knows.

        Raises:
            ServingError: 422, another crop size or channels than the encoder takes.
        """
        size = loaded.champion.card.crop_size
        if pixels_BCHW.shape[2:] != (size, size):
            height, width = pixels_BCHW.shape[2:]
            raise ServingError(
                status=422,
                detail=f"crops of {height} x {width} px, the model takes {size} x {size} px. Cut crops of that size at "
                "the model's pixel size; do not rescale.",
            )
        if len(channels) != pixels_BCHW.shape[1]:
            raise ServingError(
                status=422,
                detail=f"{len(channels)} channel names for {pixels_BCHW.shape[1]} channels. Name each channel of the "
                "array in its order, such as ?channels=DNA,ER,RNA.",
            )
        canonical = tuple(channel_vocabulary().canonical(name) for name in channels)
        names = [f"crop {i} of the request" for i in range(len(pixels_BCHW))]
        return await self._embed(loaded.champion, list(pixels_BCHW), [canonical] * len(pixels_BCHW), names)

    async def _embed(
        self,
        champion: Champion,
        images: Sequence[NDArray[Any]],
        channels: Sequence[Sequence[str]],
        names: Sequence[str],
    ) -> NDArray[np.float32]:
        # All checks come before the queue: a crop that fails there would fail the strangers it shares a pass with.
        size = champion.card.crop_size
        indices = []
        for image, stains, name in zip(images, channels, names, strict=True):
            if image.shape != (len(stains), size, size):
                raise ServingError(
                    status=422,
                    detail=f"{name} has shape {image.shape}, expected ({len(stains)}, {size}, {size}). Ingest with "
                    f"crop_size {size}, or promote a model of this crop size.",
                )
            try:
                indices.append(champion.channel_indices(stains))
            except ValueError as error:
                raise ServingError(status=422, detail=f"{name}: {error}") from error
        step = self.config.minibatch_size
        parts = [
            Minibatch(champion=champion, images=images[i : i + step], indices=indices[i : i + step])
            for i in range(0, len(images), step)
        ]
        return np.concatenate(await asyncio.gather(*(self._run(part) for part in parts)))

    async def _run_minibatches(self, minibatches: list[Minibatch]) -> list[NDArray[np.float32]]:
        return await asyncio.to_thread(_run_together, minibatches)

    def _read(self) -> Loaded:
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "False")
        catalog = cytolake.catalog.open(self.config.root)
        before = self._loaded
        card = resolve_alias(self._tracking, self.config.alias)
        champion = before.champion if before is not None and before.champion.card == card else None
        if champion is None:
            champion = load_champion(self._tracking, self.config.alias, self.config.device)
        index = before.index if before is not None else None
        if index is None or not _is_current(index, champion, catalog):
            index = read_index(catalog, champion.card.representation_id, champion.card.dim)
        performance = self._performance(champion, before)
        return Loaded(catalog=catalog, champion=champion, index=index, performance=performance)

    def _performance(self, champion: Champion, before: Loaded | None) -> RegisteredPredictor | None:
        """A damaged predictor is told in the log and left out: searches must not wait for it."""
        known = before.performance if before is not None else None
        try:
            return find_query_predictor(self._tracking, "search", champion.card.representation_id, known)
        except Exception as error:
            logger.error("no predicted performance: %s", _first_lines(error))
            return None


def _is_current(index: CropIndex, champion: Champion, catalog: Catalog) -> bool:
    now = catalog.versions()
    is_same_model = index.representation_id == champion.card.representation_id
    return is_same_model and index.versions == {table: now[table] for table in TABLES if table in now}


def _read_crops(catalog: Catalog, crop_ids: Sequence[str]) -> tuple[Sequence[NDArray[Any]], Sequence[tuple[str, ...]]]:
    try:
        channels = catalog.channels_of(crop_ids)
    except CatalogError as error:
        raise ServingError(status=404, detail=_first_lines(error)) from error
    try:
        return catalog.crop_pixels(crop_ids), channels
    except (OSError, ValueError) as error:
        raise ServingError(
            status=503, detail=f"the source images of these crops cannot be read: {_first_lines(error)}"
        ) from error


def _run_together(minibatches: list[Minibatch]) -> list[NDArray[np.float32]]:
    """One forward pass for each model among the minibatches; during a promotion there may be two."""
    results: dict[int, NDArray[np.float32]] = {}
    for champion in {id(minibatch.champion): minibatch.champion for minibatch in minibatches}.values():
        members = [i for i, minibatch in enumerate(minibatches) if minibatch.champion is champion]
        images = [image for i in members for image in minibatches[i].images]
        indices = [index for i in members for index in minibatches[i].indices]
        ends = np.cumsum([len(minibatches[i].images) for i in members])[:-1]
        vectors_BD = champion.embed(images, indices)
        results |= dict(zip(members, np.split(vectors_BD, ends), strict=True))
    return [results[i] for i in range(len(minibatches))]


def _first_lines(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())[:600] or type(error).__name__
