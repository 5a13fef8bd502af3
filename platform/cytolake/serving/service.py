"""The service behind the endpoints: from stored crops or sent pixels to vectors, with the model that an alias names.

Shapes: B crops, C channels, S side of a crop in pixels, D width of the vector.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog import channel_vocabulary
from cytolake.models.precision import PRECISIONS, EncoderPrecision
from cytolake.serving.decoding import DecodingBudget
from cytolake.serving.follower import Follower, Loaded
from cytolake.serving.guard import GuardConfig, guard_from_environment
from cytolake.serving.metrics import Metrics, ModelInfo
from cytolake.serving.problems import ServingError
from cytolake.serving.served_model import ServedModel
from cytolake.serving.stored_crops import read_crops
from cytolake.tracking import CHAMPION, TrackingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """One service: its catalog, its model, its callers and its limits."""

    root: str = "cytolake_data"
    """Catalog root."""
    alias: str = CHAMPION
    """MLflow alias of the model that answers requests without an alias."""
    other_aliases: tuple[str, ...] = ()
    """Further aliases that a request may name; each is loaded at its first request."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Model registry; an empty `uri` means the catalog root's own."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Keys and limits of request bodies."""
    budget: DecodingBudget = field(default_factory=DecodingBudget)
    """Limits of the decoded arrays."""
    minibatch_tokens: int = 4096
    """Tokens of one forward pass, over all channels of all its crops; requests that arrive together share a pass.
    Bounds the memory of a pass for crops of many channels, and fills it for crops of few."""
    batch_wait_s: float = 0.005
    """Longest wait of a request for others to share its forward pass, seconds."""
    refresh_s: float = 10.0
    """Least time between two checks of alias and tables, seconds; a request starts the check."""
    device: str = "auto"
    """torch device; `auto` takes a GPU where there is one."""
    precision: EncoderPrecision = "fp32"
    """Precision of the encoder's matrix products, independent of that of the stored vectors; see `EncoderPrecision`."""

    def __post_init__(self) -> None:
        if not self.root or not self.alias:
            raise ValueError(
                "root and alias must not be empty: set CYTOLAKE_ROOT and CYTOLAKE_ALIAS, or unset them for the defaults"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision is {self.precision!r}, expected {' or '.join(PRECISIONS)}: set CYTOLAKE_PRECISION to one"
            )
        if self.minibatch_tokens < 1 or self.batch_wait_s < 0 or self.refresh_s < 0:
            raise ValueError("minibatch_tokens must be 1 or more, batch_wait_s and refresh_s 0 or more")
        if self.alias in self.other_aliases or len(set(self.other_aliases)) < len(self.other_aliases):
            raise ValueError(f"other_aliases are {self.other_aliases}, with alias {self.alias}: expected each once")

    @property
    def aliases(self) -> tuple[str, ...]:
        """All aliases that a request may name, the default first."""
        return (self.alias, *self.other_aliases)


def config_from_environment(environment: Mapping[str, str], *, sets_request_id: bool = True) -> ServingConfig:
    """Read `CYTOLAKE_ROOT`, `CYTOLAKE_ALIAS` (further aliases after commas), `CYTOLAKE_TRACKING_URI`,
    `CYTOLAKE_PRECISION` and the variables of the guard.

    A relative root is made absolute here, because replicas have another working directory.

    Raises:
        ValueError: A value that `guard_from_environment` or a config refuses.
    """
    root = environment.get("CYTOLAKE_ROOT", "") or "cytolake_data"
    aliases = [name.strip() for name in environment.get("CYTOLAKE_ALIAS", "").split(",") if name.strip()] or [CHAMPION]
    return ServingConfig(
        root=str(Path(root).expanduser().resolve()),
        alias=aliases[0],
        other_aliases=tuple(aliases[1:]),
        tracking=TrackingConfig(uri=environment.get("CYTOLAKE_TRACKING_URI", "")),
        precision=cast(EncoderPrecision, environment.get("CYTOLAKE_PRECISION", "") or "fp32"),  # checked there
        guard=guard_from_environment(environment, sets_request_id=sets_request_id),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """Crops that wait for a forward pass."""

    model: ServedModel
    images: Sequence[NDArray[Any]]
    indices: Sequence[Sequence[int]]
    waiting_since: float
    """Start of the wait, by `time.monotonic`."""

    @property
    def n_tokens(self) -> int:
        """Tokens of all its crops."""
        return sum(self.model.tokens_of(len(each)) for each in self.indices)


RunTasks = Callable[[list[EmbedTask]], Awaitable[list[NDArray[np.float32]]]]
RunTask = Callable[[EmbedTask], Awaitable[NDArray[np.float32]]]


def one_by_one(run: RunTasks, config: ServingConfig) -> RunTask:
    """Without dynamic batching: one forward pass for each task. For use without Ray Serve."""

    async def run_one(task: EmbedTask) -> NDArray[np.float32]:
        return (await run([task]))[0]

    return run_one


class Service:
    """Loads the model of each alias, and embeds crops with it."""

    def __init__(
        self, config: ServingConfig, batched: Callable[[RunTasks, ServingConfig], RunTask] = one_by_one
    ) -> None:
        self.config = config
        tracking = config.tracking.at(config.root)
        self._followers = {
            alias: Follower(config.root, alias, tracking, config.device, config.refresh_s, config.precision)
            for alias in config.aliases
        }
        self.metrics = Metrics()
        self._run = batched(self._run_tasks, config)

    def served(self) -> list[ModelInfo]:
        """The loaded models, one for each alias in use."""
        return [
            ModelInfo(
                name=loaded.model.card.name,
                alias=alias,
                version=loaded.model.card.version,
                representation_id=loaded.model.card.representation_id,
                n_crops=loaded.index.crops.num_rows,
            )
            for alias, follower in self._followers.items()
            if (loaded := follower.loaded) is not None
        ]

    def follower(self, alias: str = "") -> Follower:
        """The follower of an alias; "" is the default alias.

        Raises:
            ServingError: 404, the service does not follow it.
        """
        found = self._followers.get(alias or self.config.alias)
        if found is None:
            raise ServingError(
                status=404,
                detail=f"this service has no alias {alias!r}; it follows {', '.join(self.config.aliases)}.",
            )
        return found

    def load(self) -> None:
        """Check every alias in use and load what is new; never raises."""
        for alias, follower in self._followers.items():
            if alias == self.config.alias or follower.is_in_use:
                follower.load()

    def why_not_ready(self) -> str:
        """ "" where the default alias has a model, else the reason and what to do."""
        return self.follower().why_not_ready()

    async def current(self, alias: str = "") -> Loaded:
        """What is loaded for an alias; starts a check for new versions, and loads an alias at its first request.

        Raises:
            ServingError: 404, no such alias; 503, nothing is loaded, with the reason.
        """
        follower = self.follower(alias)
        if not follower.is_in_use:
            await asyncio.to_thread(follower.load)
        follower.keep_current()
        return follower.current()

    async def embed_stored(self, loaded: Loaded, crop_ids: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) vectors of stored crops, from their source pixels.

        Raises:
            ServingError: 404, unknown crops; 422, crops that this encoder cannot take; 503, pixels that cannot be read.
        """
        images, channels = await asyncio.to_thread(read_crops, loaded.catalog, crop_ids)
        return await self._embed(loaded.model, images, channels, crop_ids)

    async def embed_pixels(
        self, loaded: Loaded, images: Sequence[NDArray[Any]], channels: Sequence[Sequence[str]]
    ) -> NDArray[np.float32]:
        """(B, D) vectors of crops that were sent as pixels.

        Args:
            loaded: Result of `current`.
            images: B crops, each (C, S, S), raw intensities of any scale; C may differ.
            channels: C stain names of each crop; any synonym in catalog/channels.yaml.

        Raises:
            ServingError: 422, a crop size or channels that the encoder does not take.
        """
        size = loaded.model.card.crop_size
        named = []
        for number, (image, names) in enumerate(zip(images, channels, strict=True)):
            if image.shape[1:] != (size, size):
                height, width = image.shape[1:]
                raise ServingError(
                    status=422,
                    detail=f"crop {number} of the request has {height} x {width} px, the model takes {size} x {size} "
                    "px. Cut crops of that size at the model's pixel size; do not rescale.",
                )
            if len(names) != len(image):
                raise ServingError(
                    status=422,
                    detail=f"{len(names)} channel names for {len(image)} channels of crop {number}. Name each channel "
                    "in its order, such as ?channels=DNA,ER,RNA.",
                )
            named.append(tuple(channel_vocabulary().canonical(name) for name in names))
        return await self._embed(loaded.model, images, named, [f"crop {i} of the request" for i in range(len(images))])

    async def _embed(
        self,
        model: ServedModel,
        images: Sequence[NDArray[Any]],
        channels: Sequence[Sequence[str]],
        names: Sequence[str],
    ) -> NDArray[np.float32]:
        # All checks come before the queue: a crop that fails in it would fail other requests of the same pass.
        size = model.card.crop_size
        indices = []
        for image, stains, name in zip(images, channels, names, strict=True):
            if image.shape != (len(stains), size, size):
                raise ServingError(
                    status=422,
                    detail=f"{name} has shape {image.shape}, expected ({len(stains)}, {size}, {size}). Ingest with "
                    f"crop_size {size}, or promote a model of this crop size.",
                )
            try:
                indices.append(model.channel_indices(stains))
                model.check_pixels(image)
            except ValueError as error:
                raise ServingError(status=422, detail=f"{name}: {error}") from error
        waiting_since = time.monotonic()
        parts = [
            EmbedTask(model=model, images=images[first:end], indices=indices[first:end], waiting_since=waiting_since)
            for first, end in _split([model.tokens_of(len(each)) for each in indices], self.config.minibatch_tokens)
        ]
        return np.concatenate(await asyncio.gather(*(self._run(part) for part in parts)))

    async def _run_tasks(self, tasks: list[EmbedTask]) -> list[NDArray[np.float32]]:
        started = time.monotonic()
        for task in tasks:
            self.metrics.count_wait(started - task.waiting_since)
        vectors = await asyncio.to_thread(_run_together, tasks)
        self.metrics.count_pass(sum(len(task.images) for task in tasks), time.monotonic() - started)
        return vectors


def _split(tokens: Sequence[int], most: int) -> list[tuple[int, int]]:
    """(first, end) of runs of crops with at most `most` tokens together; a larger crop is a run of its own."""
    runs, first, n_tokens = [], 0, 0
    for place, n in enumerate(tokens):
        if n_tokens and n_tokens + n > most:
            runs.append((first, place))
            first, n_tokens = place, 0
        n_tokens += n
    return [*runs, (first, len(tokens))]


def _run_together(tasks: list[EmbedTask]) -> list[NDArray[np.float32]]:
    """One forward pass for each model among the tasks; there may be two during a promotion."""
    results: dict[int, NDArray[np.float32]] = {}
    for model in {id(task.model): task.model for task in tasks}.values():
        members = [i for i, task in enumerate(tasks) if task.model is model]
        images = [image for i in members for image in tasks[i].images]
        indices = [index for i in members for index in tasks[i].indices]
        ends = np.cumsum([len(tasks[i].images) for i in members])[:-1]
        vectors_BD = model.embed(images, indices)
        results |= dict(zip(members, np.split(vectors_BD, ends), strict=True))
    return [results[i] for i in range(len(tasks))]
