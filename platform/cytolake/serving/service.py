"""What the endpoints call: crops and pixels to vectors, through the model that an alias names.

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

from cytolake.catalog import Catalog, CatalogError, channel_vocabulary
from cytolake.models.precision import PRECISIONS, EncoderPrecision
from cytolake.serving.champion import Champion
from cytolake.serving.decoding import DecodingBudget
from cytolake.serving.follower import Follower, Loaded, first_lines
from cytolake.serving.guard import GuardConfig, guard_from_environment
from cytolake.serving.metrics import Metrics, ServedModel
from cytolake.serving.problems import ServingError
from cytolake.tracking import CHAMPION, TrackingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """One service: whose champion, for whom, and how much at once."""

    root: str = "cytolake_data"
    """Catalog root."""
    alias: str = CHAMPION
    """MLflow alias to follow: what requests that name none are answered by."""
    other_aliases: tuple[str, ...] = ()
    """More of them, which a request may name; each is loaded when it is first asked for."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Model registry; an empty `uri` means the catalog root's own."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Keys and body sizes."""
    budget: DecodingBudget = field(default_factory=DecodingBudget)
    """Size of the arrays that are taken."""
    minibatch_tokens: int = 4096
    """Tokens of one forward pass, all channels of all its crops; requests that arrive together share one. It bounds the
    memory of a pass where crops have many channels, and fills it where they have few."""
    batch_wait_s: float = 0.005
    """How long a crop waits for company, seconds."""
    refresh_s: float = 10.0
    """How old the knowledge of alias and tables may be, seconds, before a request sets off a look."""
    device: str = "auto"
    """torch device; `auto` takes a GPU where there is one."""
    precision: EncoderPrecision = "fp32"
    """Of the encoder's matrix products, whichever the stored vectors were computed in; see `EncoderPrecision`."""

    def __post_init__(self) -> None:
        if not self.root or not self.alias:
            raise ValueError(
                "root and alias must not be empty: set CYTOLAKE_ROOT and CYTOLAKE_ALIAS, or leave them out"
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
        """All that may be asked, the one that answers by default first."""
        return (self.alias, *self.other_aliases)


def config_from_environment(environment: Mapping[str, str], *, sets_request_id: bool = True) -> ServingConfig:
    """Read `CYTOLAKE_ROOT`, `CYTOLAKE_ALIAS` (further ones behind commas), `CYTOLAKE_TRACKING_URI`,
    `CYTOLAKE_PRECISION` and the guard's.

    A relative root is made absolute here: the replicas' working directory is another one.

    Raises:
        ValueError: What `guard_from_environment` and the configs refuse.
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
class Minibatch:
    """Crops on their way into one forward pass."""

    champion: Champion
    images: Sequence[NDArray[Any]]
    indices: Sequence[Sequence[int]]
    asked_at: float
    """When it began to wait, by `time.monotonic`."""

    @property
    def n_tokens(self) -> int:
        """Of all its crops."""
        return sum(self.champion.tokens_of(len(each)) for each in self.indices)


RunMinibatches = Callable[[list[Minibatch]], Awaitable[list[NDArray[np.float32]]]]
RunMinibatch = Callable[[Minibatch], Awaitable[NDArray[np.float32]]]


def one_by_one(run: RunMinibatches, config: ServingConfig) -> RunMinibatch:
    """No dynamic batching: each minibatch is a forward pass of its own. For use without Ray Serve."""

    async def run_one(minibatch: Minibatch) -> NDArray[np.float32]:
        return (await run([minibatch]))[0]

    return run_one


class Service:
    """The promoted models at work, one for each alias."""

    def __init__(
        self, config: ServingConfig, batched: Callable[[RunMinibatches, ServingConfig], RunMinibatch] = one_by_one
    ) -> None:
        self.config = config
        tracking = config.tracking.at(config.root)
        self._followers = {
            alias: Follower(config.root, alias, tracking, config.device, config.refresh_s, config.precision)
            for alias in config.aliases
        }
        self.metrics = Metrics()
        self._run = batched(self._run_minibatches, config)

    def served(self) -> list[ServedModel]:
        """What answers now, one for each alias that is in use."""
        return [
            ServedModel(
                name=loaded.champion.card.name,
                alias=alias,
                version=loaded.champion.card.version,
                representation_id=loaded.champion.card.representation_id,
                n_crops=loaded.index.crops.num_rows,
            )
            for alias, follower in self._followers.items()
            if (loaded := follower.loaded) is not None
        ]

    def follower(self, alias: str = "") -> Follower:
        """What follows an alias; "" is the one that answers by default.

        Raises:
            ServingError: 404, this service does not follow it.
        """
        found = self._followers.get(alias or self.config.alias)
        if found is None:
            raise ServingError(
                status=404,
                detail=f"this service has no alias {alias!r}; it follows {', '.join(self.config.aliases)}.",
            )
        return found

    def load(self) -> None:
        """Look at every alias that is in use, and take up what is new; never raises."""
        for alias, follower in self._followers.items():
            if alias == self.config.alias or follower.is_in_use:
                follower.load()

    def why_not_ready(self) -> str:
        """ "" when requests that name no alias can be answered, else the reason and what to do."""
        return self.follower().why_not_ready()

    async def current(self, alias: str = "") -> Loaded:
        """What answers come from now; sets off a look for what is new, and loads an alias that was never asked for.

        Raises:
            ServingError: 404 no such alias; 503 with the reason, nothing is loaded.
        """
        follower = self.follower(alias)
        if not follower.is_in_use:
            await asyncio.to_thread(follower.load)
        follower.keep_current()
        return follower.current()

    async def embed_stored(self, loaded: Loaded, crop_ids: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) vectors of stored crops, from their source pixels.

        Raises:
            ServingError: 404 unknown crops, 422 crops that this encoder cannot take, 503 pixels that cannot be read.
        """
        images, channels = await asyncio.to_thread(_read_crops, loaded.catalog, crop_ids)
        return await self._embed(loaded.champion, images, channels, crop_ids)

    async def embed_pixels(
        self, loaded: Loaded, images: Sequence[NDArray[Any]], channels: Sequence[Sequence[str]]
    ) -> NDArray[np.float32]:
        """(B, D) vectors of crops as sent.

        Args:
            loaded: What `current` gave.
            images: B crops, each (C, S, S), raw intensities of any scale; C may differ.
            channels: For each crop C stain names, any spelling that catalog/channels.yaml knows.

        Raises:
            ServingError: 422, another crop size or channels than the encoder takes.
        """
        size = loaded.champion.card.crop_size
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
        return await self._embed(
            loaded.champion, images, named, [f"crop {i} of the request" for i in range(len(images))]
        )

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
                champion.check_pixels(image)
            except ValueError as error:
                raise ServingError(status=422, detail=f"{name}: {error}") from error
        asked_at = time.monotonic()
        parts = [
            Minibatch(champion=champion, images=images[first:end], indices=indices[first:end], asked_at=asked_at)
            for first, end in _shares([champion.tokens_of(len(each)) for each in indices], self.config.minibatch_tokens)
        ]
        return np.concatenate(await asyncio.gather(*(self._run(part) for part in parts)))

    async def _run_minibatches(self, minibatches: list[Minibatch]) -> list[NDArray[np.float32]]:
        started = time.monotonic()
        for minibatch in minibatches:
            self.metrics.count_wait(started - minibatch.asked_at)
        vectors = await asyncio.to_thread(_run_together, minibatches)
        self.metrics.count_pass(sum(len(minibatch.images) for minibatch in minibatches), time.monotonic() - started)
        return vectors


def _read_crops(catalog: Catalog, crop_ids: Sequence[str]) -> tuple[Sequence[NDArray[Any]], Sequence[tuple[str, ...]]]:
    try:
        channels = catalog.channels_of(crop_ids)
    except CatalogError as error:
        raise ServingError(status=404, detail=first_lines(error)) from error
    try:
        return catalog.crop_pixels(crop_ids), channels
    except (OSError, ValueError) as error:
        raise ServingError(
            status=503, detail=f"the source images of these crops cannot be read: {first_lines(error)}"
        ) from error


def _shares(tokens: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Consecutive crops of at most so many tokens together; one that has more alone is a share of its own."""
    shares, first, held = [], 0, 0
    for place, n in enumerate(tokens):
        if held and held + n > most:
            shares.append((first, place))
            first, held = place, 0
        held += n
    return [*shares, (first, len(tokens))]


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
