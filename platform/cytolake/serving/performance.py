"""Predicted performance of queries, planned treatments or prompts, the answer to `POST /v1/predict-performance`."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cytolake.performance_prediction.catalog_queries import family_of
from cytolake.performance_prediction.stack import Predicted
from cytolake.serving.follower import Loaded
from cytolake.serving.problems import ServingError

MAX_ITEMS = 1000
MAX_VECTOR = 8192

Text = Annotated[str, Field(max_length=2000)]
Vector = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=MAX_VECTOR)]


class PlannedTreatment(BaseModel):
    """A treatment of a screen that is not imaged yet, as its plate map names it; at least one field is required."""

    model_config = ConfigDict(extra="forbid")
    compound: Text = ""
    gene: Text = ""
    pathway: Text = ""
    dose: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_not_empty(self) -> PlannedTreatment:
        if not (self.compound or self.gene or self.pathway or self.dose is not None):
            raise ValueError("name a compound, gene, pathway or dose")
        return self

    @property
    def description(self) -> str:
        """The text that the predictor reads, in the words of the plate maps it was fitted on."""
        parts = (("compound", self.compound), ("gene", self.gene), ("pathway", self.pathway))
        return " ".join(f"{kind} {value}" for kind, value in parts if value)


class PredictRequest(BaseModel):
    """Items of one kind whose performance is predicted."""

    model_config = ConfigDict(extra="forbid")
    crop_ids: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(
        default=None, min_length=1, max_length=MAX_ITEMS, description="stored crops, as search queries"
    )
    vectors: list[Vector] | None = Field(
        default=None, min_length=1, max_length=MAX_ITEMS, description="vectors of /v1/embed, as search queries"
    )
    planned: list[PlannedTreatment] | None = Field(
        default=None, min_length=1, max_length=MAX_ITEMS, description="treatments of a planned screen"
    )
    prompts: list[Annotated[str, Field(min_length=1, max_length=2000)]] | None = Field(
        default=None, min_length=1, max_length=MAX_ITEMS, description="prompts for an image generator"
    )
    generator: Text = Field(
        default="", description="image generator, where the predictor was fitted on prompts of several"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> PredictRequest:
        if sum(each is not None for each in (self.crop_ids, self.vectors, self.planned, self.prompts)) != 1:
            raise ValueError("give one of crop_ids, vectors, planned and prompts")
        if self.generator and self.prompts is None:
            raise ValueError("generator belongs to prompts")
        return self


class PredictedValue(BaseModel):
    """A predicted value with its calibrated interval."""

    value: float
    low: float
    high: float


class Prediction(BaseModel):
    """One value for each item of the request, in their order."""

    measure: str = Field(description="predicted measure: average_precision, or the score in the table of prompts")
    coverage: float = Field(description="share of true values that are in the intervals")
    predictor_version: int = Field(description="version of the registered predictor")
    predicted: list[PredictedValue]


def predict_performance(loaded: Loaded, question: PredictRequest) -> Prediction:
    """Predict with the predictor for the kind of items.

    Raises:
        ServingError: 404, an unknown crop; 409, no predictor of this kind was fitted; 422, vectors of another width,
            or an unknown generator.
    """
    if question.prompts is not None:
        return _of_prompts(loaded, question.prompts, question.generator)
    when = "screen" if question.planned is not None else "search"
    registered = loaded.planned if when == "screen" else loaded.performance
    if registered is None:
        raise _not_fitted(f"a predictor of queries before the {when}", "")
    predictor = registered.predictor
    try:
        if question.planned is not None:
            doses = [[np.nan if each.dose is None else each.dose] for each in question.planned]
            texts = [each.description for each in question.planned]
            found = predictor.predict(description=texts, numbers=np.array(doses, dtype=float))
        elif question.crop_ids is not None:
            rows = loaded.index.rows_of(question.crop_ids)
            vectors = np.asarray(loaded.index.unit_vectors[rows], dtype=float)
            found = predictor.predict(vectors, family=[family_of(loaded.index.crops, row) for row in rows])
        else:
            found = predictor.predict(_matrix(question.vectors or []))
    except ValueError as error:
        raise ServingError(status=422, detail=str(error)) from error
    return _answer(found, predictor.measure, predictor.stack.coverage, registered.version)


def _of_prompts(loaded: Loaded, prompts: list[str], generator: str) -> Prediction:
    if loaded.prompts is None:
        raise _not_fitted("a predictor of prompts", " --set performance.prompts.path=TABLE")
    predictor = loaded.prompts.predictor
    if not generator and len(predictor.generators) == 1:
        (generator,) = predictor.generators
    try:
        found = predictor.predict(prompts, [generator] * len(prompts))
    except ValueError as error:
        raise ServingError(status=422, detail=str(error)) from error
    return _answer(found, "score", predictor.stack.coverage, loaded.prompts.version)


def _matrix(vectors: list[list[float]]) -> NDArray[np.float64]:
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"vectors of {min(map(len, vectors))} to {max(map(len, vectors))} values, expected one width.")
    return np.array(vectors, dtype=float)


def _not_fitted(what: str, options: str) -> ServingError:
    return ServingError(
        status=409,
        detail=f"{what} was not fitted for the representation that is served. Run "
        f"`cytolake predict-performance{options}`.",
    )


def _answer(found: Predicted, measure: str, coverage: float, version: int) -> Prediction:
    values = zip(found.score.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    return Prediction(
        measure=measure,
        coverage=coverage,
        predictor_version=version,
        predicted=[PredictedValue(value=value, low=low, high=high) for value, low, high in values],
    )
