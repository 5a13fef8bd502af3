"""Follows one alias of the registry: loads its model, the search index and the predictors, and replaces them together.

A new version is loaded next to the one in use and embeds a few stored crops (the smoke test). It takes over only where
these vectors equal the stored ones; requests in progress finish with the version they started with. A version that
fails the test is reported and not served; the previous version stays in use.

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
from cytolake.serving.problems import ServingError, first_lines
from cytolake.serving.search import TABLES, CropIndex, read_index
from cytolake.serving.served_model import ServedModel, load_served_model
from cytolake.statistics.unit_vectors import unit_vectors
from cytolake.tracking import TrackingConfig, find_folder, resolve_alias

logger = logging.getLogger(__name__)

SMOKE_CROPS = 8
"""Stored crops that a new version embeds before it takes over."""
SMOKE_COSINE = 0.999
"""Least cosine with the stored vectors. The same model on another processor, or in bf16, is above it; another model is
far below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Model, index and predictors of one moment. Replaced together, so that no answer mixes two versions."""

    catalog: Catalog
    model: ServedModel
    index: CropIndex
    performance: RegisteredPredictor | None
    """Predicts the average precision of a search; None where none was fitted on this representation."""
    planned: RegisteredPredictor | None
    """Predicts the score of a treatment of a planned screen; None where none was fitted."""
    prompts: RegisteredPrompts | None
    """Predicts the score of a prompt; None where none was fitted."""


@dataclass(frozen=True, slots=True)
class RegisteredPrompts:
    """A predictor of prompt scores and its version in the registry."""

    predictor: PromptPredictor
    version: int


class Follower:
    """One alias. Starts without a model, reports the reason, and loads the model once it is there."""

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
        """The version and tables of the last failed smoke test, and the reason of the failure."""
        self._checked_at = -float("inf")
        self._loading = threading.Lock()
        self._refresh: asyncio.Task[None] | None = None

    @property
    def is_in_use(self) -> bool:
        """Whether a request has named the alias, or the service loaded it."""
        return self._checked_at > -float("inf")

    @property
    def loaded(self) -> Loaded | None:
        """What is loaded now; does not check for a new version."""
        return self._loaded

    def load(self) -> None:
        """Check alias and tables, and load what is new. Keeps what is loaded when that fails; never raises."""
        with self._loading:
            try:
                self._loaded = self._read()
                self._reason = ""
            except Exception as error:  # a fault of registry or disk is reported; the service stays up
                self._reason = first_lines(error)
                level = logging.WARNING if self._loaded is None else logging.ERROR
                logger.log(level, "alias %s of %s: %s", self.alias, self._root, self._reason)
            finally:
                self._checked_at = time.monotonic()

    def why_not_ready(self) -> str:
        """ "" where a model is loaded, else the reason and what to do."""
        return "" if self._loaded is not None else self._reason

    def why_not_current(self) -> str:
        """ "" where the newest version is loaded, else why the last check loaded nothing."""
        return self._reason

    def keep_current(self) -> None:
        """Start a check of alias and tables in the background where the last one is `refresh_s` or longer ago."""
        is_due = time.monotonic() - self._checked_at >= self._refresh_s
        if is_due and (self._refresh is None or self._refresh.done()):
            self._refresh = asyncio.create_task(asyncio.to_thread(self.load))

    def current(self) -> Loaded:
        """What is loaded now.

        Raises:
            ServingError: 503, nothing is loaded; with the reason.
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
        model = before.model if before is not None and before.model.card == card else None
        is_new = model is None
        candidate = (card.version, _versions(catalog))
        if model is None:
            if self._refused is not None and self._refused[0] == candidate:
                raise ValueError(self._refused[1])  # a second try would fail alike
            model = load_served_model(card, self._device, self._precision)
        index = before.index if before is not None else None
        if index is None or not _is_current(index, model, catalog):
            index = read_index(catalog, model.card.representation_id, model.card.dim)
        if is_new:
            failure = smoke_test(model, index, catalog)
            if failure:
                reason = f"model {card.name} version {card.version} is not served: {failure}"
                self._refused = (candidate, reason)
                raise ValueError(reason)
        self._refused = None
        return Loaded(
            catalog=catalog,
            model=model,
            index=index,
            performance=self._predictor("search", model, before.performance if before else None),
            planned=self._predictor("screen", model, before.planned if before else None),
            prompts=self._prompts(before.prompts if before else None),
        )

    def _predictor(
        self, when: Before, model: ServedModel, known: RegisteredPredictor | None
    ) -> RegisteredPredictor | None:
        """The predictor, or None for a damaged one, which is logged: searches must not depend on it."""
        try:
            return find_query_predictor(self._tracking, when, model.card.representation_id, known)
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


def smoke_test(model: ServedModel, index: CropIndex, catalog: Catalog) -> str:
    """Embed stored crops and compare with their stored vectors: the reason why the model must not be served, or "".

    Where no stored crop can be read, noise is embedded instead; its vector must be finite.
    """
    n = index.crops.num_rows
    rows = np.unique(np.linspace(0, max(n - 1, 0), min(n, SMOKE_CROPS)).astype(int))
    rows = rows[np.asarray(index.unit_vectors)[rows].any(axis=1)]  # a vector of zeros has no direction
    crop_ids = [index.crops["crop_id"][int(row)].as_py() for row in rows]
    try:
        images = catalog.crop_pixels(crop_ids) if crop_ids else []
    except (OSError, ValueError) as error:
        logger.warning("stored crops cannot be read for the smoke test: %s", first_lines(error))
        images = []
    if not len(images):
        size, n_channels = model.card.crop_size, len(model.card.channels) or 1
        noise = np.random.default_rng(0).gamma(2.0, 400.0, (1, n_channels, size, size)).astype(np.float32)
        is_finite = np.isfinite(model.embed(list(noise), [model.channel_indices(model.card.channels)])).all()
        return "" if is_finite else "the vector of a crop of noise is not finite. Promote another version."
    indices = [model.channel_indices(names) for names in catalog.channels_of(crop_ids)]
    vectors_BD = model.embed(images, indices)
    if not np.isfinite(vectors_BD).all():
        return "vectors of stored crops are not finite. Promote another version."
    unit_BD = unit_vectors(vectors_BD, least_length=1e-12)
    cosine = np.einsum("bd,bd->b", unit_BD, np.asarray(index.unit_vectors)[rows])
    worst = int(cosine.argmin())
    if cosine[worst] < SMOKE_COSINE:
        return (
            f"its vector of crop {crop_ids[worst]} has a cosine of {cosine[worst]:.4f} with the stored one, expected "
            f"{SMOKE_COSINE} or more. The embeddings are another model's, or the source images have changed; embed "
            "again (`cytolake embed`)."
        )
    return ""


def _is_current(index: CropIndex, model: ServedModel, catalog: Catalog) -> bool:
    is_same_model = index.representation_id == model.card.representation_id
    return is_same_model and index.versions == _versions(catalog)


def _versions(catalog: Catalog) -> dict[str, int]:
    """Delta versions of the tables that an index is read from."""
    now = catalog.versions()
    return {table: now[table] for table in TABLES if table in now}
