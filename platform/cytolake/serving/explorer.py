"""HTTP endpoints of the explorer page: maps, columns, selections and crops as pictures.

Binary answers are little-endian. Crops are identified by row, see `snapshot`. Every answer with rows has the header
`X-Rows-Key`, and a request with rows repeats it as `?key=`; a key of other rows is refused with 409.

Shapes: N crops of the catalog, M crops of one representation.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cytolake.screens.plate_format import PLATE_FORMATS
from cytolake.serving.crop_pictures import ChannelView, crop_picture, montage_picture, parse_views
from cytolake.serving.declared_answers import BinaryResponse, PngResponse, also, problems
from cytolake.serving.explorer_answers import Explorer, crop_card, describe, keyed, qc_summary, rows_of_body
from cytolake.serving.follower import Loaded
from cytolake.serving.messages import WHERE_NAMES, CropId
from cytolake.serving.page import page_file
from cytolake.serving.projections import Computing, Method
from cytolake.serving.sent_crops import JSON_MEDIA_TYPE
from cytolake.serving.service import Service
from cytolake.serving.snapshot import is_hidden, is_number

BINARY = "application/octet-stream"
MAX_MONTAGE = 200
MAX_NEIGHBOURS = 200

RepresentationId = Annotated[str, Query(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class SelectRequest(BaseModel):
    """A selection of crops."""

    model_config = ConfigDict(extra="forbid")
    where: str = Field(
        validation_alias=WHERE_NAMES,
        description="SQL condition over the columns of crops and wells, qc_pass and qc_reasons",
    )


class MontageChannel(BaseModel):
    """Contrast and colour of one channel; missing limits are percentiles over the montage."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=64)
    black: float | None = Field(default=None, description="raw intensity")
    white: float | None = Field(default=None, description="raw intensity")
    colour: str = Field(default="", max_length=7, description="#rrggbb")


class MontageRequest(BaseModel):
    """Crops to show on one picture."""

    model_config = ConfigDict(extra="forbid")
    crop_ids: list[CropId] = Field(min_length=1, max_length=MAX_MONTAGE)
    channels: list[MontageChannel] | None = Field(
        default=None, max_length=64, description="channels to show; absent: all of them"
    )


class NeighboursRequest(BaseModel):
    """A crop, and the representation to search in."""

    model_config = ConfigDict(extra="forbid")
    representation_id: str = Field(min_length=1, max_length=128)
    crop_id: CropId
    k: int = Field(default=24, ge=1, le=MAX_NEIGHBOURS)
    where: str = Field(default="", validation_alias=WHERE_NAMES, description="as in /v1/search")


def explorer_router(service: Service, page: Path) -> APIRouter:
    """The endpoints of the explorer.

    Args:
        page: Folder of the page's files.
    """
    router = APIRouter()
    explorer = Explorer(service)

    @router.get("/explore/", include_in_schema=False)
    async def index() -> Response:
        return await asyncio.to_thread(page_file, page, "index.html")

    @router.get("/explore/{file:path}", include_in_schema=False)
    async def file_of_page(file: str) -> Response:
        return await asyncio.to_thread(page_file, page, file)

    async def now() -> Loaded:
        return await service.current()

    @router.get("/v1/explore/representations", responses=problems(503))
    async def representations() -> Response:
        """Representations that have embeddings, and which of them is served."""
        loaded = await now()
        snapshot = await asyncio.to_thread(explorer.snapshot, loaded)
        served = loaded.model.card.representation_id
        listed = [each | {"is_champion": each["representation_id"] == served} for each in snapshot.representations]
        answer = {"n_crops": snapshot.crops.num_rows, "representations": listed}
        return JSONResponse(answer, headers=keyed(snapshot))

    @router.get(
        "/v1/explore/points",
        response_class=BinaryResponse,
        responses=problems(404, 422, 503)
        | also(JSON_MEDIA_TYPE, status=202, description="not yet: it is computed, repeat the request"),
    )
    async def points(representation_id: RepresentationId, method: Method = "pca") -> Response:
        """A map: M uint32 rows, then M float32 x, then M float32 y, each -1..1 in a square that keeps proportions.

        202 with `{"state": "computing", "share": 0.4}` while it is computed; repeat the request.
        """
        loaded = await now()
        snapshot, found = await asyncio.to_thread(explorer.points, loaded, representation_id, method)
        if isinstance(found, Computing):
            return JSONResponse(
                {"state": "computing", "share": found.share}, status_code=202, headers={"Retry-After": "1"}
            )
        return Response(found, media_type=BINARY, headers=keyed(snapshot))

    @router.get("/v1/explore/columns", responses=problems(503))
    async def columns() -> Response:
        """Columns that can colour the map, and rows and columns of the standard plate formats, smallest first."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        listed = [
            {"name": field.name, "kind": "number" if is_number(field.type) else "category"}
            for field in snapshot.crops.schema
            if not is_hidden(field)
        ]
        answer = {
            "n_crops": snapshot.crops.num_rows,
            "columns": listed,
            "plate_formats": [list(shape) for shape in PLATE_FORMATS.values()],
        }
        return JSONResponse(answer, headers=keyed(snapshot))

    @router.get("/v1/explore/columns/{name}", response_class=BinaryResponse, responses=problems(404, 503))
    async def column(name: str) -> Response:
        """One value for each of the N crops: a header as JSON, then numbers; see `Snapshot.column_bytes`."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        return Response(
            await asyncio.to_thread(snapshot.column_bytes, name), media_type=BINARY, headers=keyed(snapshot)
        )

    @router.post("/v1/explore/select", response_class=BinaryResponse, responses=problems(422, 503))
    async def select(question: SelectRequest) -> Response:
        """Rows of the crops that pass the condition, uint32, increasing."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        rows = await asyncio.to_thread(snapshot.rows_where, question.where)
        return Response(rows.astype("<u4").tobytes(), media_type=BINARY, headers=keyed(snapshot))

    @router.post(
        "/v1/explore/crops",
        responses=problems(409, 422, 503) | also("text/csv", "application/yaml"),
        openapi_extra=_ROWS_BODY,
    )
    async def crops(
        request: Request,
        key: Annotated[str, Query(max_length=64, description="X-Rows-Key of the answer that the rows are from")],
        form: Annotated[Literal["json", "csv", "curation"], Query(description="csv and curation: a file")] = "json",
        where: Annotated[
            str, Query(max_length=4000, description="for a curation: the SQL condition that selected the crops")
        ] = "",
        condition: Annotated[str, Query(max_length=4000, include_in_schema=False)] = "",
    ) -> Response:
        """Columns of some crops, or a file of them. The body: their rows, uint32."""
        body = await request.body()
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        rows = rows_of_body(snapshot, body, key)
        return await asyncio.to_thread(describe, snapshot, rows, form, where or condition)

    @router.post("/v1/explore/neighbours", responses=problems(404, 422, 503))
    async def neighbours(question: NeighboursRequest) -> Response:
        """The crops most similar to one, in any representation: exact cosine, as in /v1/search."""
        loaded = await now()
        snapshot, hits = await asyncio.to_thread(
            explorer.neighbours, loaded, question.representation_id, question.crop_id, question.k, question.where
        )
        return JSONResponse({"hits": hits}, headers=keyed(snapshot))

    @router.get("/v1/explore/qc", responses=problems(503))
    async def qc() -> Response:
        """QC rules with their counts, and the failed verdicts, those of sites first."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        return JSONResponse(await asyncio.to_thread(qc_summary, snapshot), headers=keyed(snapshot))

    @router.post("/v1/explore/montage", response_class=PngResponse, responses=problems(404, 422, 503))
    async def montage(question: MontageRequest) -> Response:
        """Crops on one PNG, 20 in a row, with one contrast for all.

        Headers: `X-Tile` edge of a tile in pixels; `X-Columns` tiles in a row; `X-Channels` JSON: name, black, white
        and colour of every channel that is shown, and `is_on` false with its limits for the others.
        """
        loaded = await now()
        views = None if question.channels is None else [ChannelView(**each.model_dump()) for each in question.channels]
        return await asyncio.to_thread(montage_picture, loaded.catalog, question.crop_ids, views)

    @router.get("/v1/crops/{crop_id}.png", response_class=PngResponse, responses=problems(404, 422, 503))
    async def crop_png(
        crop_id: CropId, channels: Annotated[str, Query(max_length=2000, description="DNA:0:2000:#00aaff,ER")] = ""
    ) -> Response:
        """One crop as PNG, the sum of its channels on black; missing limits are its 1st and 99.8th percentile."""
        loaded = await now()
        picture = await asyncio.to_thread(crop_picture, loaded.catalog, crop_id, parse_views(channels))
        return Response(picture, media_type="image/png")

    @router.get("/v1/crops/{crop_id}", responses=problems(404, 422, 503))
    async def crop(crop_id: CropId) -> Response:
        """Position, treatment, channels and QC verdicts of one crop."""
        loaded = await now()
        snapshot = await asyncio.to_thread(explorer.snapshot, loaded)
        return JSONResponse(await asyncio.to_thread(crop_card, snapshot, crop_id), headers=keyed(snapshot))

    return router


_ROWS_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}
