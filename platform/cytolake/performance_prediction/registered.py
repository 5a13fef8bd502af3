"""Predictors in the model registry: names, registration, and lookup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cytolake.performance_prediction.queries import Measure
from cytolake.performance_prediction.query_predictor import Before, QueryPredictor, load_query_predictor
from cytolake.tracking import Run, TrackingConfig, find_folder, register_folder

PROMPT_MODEL = "cytolake-prompt-performance"
QUERY_MODELS: Mapping[Measure, str] = {
    "average_precision": "cytolake-query-performance",
    "replicate_consistency": "cytolake-replicate-consistency",
}
REPRESENTATION_TAG = "representation_id"


@dataclass(frozen=True, slots=True)
class RegisteredPredictor:
    """A predictor of queries and its version in the registry."""

    predictor: QueryPredictor
    version: int


def query_model(before: Before, measure: Measure = "average_precision") -> str:
    """Name of the registered model."""
    return f"{QUERY_MODELS[measure]}-before-{before}"


def register_query_predictor(tracking: TrackingConfig, predictor: QueryPredictor, folder: Path, run: Run) -> int:
    """Register a saved predictor as the newest version of its kind; returns the version."""
    tags = {REPRESENTATION_TAG: predictor.representation_id, "before": predictor.before}
    return register_folder(tracking, query_model(predictor.before, predictor.measure), folder, run, tags)


def find_query_predictor(
    tracking: TrackingConfig, before: Before, representation_id: str, known: RegisteredPredictor | None = None
) -> RegisteredPredictor | None:
    """The newest predictor of average precision; None where there is none, or it was fitted on another representation.

    Args:
        representation_id: Representation of the queries.
        known: Predictor from an earlier call, which is returned where it is still the newest.

    Raises:
        ValueError: The files of the predictor are damaged.
    """
    found = find_folder(tracking, query_model(before))
    if found is None or found[2].get(REPRESENTATION_TAG) != representation_id:
        return None
    folder, version, _ = found
    if known is not None and known.version == version:
        return known
    return RegisteredPredictor(load_query_predictor(folder), version)
