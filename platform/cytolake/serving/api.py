"""The HTTP endpoints: embed, search, QC, predicted performance, model card, health. FastAPI, without Ray."""

from __future__ import annotations

import asyncio
import functools
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
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

import cytolake
from cytolake.catalog import CatalogError
from cytolake.performance_prediction.catalog_queries import family_of
from cytolake.qc.verdicts import QcConfig, qc_profile
from cytolake.serving.declared_answers import TextResponse, also, problems, without_assumed_faults
from cytolake.serving.decoding import ARRAY_MEDIA_TYPE, PIXEL_MEDIA_TYPES, DecodedCrops
from cytolake.serving.explorer import explorer_router
from cytolake.serving.follower import Loaded
from cytolake.serving.guard import AsgiApp, Guard
from cytolake.serving.messages import (
    MAX_HITS,
    Embeddings,
    EmbedRequest,
    Health,
    Hit,
    Hits,
    PredictedPerformance,
    QcRequest,
    QcVerdicts,
    SearchRequest,
)
from cytolake.serving.metrics import METRICS_MEDIA_TYPE
from cytolake.serving.page import page_folder
from cytolake.serving.performance import Prediction, PredictRequest, predict_performance
from cytolake.serving.problems import PROBLEM_MEDIA_TYPE, ServingError, problem_document
from cytolake.serving.qc_verdict import judge_pixels, stored_verdicts
from cytolake.serving.sent_crops import JSON_MEDIA_TYPE, media_type_of, sent_crops
from cytolake.serving.service import Service, ServingConfig

JsonBody = TypeVar("JsonBody", bound=BaseModel)

ChannelsParameter = Annotated[
    str, Query(max_length=2000, description="stains of the pixels' channels, in order: DNA,ER")
]
AliasParameter = Annotated[
    str, Query(max_length=64, description="registry alias of the model that answers; empty: the service's default")
]


def build_app(service: Service) -> AsgiApp:
    """The whole application: metrics around the guard, and the guard in front of the API."""
    return service.metrics.counted(Guard(build_api(service), service.config.guard))


def openapi_text() -> str:
    """The OpenAPI document as in serve/openapi.json; it changes only with the interface."""
    return json.dumps(build_api(Service(ServingConfig())).openapi(), indent=1, sort_keys=True) + "\n"


def build_api(service: Service) -> FastAPI:
    """The endpoints without the guard; use `build_app` for a server."""
    api = FastAPI(
        title="cytolake",
        version=cytolake.__version__,
        description="Embeds microscopy crops with the promoted encoder and finds similar ones.",
        # FastAPI's documentation pages load scripts from other servers.
        docs_url=None,
        redoc_url=None,
    )
    _add_problem_handlers(api)

    @api.get("/healthz")
    async def healthz() -> Health:
        """The process runs."""
        return Health(status="ok")

    @api.get("/readyz", responses=problems(503, is_guarded=False))
    async def readyz() -> Health:
        """A model is loaded; 503 with the reason until then."""
        await service.current()
        return Health(status="ready")

    @api.get("/metrics", response_class=TextResponse, responses=problems())
    async def metrics() -> Response:
        """Metrics of this replica in Prometheus' text format."""
        return Response(service.metrics.text(service.served()), media_type=METRICS_MEDIA_TYPE)

    @api.get("/v1/models/{alias}", responses=problems(404, 503))
    async def model(alias: str, response: Response) -> dict[str, Any]:
        """The card of the served model: how its vectors are computed, and their benchmark scores."""
        loaded = await service.current(alias)
        response.headers.update(_version_headers(loaded))
        return _card(loaded, service.follower(alias).why_not_current())

    @api.post(
        "/v1/embed",
        response_model=Embeddings,
        responses=problems(404, 422, 503) | also(ARRAY_MEDIA_TYPE),
        openapi_extra=_EMBED_BODY,
    )
    async def embed(
        request: Request,
        channels: ChannelsParameter = "",
        alias: AliasParameter = "",
    ) -> Response:
        """Vectors of stored crops (JSON) or of pixels in the body (npy, npz, TIFF, Arrow stream).

        With `Accept: application/octet-stream` the answer is an npy array, (B, D) float32, instead of JSON.
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
        card = loaded.model.card
        answer = Embeddings(
            model=card.name,
            version=card.version,
            representation_id=card.representation_id,
            dim=card.dim,
            crop_ids=crop_ids,
            embeddings=vectors_BD.tolist(),
        )
        return JSONResponse(answer.model_dump(exclude_none=True), headers=headers)

    @api.post("/v1/search", response_model=Hits, responses=problems(404, 422, 503), openapi_extra=_SEARCH_BODY)
    async def search(
        request: Request,
        channels: ChannelsParameter = "",
        k: Annotated[int, Query(ge=1, le=MAX_HITS, description="number of hits, for a crop in the body")] = 10,
        where: Annotated[str, Query(description="SQL condition, for a crop in the body")] = "",
        filter: Annotated[str, Query(include_in_schema=False)] = "",  # former name of `where`
        approximate: Annotated[bool, Query(description="for a crop in the body")] = False,
        alias: AliasParameter = "",
    ) -> Response:
        """The stored crops most similar to a vector, a stored crop or a perturbation (JSON), or to one crop in the body
        (npy, npz, TIFF, Arrow stream): cosine similarity, exact unless `approximate`.
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
            question = SearchRequest(vector=vector_D.tolist(), k=k, where=where or filter, approximate=approximate)
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

    @api.post("/v1/qc", response_model=QcVerdicts, responses=problems(404, 422, 503), openapi_extra=_QC_BODY)
    async def qc(
        request: Request,
        channels: ChannelsParameter = "",
        profile: Annotated[
            str, Query(max_length=64, description="profile of catalog/qc.yaml, for images in the body")
        ] = "",
        alias: AliasParameter = "",
    ) -> Response:
        """QC verdicts with reasons: stored verdicts of crops or sites (JSON), or verdicts on images in the body (npy,
        npz, TIFF, Arrow stream) by the rules that need no plate.
        """
        loaded = await service.current(alias)
        body = await request.body()
        if media_type_of(request) == JSON_MEDIA_TYPE:
            verdicts = await asyncio.to_thread(_stored_verdicts, loaded, _parsed(QcRequest, body))
        else:
            crops = await asyncio.to_thread(sent_crops, request, body, channels, service.config.budget)
            verdicts = await asyncio.to_thread(_image_verdicts, crops, profile or QcConfig().profile)
        return JSONResponse(verdicts.model_dump(mode="json"), headers=_version_headers(loaded))

    @api.post("/v1/predict-performance", responses=problems(404, 409, 422, 503))
    async def predict(question: PredictRequest, response: Response, alias: AliasParameter = "") -> Prediction:
        """Predicted performance of queries, of treatments of a planned screen, or of prompts."""
        loaded = await service.current(alias)
        answer = await asyncio.to_thread(predict_performance, loaded, question)
        response.headers.update(_version_headers(loaded))
        return answer

    api.include_router(explorer_router(service, page_folder(os.environ)))
    assumed = api.openapi
    api.openapi = functools.cache(lambda: without_assumed_faults(assumed()))  # type: ignore[method-assign]
    return api


def _body_of(kind: type[BaseModel], sent: str) -> dict[str, Any]:
    """Bodies that an endpoint takes, for its OpenAPI description."""
    binary = {"schema": {"type": "string", "format": "binary", "description": sent}}
    content = {JSON_MEDIA_TYPE: {"schema": kind.model_json_schema()}, **dict.fromkeys(PIXEL_MEDIA_TYPES, binary)}
    return {"requestBody": {"required": True, "content": content}}


_CROPS_SENT = (
    "npy or npz, (B, C, H, W) or (C, H, W); an npz holds `crops` and optionally `channels`; a TIFF of grey "
    "pages; or an Arrow stream of one row a crop, with columns `pixels`, `shape`, `dtype` and optionally `channels`"
)
_EMBED_BODY = _body_of(EmbedRequest, _CROPS_SENT)
_SEARCH_BODY = _body_of(SearchRequest, f"one crop: {_CROPS_SENT}")
_QC_BODY = _body_of(QcRequest, f"images of whole sites, not crops: {_CROPS_SENT}")


def _parsed(kind: type[JsonBody], body: bytes) -> JsonBody:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ServingError(status=422, detail=_faults_of(error.errors(), body)) from error


def _stored_verdicts(loaded: Loaded, question: QcRequest) -> QcVerdicts:
    of, ids = ("sites", question.site_ids) if question.site_ids is not None else ("crops", question.crop_ids or [])
    return QcVerdicts(stored=stored_verdicts(loaded.catalog, ids, of="sites" if of == "sites" else "crops"))


def _image_verdicts(crops: DecodedCrops, profile: str) -> QcVerdicts:
    try:
        rules = qc_profile(profile)
    except CatalogError as error:
        raise ServingError(status=404, detail=str(error)) from error
    images = zip(crops.images, crops.channels, strict=True)
    return QcVerdicts(sent=[judge_pixels(image, names, rules) for image, names in images])


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
    hits = index.search(vector, question.k, question.where, leave_out=own, approximate=question.approximate)
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
    card = loaded.model.card
    return {
        "X-Model-Alias": card.alias,
        "X-Model-Version": str(card.version),
        "X-Representation-Id": card.representation_id,
    }


def _card(loaded: Loaded, why_not_current: str) -> dict[str, Any]:
    served = loaded.model.card
    return {
        "name": served.name,
        "alias": served.alias,
        "version": served.version,
        **asdict(served.card),
        "precision": loaded.model.precision,
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
        return problem(request, 422, _faults_of(error.errors(), error.body))

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.url.path}: {error.detail}. GET /openapi.json lists the endpoints."
        return problem(request, error.status_code, detail, dict(error.headers or {}))

    async def on_any_error(request: Request, error: Exception) -> Response:
        return problem(request, 500, "an error of the service, not of the request; its log holds the request id.")

    api.add_exception_handler(ServingError, on_serving_error)
    api.add_exception_handler(RequestValidationError, on_validation_error)
    api.add_exception_handler(HTTPException, on_http_exception)
    api.add_exception_handler(Exception, on_any_error)


def _faults_of(errors: Any, body: Any) -> str:
    """What is wrong with a body, in one sentence; the same for bodies that FastAPI read and those that we read."""
    if any(error["type"] == "json_invalid" for error in errors):
        return f"the body is not JSON: {_why_not_json(body)}."
    faults = []
    for error in list(errors)[:5]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        faults.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    return "; ".join(faults) + "."


def _why_not_json(body: Any) -> str:
    try:
        json.loads(body)
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    return "it could not be read"
