"""Bodies of requests and answers of the HTTP endpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from cytolake.qc.image_verdict import ImageVerdict
from cytolake.serving.performance import MAX_VECTOR
from cytolake.serving.qc_verdict import StoredVerdict

MAX_HITS = 1000

CropId = Annotated[str, Field(min_length=1, max_length=128)]

WHERE_NAMES = AliasChoices("where", "filter")
"""Names of the field with a SQL condition; `filter` is its former name."""


class EmbedRequest(BaseModel):
    """Stored crops to embed."""

    model_config = ConfigDict(extra="forbid")
    crop_ids: list[CropId] = Field(min_length=1, max_length=1024, description="crops.crop_id, in the answer's order")


class Embeddings(BaseModel):
    """One vector for each crop."""

    model: str
    version: int = Field(description="version of the registered model")
    representation_id: str = Field(description="representations.representation_id: never mix two in one table")
    dim: int
    crop_ids: list[str] | None = Field(
        default=None, description="as requested; absent for crops that were sent as pixels"
    )
    embeddings: list[list[float]]


class SearchRequest(BaseModel):
    """A query by vector, stored crop or perturbation, and the crops to search in."""

    model_config = ConfigDict(extra="forbid")
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_VECTOR,
        description="vector of /v1/embed, of any length above 0",
    )
    crop_id: CropId | None = Field(
        default=None, description="search by the stored vector of this crop, which is excluded from the hits"
    )
    perturbation: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="search by the mean direction of this perturbation's crops, which are excluded from the hits",
    )
    k: int = Field(default=10, ge=1, le=MAX_HITS, description="number of hits")
    where: str = Field(
        default="",
        validation_alias=WHERE_NAMES,
        description="SQL condition over the columns of crops and wells, applied before the ranking: "
        "gene = 'TP53' AND plate NOT IN ('P1') AND qc_pass",
    )
    approximate: bool = Field(
        default=False, description="compare only part of the crops where there are very many: faster, may miss hits"
    )

    @model_validator(mode="after")
    def _one_query(self) -> SearchRequest:
        if sum(each is not None for each in (self.vector, self.crop_id, self.perturbation)) != 1:
            raise ValueError("give one of vector, crop_id and perturbation")
        return self


class Hit(BaseModel):
    """A similar crop, its position and its treatment."""

    crop_id: str
    similarity: float = Field(description="cosine, -1..1")
    screen: str
    plate: str
    well: str
    site: str
    y: int
    x: int
    size: int
    perturbation: str | None
    gene: str | None
    compound: str | None
    control: str | None
    qc_pass: bool | None = Field(description="whether its site passed the newest QC; null: not judged")
    qc_reasons: str | None = Field(description="QC rules its site failed, such as `defocus (DNA, ER); empty (DNA)`")


class PredictedPerformance(BaseModel):
    """Predicted retrieval of crops with the query's perturbation, from the query vector alone."""

    average_precision: float = Field(description="expected value, 0..1, for a search of all crops, without a condition")
    low: float = Field(description="lower end of the calibrated interval")
    high: float = Field(description="upper end of the calibrated interval")
    coverage: float = Field(description="share of queries whose average precision is in the interval")


class Hits(BaseModel):
    """Similar crops, most similar first."""

    representation_id: str
    embeddings_version: int | None = Field(description="Delta version of the embeddings table that was searched")
    n_crops: int = Field(description="crops in the index, without the condition")
    is_exact: bool = Field(description="false where only part of the crops was compared")
    hits: list[Hit]
    predicted_performance: PredictedPerformance | None = Field(
        description="null where no predictor was fitted for this representation (`cytolake predict-performance`)"
    )


class QcRequest(BaseModel):
    """Crops or sites whose stored verdicts are requested."""

    model_config = ConfigDict(extra="forbid")
    crop_ids: list[CropId] | None = Field(default=None, min_length=1, max_length=1024)
    site_ids: list[CropId] | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _one_kind(self) -> QcRequest:
        if (self.crop_ids is None) == (self.site_ids is None):
            raise ValueError("give either crop_ids or site_ids")
        return self


class QcVerdicts(BaseModel):
    """One verdict for each requested crop, site or image, in their order; one of the lists is empty."""

    stored: list[StoredVerdict] = Field(default=[], description="verdicts on sites, or on the sites of crops")
    sent: list[ImageVerdict] = Field(default=[], description="verdicts on images of the request")


class Health(BaseModel):
    """Whether the service runs, or is ready."""

    status: str
