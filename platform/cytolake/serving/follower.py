"""One alias of the registry, followed: its model, the search index and the predictors, replaced as a whole.

A new version is loaded beside the one that answers, embeds a few stored crops, and takes over only where their vectors
are the stored ones; requests that are under way end with the version they began with. A version that fails is told and
not served: the one before goes on.

Shapes: B crops, D width of the vector.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.models.precision import EncoderPrecision
from cytolake.performance_prediction.prompt_predictor import PromptPredictor, load_prompt_predictor
from cytolake.performance_prediction.query_predictor import Before
from cytolake.performance_prediction.registered import PROMPT_MODEL, RegisteredPredictor, find_query_predictor
from cytolake.serving.champion import Champion, load_champion
from cytolake.serving.problems import ServingError
from cytolake.serving.search import TABLES, CropIndex, read_index
from cytolake.statistics.unit_vectors import unit_vectors
from cytolake.tracking import TrackingConfig, find_folder, resolve_alias

logger = logging.getLogger(__name__)

SMOKE_CROPS = 8
"""Stored crops that a new version embeds before it takes over."""
SMOKE_COSINE = 0.999
"""With their stored vectors. The same model on another processor, or in bf16, is above; another model is far below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Everything that answers come from, of one moment. Replaced as a whole, so no answer mixes two versions."""

    catalog: Catalog
    champion: Champion
    index: CropIndex
    performance: RegisteredPredictor | None
    """Tells how well a search will do; None where none was fitted on this representation."""
    planned: RegisteredPredictor | None
    """Tells how well a treatment of a planned screen will do; None where none was fitted."""
    prompts: RegisteredPrompts | None
    """Tells how well a prompt will do; None where none was fitted."""


@dataclass(frozen=True, slots=True)
class RegisteredPrompts:
    """A predictor of prompts and its version in the registry."""

    predictor: PromptPredictor
    version: int


class Follower:
    """One alias. Starts without a model, says why, and takes it up when it appears."""

    def __init__(
        self,
        root: str | Path,
        alias: str,
        tracking: TrackingConfig,
        device: str,
        refresh_s: float,
        precision: EncoderPrecision = "fp32",
    ) -> None:
        self._root, self.alias, self._tracking = root, alias, tracking
        self._device, self._precision = device, precision
        self._refresh_s = refresh_s
        self._loaded: Loaded | None = None
        self._reason = "the model is being loaded."
        self._refused: tuple[object, str] | None = None
        """The version and tables that were tried, and why the version must not answer."""
        self._looked_at = -float("inf")
        self._loading = threading.Lock()
        self._refresh: asyncio.Task[None] | None = None

    @property
    def is_in_use(self) -> bool:
        """Whether anybody has asked for it."""
        return self._looked_at > -float("inf")

    @property
    def loaded(self) -> Loaded | None:
        """What answers now, without a look for what is new."""
        return self._loaded

    def load(self) -> None:
        """Look at alias and tables and take up what is new. Keeps what it has when that fails; never raises."""
        with self._loading:
            try:
                self._loaded = self._read()
                self._reason = ""
            except Exception as error:  # whatever is wrong with registry or disk, the service stays up and says so
                self._reason = first_lines(error)
                level = logging.WARNING if self._loaded is None else logging.ERROR
                logger.log(level, "alias %s of %s: %s", self.alias, self._root, self._reason)
            finally:
                self._looked_at = time.monotonic()

    def why_not_ready(self) -> str:
        """ "" when requests can be answered, else the reason and what to do."""
        return "" if self._loaded is not None else self._reason

    def why_not_current(self) -> str:
        """ "" when what answers is the newest there is, else why the last look took up nothing."""
        return self._reason

    def keep_current(self) -> None:
        """Set off a look at alias and tables in the background when the last one is `refresh_s` ago."""
        is_due = time.monotonic() - self._looked_at >= self._refresh_s
        if is_due and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(asyncio.to_thread(self.load))

    def current(self) -> Loaded:
        """What answers come from now.

        Raises:
            ServingError: 503 with the reason, nothing is loaded.
        """
        loaded = self._loaded
        if loaded is None:
            retry_s = str(max(1, round(self._refresh_s)))
            raise ServingError(status=503, detail=self._reason, headers={"Retry-After": retry_s})
        return loaded

    def _read(self) -> Loaded:
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "False")
        catalog = cytolake.catalog.open(self._root)
        before = self._loaded
        card = resolve_alias(self._tracking, self.alias)
        champion = before.champion if before is not None and before.champion.card == card else None
        is_new = champion is None
        tried = (card.version, _versions(catalog))
        if champion is None:
            if self._refused is not None and self._refused[0] == tried:
                raise ValueError(self._refused[1])  # loading it again would find the same
            champion = load_champion(card, self._device, self._precision)
        index = before.index if before is not None else None
        if index is None or not _is_current(index, champion, catalog):
            index = read_index(catalog, champion.card.representation_id, champion.card.dim)
        if is_new:
            wrong = smoke_test(champion, index, catalog)
            if wrong:
                told = f"model {card.name} version {card.version} is not served: {wrong}"
                self._refused = (tried, told)
                raise ValueError(told)
        self._refused = None
        return Loaded(
            catalog=catalog,
            champion=champion,
            index=index,
            performance=self._predictor("search", champion, before.performance if before else None),
            planned=self._predictor("screen", champion, before.planned if before else None),
            prompts=self._prompts(before.prompts if before else None),
        )

    def _predictor(
        self, when: Before, champion: Champion, known: RegisteredPredictor | None
    ) -> RegisteredPredictor | None:
        """A damaged predictor is told in the log and left out: searches must not wait for it."""
        try:
            return find_query_predictor(self._tracking, when, champion.card.representation_id, known)
        except Exception as error:
            logger.error("no predicted performance before the %s: %s", when, first_lines(error))
            return None

    def _prompts(self, known: RegisteredPrompts | None) -> RegisteredPrompts | None:
        try:
            found = find_folder(self._tracking, PROMPT_MODEL)
            if found is None or (known is not None and known.version == found[1]):
                return None if found is None else known
            return RegisteredPrompts(load_prompt_predictor(found[0]), found[1])
        except Exception as error:
            logger.error("no predicted performance of prompts: %s", first_lines(error))
            return None


def smoke_test(champion: Champion, index: CropIndex, catalog: Catalog) -> str:
    """Why this model must not answer, or "": it embeds stored crops, whose vectors must be the stored ones.

    Crops whose pixels cannot be read just now say nothing of the model: noise is embedded instead, which must give
    numbers that are finite.
    """
    n = index.crops.num_rows
    rows = np.unique(np.linspace(0, max(n - 1, 0), min(n, SMOKE_CROPS)).astype(int))
    rows = rows[np.asarray(index.unit_vectors)[rows].any(axis=1)]  # a vector of zeros has no direction to compare
    crop_ids = [index.crops["crop_id"][int(row)].as_py() for row in rows]
    try:
        images = catalog.crop_pixels(crop_ids) if crop_ids else []
    except (OSError, ValueError) as error:
        logger.warning("stored crops cannot be read to try the model: %s", first_lines(error))
        images = []
    if not len(images):
        size, n_channels = champion.card.crop_size, len(champion.card.channels) or 1
        noise = np.random.default_rng(0).gamma(2.0, 400.0, (1, n_channels, size, size)).astype(np.float32)
        is_finite = np.isfinite(champion.embed(list(noise), [champion.channel_indices(champion.card.channels)])).all()
        return "" if is_finite else "the vector of a crop of noise is not finite. Promote another version."
    indices = [champion.channel_indices(names) for names in catalog.channels_of(crop_ids)]
    vectors_BD = champion.embed(images, indices)
    if not np.isfinite(vectors_BD).all():
        return "vectors of stored crops are not finite. Promote another version."
    unit_BD = unit_vectors(vectors_BD, least_length=1e-12)
    cosine = np.einsum("bd,bd->b", unit_BD, np.asarray(index.unit_vectors)[rows])
    worst = int(cosine.argmin())
    if cosine[worst] < SMOKE_COSINE:
        return (
            f"its vector of crop {crop_ids[worst]} has a cosine of {cosine[worst]:.4f} with the stored one, expected "
            f"{SMOKE_COSINE} or more. The embeddings are another model's, or the source images have changed; embed "
            "again (jobs/embed.py)."
        )
    return ""


def first_lines(error: BaseException) -> str:
    """What an error says, on one line and not too long."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())[:600] or type(error).__name__


def _is_current(index: CropIndex, champion: Champion, catalog: Catalog) -> bool:
    is_same_model = index.representation_id == champion.card.representation_id
    return is_same_model and index.versions == _versions(catalog)


def _versions(catalog: Catalog) -> dict[str, int]:
    """Of the tables that an index is read from, now."""
    now = catalog.versions()
    return {table: now[table] for table in TABLES if table in now}
