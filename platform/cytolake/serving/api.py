"""The HTTP endpoints: embed, search, the model's card, health. FastAPI, without Ray."""

from __future__ import annotations

import asyncio
import io
import json
import os
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

import cytolake
from cytolake.catalog import CatalogError
from cytolake.performance_prediction.catalog_queries import family_of
from cytolake.qc.image_verdict import ImageVerdict
from cytolake.qc.verdicts import QcConfig, qc_profile
from cytolake.serving.decoding import ARRAY_MEDIA_TYPE, PIXEL_MEDIA_TYPES, DecodedCrops
from cytolake.serving.explorer import explorer_router, page_folder
from cytolake.serving.follower import Loaded
from cytolake.serving.guard import AsgiApp, Guard
from cytolake.serving.metrics import METRICS_MEDIA_TYPE
from cytolake.serving.performance import MAX_VECTOR, Prediction, PredictRequest, predict_performance
from cytolake.serving.problems import PROBLEM_MEDIA_TYPE, ServingError, problem_document
from cytolake.serving.qc_verdict import StoredVerdict, judge_pixels, stored_verdicts
from cytolake.serving.sent_crops import JSON_MEDIA_TYPE, media_type_of, sent_crops
from cytolake.serving.service import Service, ServingConfig

MAX_HITS = 1000

Asked = TypeVar("Asked", bound=BaseModel)

CropId = Annotated[str, Field(min_length=1, max_length=128)]
AskedChannels = Annotated[str, Query(max_length=2000, description="stains of the pixels' channels, in order: DNA,ER")]
AskedAlias = Annotated[str, Query(max_length=64, description="registry alias that answers; empty: the service's own")]


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
    """A vector, a stored crop or a perturbation, and which crops may answer."""

    model_config = ConfigDict(extra="forbid")
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        default=None, min_length=1, max_length=MAX_VECTOR, description="from /v1/embed; its length does not matter"
    )
    crop_id: CropId | None = Field(
        default=None, description="search with this crop's stored vector; it is no hit itself"
    )
    perturbation: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="search with the mean direction of this perturbation's crops, which are no hits themselves",
    )
    k: int = Field(default=10, ge=1, le=MAX_HITS, description="hits wanted")
    filter: str = Field(
        default="",
        description="SQL condition over the columns of crops and wells, applied before the ranking: "
        "gene = 'TP53' AND plate NOT IN ('P1') AND qc_pass",
    )
    approximate: bool = Field(
        default=False, description="look at part of the crops where there are very many: quicker, may miss hits"
    )

    @model_validator(mode="after")
    def _one_question(self) -> SearchRequest:
        if sum(each is not None for each in (self.vector, self.crop_id, self.perturbation)) != 1:
            raise ValueError("give one of vector, crop_id and perturbation")
        return self


class Hit(BaseModel):
    """One similar crop and where it is."""

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
    qc_pass: bool | None = Field(description="whether its site passed the newest verdicts; null: not judged")
    qc_reasons: str | None = Field(description="what its site failed, such as `defocus (DNA, ER); empty (DNA)`")


class PredictedPerformance(BaseModel):
    """How well crops of the question's own perturbation will be found, told from its vector alone."""

    average_precision: float = Field(description="expected, 0..1, over all crops: a filter is not reckoned with")
    low: float = Field(description="lower end of the calibrated interval")
    high: float = Field(description="upper end of the calibrated interval")
    coverage: float = Field(description="share of questions whose average precision the interval covers")


class Hits(BaseModel):
    """Similar crops, best first."""

    representation_id: str
    embeddings_version: int | None = Field(description="Delta version of the embeddings table that was searched")
    n_crops: int = Field(description="crops in the index, before the filter")
    is_exact: bool = Field(description="false where part of the crops was looked at")
    hits: list[Hit]
    predicted_performance: PredictedPerformance | None = Field(
        description="null where jobs/predict_performance.py was not run for this representation"
    )


class QcRequest(BaseModel):
    """Crops or sites whose stored verdicts are wanted."""

    model_config = ConfigDict(extra="forbid")
    crop_ids: list[CropId] | None = Field(default=None, min_length=1, max_length=1024)
    site_ids: list[CropId] | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _one_kind(self) -> QcRequest:
        if (self.crop_ids is None) == (self.site_ids is None):
            raise ValueError("give either crop_ids or site_ids")
        return self


class QcVerdicts(BaseModel):
    """As many verdicts as were asked for, in their order; one of the lists is empty."""

    stored: list[StoredVerdict] = Field(default=[], description="of crops' sites, or of sites")
    sent: list[ImageVerdict] = Field(default=[], description="of images that were sent")


class Health(BaseModel):
    """Whether the service lives, or is ready."""

    status: str


def build_app(service: Service) -> AsgiApp:
    """The whole application: the guard in front of the API, and both counted."""
    return service.metrics.counted(Guard(build_api(service), service.config.guard))


def openapi_text() -> str:
    """The interface as serve/openapi.json holds it, frozen: JSON that changes only where the interface does."""
    return json.dumps(build_api(Service(ServingConfig())).openapi(), indent=1, sort_keys=True) + "\n"


def build_api(service: Service) -> FastAPI:
    """The endpoints without the guard; use `build_app` for anything that listens."""
    api = FastAPI(
        title="cytolake",
        version=cytolake.__version__,
        description="Embeds microscopy crops with the promoted encoder and finds similar ones.",
        # The usual documentation page loads scripts from elsewhere; /openapi.json is what programs read.
        docs_url=None,
        redoc_url=None,
        responses={
            status: {"description": text, "content": {PROBLEM_MEDIA_TYPE: {}}}
            for status, text in ((401, "no valid key"), (422, "request not understood"), (503, "not ready"))
        },
    )
    _add_problem_handlers(api)

    @api.get("/healthz", responses={})
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @api.get("/readyz")
    async def readyz() -> Health:
        """A model is loaded; 503 with the reason until then."""
        await service.current()
        return Health(status="ready")

    @api.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """What this replica counts about itself, in Prometheus's text format."""
        return Response(service.metrics.text(service.served()), media_type=METRICS_MEDIA_TYPE)

    @api.get("/v1/models/{alias}")
    async def model(alias: str, response: Response) -> dict[str, Any]:
        """The card of the served model: how its vectors come about, and how they scored."""
        loaded = await service.current(alias)
        response.headers.update(_version_headers(loaded))
        return _card(loaded, service.follower(alias).why_not_current())

    @api.post("/v1/embed", response_model=Embeddings, openapi_extra=_EMBED_BODY)
    async def embed(
        request: Request,
        channels: AskedChannels = "",
        alias: AskedAlias = "",
    ) -> Response:
        """Vectors of stored crops (JSON) or of your own pixels (npy, npz, TIFF, Arrow stream).

        `Accept: application/octet-stream` answers with an npy array, (B, D) float32, instead of JSON.
        """
        loaded = await service.current(alias)
        body = await request.body()
        crop_ids: list[str] | None = None
        if media_type_of(request) == JSON_MEDIA_TYPE:
            crop_ids = _parsed(EmbedRequest, body).crop_ids
            vectors_BD = await service.embed_stored(loaded, crop_ids)
        else:
            crops = await asyncio.to_thread(sent_crops, request, body, channels, service.config.budget)
            vectors_BD = await service.embed_pixels(loaded, crops.images, crops.channels)
        headers = _version_headers(loaded)
        if ARRAY_MEDIA_TYPE in request.headers.get("accept", ""):
            stream = io.BytesIO()
            np.save(stream, vectors_BD, allow_pickle=False)
            return Response(stream.getvalue(), media_type=ARRAY_MEDIA_TYPE, headers=headers)
        card = loaded.champion.card
        answer = Embeddings(
            model=card.name,
            version=card.version,
            representation_id=card.representation_id,
            dim=card.dim,
            crop_ids=crop_ids,
            embeddings=vectors_BD.tolist(),
        )
        return JSONResponse(answer.model_dump(exclude_none=True), headers=headers)

    @api.post("/v1/search", response_model=Hits, openapi_extra=_SEARCH_BODY)
    async def search(
        request: Request,
        channels: AskedChannels = "",
        k: Annotated[int, Query(ge=1, le=MAX_HITS, description="hits wanted, for a crop that is sent as pixels")] = 10,
        filter: Annotated[str, Query(description="SQL condition, for a crop that is sent as pixels")] = "",
        approximate: Annotated[bool, Query(description="for a crop that is sent as pixels")] = False,
        alias: AskedAlias = "",
    ) -> Response:
        """The stored crops most similar to a vector, a stored crop, a perturbation (JSON), or to a crop that is sent as
        pixels (npy, npz, TIFF, Arrow stream of one crop): cosine, exact unless `approximate`.
        """
        loaded = await service.current(alias)
        body = await request.body()
        if media_type_of(request) == JSON_MEDIA_TYPE:
            question = _parsed(SearchRequest, body)
        else:
            crops = await asyncio.to_thread(sent_crops, request, body, channels, service.config.budget)
            if len(crops.images) != 1:
                raise ServingError(status=422, detail=f"{len(crops.images)} crops, expected one to search with.")
            (vector_D,) = await service.embed_pixels(loaded, crops.images, crops.channels)
            question = SearchRequest(vector=vector_D.tolist(), k=k, filter=filter, approximate=approximate)
        hits, predicted = await asyncio.to_thread(_search, loaded, question)
        answer = Hits(
            representation_id=loaded.index.representation_id,
            embeddings_version=loaded.index.versions.get("embeddings"),
            n_crops=loaded.index.crops.num_rows,
            is_exact=not question.approximate or loaded.index.cells is None,
            hits=[Hit(**hit) for hit in hits],
            predicted_performance=predicted,
        )
        return JSONResponse(answer.model_dump(), headers=_version_headers(loaded))

    @api.post("/v1/qc", response_model=QcVerdicts, openapi_extra=_QC_BODY)
    async def qc(
        request: Request,
        channels: AskedChannels = "",
        profile: Annotated[str, Query(max_length=64, description="rules of catalog/qc.yaml, for sent images")] = "",
        alias: AskedAlias = "",
    ) -> Response:
        """Verdicts with reasons: the stored ones of crops or sites (JSON), or on images that are sent as pixels (npy,
        npz, TIFF, Arrow stream), by the rules that need no plate.
        """
        loaded = await service.current(alias)
        body = await request.body()
        if media_type_of(request) == JSON_MEDIA_TYPE:
            verdicts = await asyncio.to_thread(_stored_verdicts, loaded, _parsed(QcRequest, body))
        else:
            crops = await asyncio.to_thread(sent_crops, request, body, channels, service.config.budget)
            verdicts = await asyncio.to_thread(_image_verdicts, crops, profile or QcConfig().profile)
        return JSONResponse(verdicts.model_dump(mode="json"), headers=_version_headers(loaded))

    @api.post("/v1/predict-performance")
    async def predict(question: PredictRequest, response: Response, alias: AskedAlias = "") -> Prediction:
        """How well queries, treatments of a planned screen, or prompts will do, told before they are used."""
        loaded = await service.current(alias)
        answer = await asyncio.to_thread(predict_performance, loaded, question)
        response.headers.update(_version_headers(loaded))
        return answer

    api.include_router(explorer_router(service, page_folder(os.environ)))
    return api


def _body_of(kind: type[BaseModel], sent: str) -> dict[str, Any]:
    """What a request of an endpoint may hold, for the interface's description."""
    binary = {"schema": {"type": "string", "format": "binary", "description": sent}}
    content = {JSON_MEDIA_TYPE: {"schema": kind.model_json_schema()}, **dict.fromkeys(PIXEL_MEDIA_TYPES, binary)}
    return {"requestBody": {"required": True, "content": content}}


_CROPS_SENT = (
    "npy or npz array, (B, C, H, W) or (C, H, W), an npz holds `crops` and, if wanted, `channels`; a TIFF of grey "
    "pages; or an Arrow stream with the columns `pixels`, `shape`, `dtype` and, if wanted, `channels`, one row a crop"
)
_EMBED_BODY = _body_of(EmbedRequest, _CROPS_SENT)
_SEARCH_BODY = _body_of(SearchRequest, f"one crop: {_CROPS_SENT}")
_QC_BODY = _body_of(QcRequest, f"whole images of sites rather than crops: {_CROPS_SENT}")


def _parsed(kind: type[Asked], body: bytes) -> Asked:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ServingError(status=422, detail=_what_is_wrong(error.errors())) from error


def _stored_verdicts(loaded: Loaded, question: QcRequest) -> QcVerdicts:
    of, ids = ("sites", question.site_ids) if question.site_ids is not None else ("crops", question.crop_ids or [])
    return QcVerdicts(stored=stored_verdicts(loaded.catalog, ids, of="sites" if of == "sites" else "crops"))


def _image_verdicts(crops: DecodedCrops, profile: str) -> QcVerdicts:
    try:
        rules = qc_profile(profile)
    except CatalogError as error:
        raise ServingError(status=404, detail=str(error)) from error
    sent = zip(crops.images, crops.channels, strict=True)
    return QcVerdicts(sent=[judge_pixels(image, names, rules) for image, names in sent])


def _search(loaded: Loaded, question: SearchRequest) -> tuple[list[dict[str, Any]], PredictedPerformance | None]:
    index = loaded.index
    vector: NDArray[np.floating[Any]]
    own = np.zeros(0, dtype=np.int64)
    if question.crop_id is not None:
        own = np.array([index.row_of(question.crop_id)])
        vector = index.unit_vectors[own[0]]
    elif question.perturbation is not None:
        own = index.rows_of_perturbation(question.perturbation)
        vector = index.mean_vector(own)
    else:
        vector = np.asarray(question.vector, dtype=np.float64)
    hits = index.search(vector, question.k, question.filter, leave_out=own, approximate=question.approximate)
    return hits, _predicted(loaded, vector, own)


def _predicted(
    loaded: Loaded, vector: NDArray[np.floating[Any]], own: NDArray[np.int64]
) -> PredictedPerformance | None:
    if loaded.performance is None:
        return None
    predictor = loaded.performance.predictor
    family = [family_of(loaded.index.crops, int(own[0]))] if len(own) else None
    found = predictor.predict(vector[None].astype(np.float64), family=family)
    return PredictedPerformance(
        average_precision=float(found.score[0]),
        low=float(found.low[0]),
        high=float(found.high[0]),
        coverage=predictor.stack.coverage,
    )


def _version_headers(loaded: Loaded) -> dict[str, str]:
    card = loaded.champion.card
    return {
        "X-Model-Alias": card.alias,
        "X-Model-Version": str(card.version),
        "X-Representation-Id": card.representation_id,
    }


def _card(loaded: Loaded, why_not_current: str) -> dict[str, Any]:
    served = loaded.champion.card
    return {
        "name": served.name,
        "alias": served.alias,
        "version": served.version,
        **asdict(served.card),
        "precision": loaded.champion.precision,
        "newest_is_not_served": why_not_current or None,
        "index": {"n_crops": loaded.index.crops.num_rows, "table_versions": dict(loaded.index.versions)},
    }


def _add_problem_handlers(api: FastAPI) -> None:
    def problem(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        document = problem_document(status, detail, instance=getattr(request.state, "request_id", ""))
        return Response(json.dumps(document), status_code=status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)

    async def on_serving_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return problem(request, error.status, error.detail, dict(error.headers))

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(request, 422, _what_is_wrong(error.errors()))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.url.path}: {error.detail}. GET /openapi.json lists what there is."
        return problem(request, error.status_code, detail, dict(error.headers or {}))

    async def on_any_error(request: Request, error: Exception) -> Response:
        return problem(request, 500, "an error of the service, not of the request; its log has the request id.")

    api.add_exception_handler(ServingError, on_serving_error)
    api.add_exception_handler(RequestValidationError, on_validation_error)
    api.add_exception_handler(HTTPException, on_http_exception)
    api.add_exception_handler(Exception, on_any_error)


def _what_is_wrong(errors: Any) -> str:
    told = []
    for error in list(errors)[:5]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        told.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    return "; ".join(told) + "."
