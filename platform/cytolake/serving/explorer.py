"""What the explorer page asks: maps, columns, selections, crops as pictures, and the page's own files.

Binary answers are little-endian. Crops are counted by row, see `snapshot`; every answer with rows carries the header
`X-Rows-Key`, and a request that sends rows repeats it as `?key=`: rows of another moment are refused with 409.

Shapes: N crops of the catalog, M crops of one representation, D width of the vector.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytolake.catalog import Catalog, CatalogError
from cytolake.qc.newest import QC_COLUMNS
from cytolake.screens.plate_format import PLATE_FORMATS
from cytolake.serving.follower import Loaded
from cytolake.serving.problems import ServingError
from cytolake.serving.projections import Computing, Method, Points, Projections
from cytolake.serving.rendering import ChannelView, contrast, parse_views, png, render, sheet
from cytolake.serving.selections import as_csv, as_curation
from cytolake.serving.service import Service
from cytolake.serving.snapshot import (
    Snapshot,
    is_hidden,
    is_number,
    read_snapshot,
    read_vectors,
    versions_of,
)

BINARY = "application/octet-stream"
MAX_MONTAGE = 200
MAX_DESCRIBED = 2000
"""Crops that one JSON answer describes."""

PAGE_FILE = re.compile(r"(?:vendor/)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.(html|css|js|svg|txt)")
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml", "txt": "text/plain; charset=utf-8",
}  # fmt: skip
PAGE_HEADERS = {
    # unsafe-eval: regl, below the scatter plot, makes its drawing functions with `Function`; the scripts that may do so
    # are our own files. blob: pictures that were fetched with the key, and the plot's worker for its spatial index.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-eval'; worker-src 'self' blob:; "
    "img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

DESCRIBED = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "dose",
    "control", *QC_COLUMNS,
)  # fmt: skip

CropId = Annotated[str, Field(min_length=1, max_length=128)]
RepresentationId = Annotated[str, Query(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class SelectRequest(BaseModel):
    """Which crops."""

    model_config = ConfigDict(extra="forbid")
    filter: str = Field(description="SQL condition over the columns of crops and wells, qc_pass and qc_reasons")


class MontageChannel(BaseModel):
    """How one channel is shown; limits left out are percentiles over the montage."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=64)
    black: float | None = Field(default=None, description="raw intensity")
    white: float | None = Field(default=None, description="raw intensity")
    colour: str = Field(default="", max_length=7, description="#rrggbb")


class MontageRequest(BaseModel):
    """Crops on one sheet."""

    model_config = ConfigDict(extra="forbid")
    crop_ids: list[CropId] = Field(min_length=1, max_length=MAX_MONTAGE)
    channels: list[MontageChannel] | None = Field(
        default=None, max_length=64, description="channels that are on; left out: all of them"
    )


class NeighboursRequest(BaseModel):
    """A crop, and in which representation to look around it."""

    model_config = ConfigDict(extra="forbid")
    representation_id: str = Field(min_length=1, max_length=128)
    crop_id: CropId
    k: int = Field(default=24, ge=1, le=200)
    filter: str = Field(default="", description="as in /v1/search")


def page_folder(environment: Mapping[str, str]) -> Path:
    """Where the page's files are: `CYTOLAKE_PAGE`, or serve/page of the checkout, or their copy in a wheel."""
    named = environment.get("CYTOLAKE_PAGE", "")
    if named:
        return Path(named).expanduser().resolve()
    in_wheel = Path(__file__).resolve().parent / "_page"
    return in_wheel if in_wheel.is_dir() else Path(__file__).resolve().parents[3] / "serve" / "page"


def explorer_router(service: Service, page: Path) -> APIRouter:
    """The endpoints of the explorer.

    Args:
        service: Whose catalog and champion.
        page: Folder of the page's files.
    """
    router = APIRouter()
    explorer = Explorer(service)

    @router.get("/explore/", include_in_schema=False)
    async def index() -> Response:
        return await asyncio.to_thread(_page_file, page, "index.html")

    @router.get("/explore/{file:path}", include_in_schema=False)
    async def page_file(file: str) -> Response:
        return await asyncio.to_thread(_page_file, page, file)

    async def now() -> Loaded:
        return await service.current()

    @router.get("/v1/explore/representations")
    async def representations() -> Response:
        """Representations that have embeddings, and which of them the champion's is."""
        loaded = await now()
        snapshot = await asyncio.to_thread(explorer.snapshot, loaded)
        champion = loaded.champion.card.representation_id
        listed = [each | {"is_champion": each["representation_id"] == champion} for each in snapshot.representations]
        answer = {"n_crops": snapshot.crops.num_rows, "representations": listed}
        return JSONResponse(answer, headers=_keyed(snapshot))

    @router.get("/v1/explore/points")
    async def points(representation_id: RepresentationId, method: Method = "pca") -> Response:
        """A map: M uint32 rows, then M float32 x, then M float32 y, each -1..1 in a square that keeps proportions.

        202 with `{"state": "computing", "share": 0.4}` until it is computed: ask again.
        """
        loaded = await now()
        snapshot, found = await asyncio.to_thread(explorer.points, loaded, representation_id, method)
        if isinstance(found, Computing):
            return JSONResponse(
                {"state": "computing", "share": found.share}, status_code=202, headers={"Retry-After": "1"}
            )
        return Response(found, media_type=BINARY, headers=_keyed(snapshot))

    @router.get("/v1/explore/columns")
    async def columns() -> Response:
        """Columns that crops can be coloured by, and rows and columns of the standard plates, from small to large."""
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
        return JSONResponse(answer, headers=_keyed(snapshot))

    @router.get("/v1/explore/columns/{name}")
    async def column(name: str) -> Response:
        """One value for each of the N crops: a header as JSON, then numbers; see `Snapshot.column_bytes`."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        return Response(
            await asyncio.to_thread(snapshot.column_bytes, name), media_type=BINARY, headers=_keyed(snapshot)
        )

    @router.post("/v1/explore/select")
    async def select(question: SelectRequest) -> Response:
        """Rows of the crops that pass, uint32, rising."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        rows = await asyncio.to_thread(snapshot.rows_where, question.filter)
        return Response(rows.astype("<u4").tobytes(), media_type=BINARY, headers=_keyed(snapshot))

    @router.post("/v1/explore/crops", openapi_extra=_ROWS_BODY)
    async def crops(
        request: Request,
        key: Annotated[str, Query(max_length=64, description="X-Rows-Key of the answer that gave the rows")],
        form: Annotated[Literal["json", "csv", "curation"], Query(description="csv and curation: a file")] = "json",
        condition: Annotated[str, Query(max_length=4000, description="for a curation: what selected the crops")] = "",
    ) -> Response:
        """What is known of some crops, or a file of them. The body: their rows, uint32."""
        body = await request.body()
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        return await asyncio.to_thread(_describe, snapshot, _rows_of_body(snapshot, body, key), form, condition)

    @router.post("/v1/explore/neighbours")
    async def neighbours(question: NeighboursRequest) -> Response:
        """The crops most similar to one, in any representation: exact cosine, as in /v1/search."""
        loaded = await now()
        snapshot, hits = await asyncio.to_thread(explorer.neighbours, loaded, question)
        return JSONResponse({"hits": hits}, headers=_keyed(snapshot))

    @router.get("/v1/explore/qc")
    async def qc() -> Response:
        """Rules with how many they failed, and the failed verdicts, worst rules first."""
        snapshot = await asyncio.to_thread(explorer.snapshot, await now())
        return JSONResponse(await asyncio.to_thread(_qc, snapshot), headers=_keyed(snapshot))

    @router.post("/v1/explore/montage", openapi_extra=_MONTAGE_ANSWER)
    async def montage(question: MontageRequest) -> Response:
        """Crops on one PNG, 20 in a row, with one contrast for all.

        Headers: `X-Tile` edge of a tile in pixels; `X-Columns` tiles in a row; `X-Channels` JSON: name, black, white
        and colour of every channel that is shown, and `is_on` false with its limits for the others.
        """
        loaded = await now()
        views = None if question.channels is None else [ChannelView(**each.model_dump()) for each in question.channels]
        return await asyncio.to_thread(_montage, loaded.catalog, question.crop_ids, views)

    @router.get("/v1/crops/{crop_id}.png")
    async def crop_png(
        crop_id: CropId, channels: Annotated[str, Query(max_length=2000, description="DNA:0:2000:#00aaff,ER")] = ""
    ) -> Response:
        """One crop as PNG, channels added up on black; limits left out are its 1st and 99.8th percentile."""
        loaded = await now()
        picture = await asyncio.to_thread(_crop_png, loaded.catalog, crop_id, parse_views(channels))
        return Response(picture, media_type="image/png")

    @router.get("/v1/crops/{crop_id}")
    async def crop(crop_id: CropId) -> Response:
        """Where a crop is, what was done to its well, its channels, and the verdicts on its site and well."""
        loaded = await now()
        snapshot = await asyncio.to_thread(explorer.snapshot, loaded)
        return JSONResponse(await asyncio.to_thread(_crop_card, snapshot, crop_id), headers=_keyed(snapshot))

    return router


class Explorer:
    """The current snapshot, the maps, and the vectors that were asked about last."""

    def __init__(self, service: Service) -> None:
        self._refresh_s = service.config.refresh_s
        self._projections = Projections(Path(service.config.root) / "projections")
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._looked_at = -float("inf")
        self._rows: dict[tuple[str, int], NDArray[np.uint32]] = {}
        self._vectors: tuple[tuple[str, int], NDArray[np.uint32], NDArray[np.float32]] | None = None

    def snapshot(self, loaded: Loaded) -> Snapshot:
        """The tables as they are now, or were `refresh_s` ago; the last ones while others are being read."""
        held = self._snapshot
        if not self._lock.acquire(blocking=held is None):
            assert held is not None
            return held
        try:
            if self._snapshot is None or time.monotonic() - self._looked_at >= self._refresh_s:
                versions = versions_of(loaded.catalog)
                if self._snapshot is None or self._snapshot.versions != versions:
                    self._snapshot = read_snapshot(loaded.catalog, versions)
                    self._rows, self._vectors = {}, None
                self._looked_at = time.monotonic()
            return self._snapshot
        finally:
            self._lock.release()

    def points(self, loaded: Loaded, representation_id: str, method: Method) -> tuple[Snapshot, bytes | Computing]:
        """The bytes of a map, or how far it is."""
        snapshot = self.snapshot(loaded)
        rows = self._rows_of(snapshot, representation_id)
        try:
            found = self._projections.points(
                representation_id, method, snapshot.versions["embeddings"], len(rows),
                lambda: read_vectors(snapshot, representation_id)[1],
            )  # fmt: skip
        except RuntimeError as error:
            raise ServingError(
                status=503, detail=f"the {method} map of {representation_id} could not be computed: {error}."
            ) from error
        return snapshot, found if isinstance(found, Computing) else _points_bytes(rows, found)

    def neighbours(self, loaded: Loaded, question: NeighboursRequest) -> tuple[Snapshot, list[dict[str, Any]]]:
        """Hits as /v1/search gives them, with their rows."""
        snapshot = self.snapshot(loaded)
        if question.representation_id == loaded.index.representation_id:
            index = loaded.index
            own = index.row_of(question.crop_id)
            found = index.search(index.unit_vectors[own], question.k, question.filter, leave_out=np.array([own]))
            similarity = {hit["crop_id"]: hit["similarity"] for hit in found}
        else:
            similarity = self._similar(snapshot, question)
        rows = snapshot.rows_of(pa.array(list(similarity), pa.string()))
        rows = rows[rows >= 0]
        hits = _described(snapshot, rows)
        return snapshot, [hit | {"similarity": similarity[hit["crop_id"]]} for hit in hits]

    def _similar(self, snapshot: Snapshot, question: NeighboursRequest) -> dict[str, float]:
        rows, vectors_MD = self._vectors_of(snapshot, question.representation_id)
        at = _row_of(snapshot, question.crop_id)
        place = int(np.searchsorted(rows, at))
        if place == len(rows) or rows[place] != at:
            raise ServingError(
                status=404,
                detail=f"crop {question.crop_id!r} has no embedding in representation {question.representation_id}.",
            )
        similarity = vectors_MD @ vectors_MD[place]
        may_answer = np.isin(rows, snapshot.rows_where(question.filter), assume_unique=True)
        may_answer[place] = False
        places = np.flatnonzero(may_answer)
        best = places[np.argsort(-similarity[places], kind="stable")[: question.k]]
        crop_ids = snapshot.taken(rows[best])["crop_id"].to_pylist()
        return dict(zip(crop_ids, similarity[best].tolist(), strict=True))

    def _rows_of(self, snapshot: Snapshot, representation_id: str) -> NDArray[np.uint32]:
        """(M,) rows of a representation's crops, rising: the order of its map."""
        snapshot.representation(representation_id)
        key = representation_id, snapshot.versions["embeddings"]
        rows = self._rows.get(key)
        if rows is None:
            stored = snapshot.catalog.dataset("embeddings").to_table(
                columns=["crop_id"], filter=pc.field("representation_id") == representation_id
            )
            found = snapshot.rows_of(stored["crop_id"].combine_chunks())
            rows = self._rows[key] = np.sort(found[found >= 0]).astype(np.uint32)
        return rows

    def _vectors_of(self, snapshot: Snapshot, representation_id: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
        key = representation_id, snapshot.versions["embeddings"]
        held = self._vectors
        if held is None or held[0] != key:
            self._vectors = None  # frees the last ones first: they may be as large as memory allows once
            held = self._vectors = (key, *read_vectors(snapshot, representation_id))
        return held[1], held[2]


def _page_file(page: Path, name: str) -> Response:
    match = PAGE_FILE.fullmatch(name)
    path = (page / name).resolve() if match else page
    if not match or not path.is_relative_to(page.resolve()) or not path.is_file():
        hint = "" if page.is_dir() else f" There is no folder {page.name} with the page; set CYTOLAKE_PAGE to it."
        raise ServingError(status=404, detail=f"the page has no file {name[:80]!r}; it starts at /explore/.{hint}")
    return Response(path.read_bytes(), media_type=MEDIA_TYPES[match[1]], headers=PAGE_HEADERS)


def _keyed(snapshot: Snapshot) -> dict[str, str]:
    return {"X-Rows-Key": snapshot.key}


def _points_bytes(rows: NDArray[np.uint32], points_M2: Points) -> bytes:
    """Rows, x and y, one after the other; the larger side of the map fills -1..1."""
    low, high = points_M2.min(axis=0), points_M2.max(axis=0)
    half = max(float((high - low).max()) / 2, 1e-12)
    xy_M2 = np.clip((points_M2 - (low + high) / 2) / half, -1, 1).astype("<f4")
    return bytes(rows.astype("<u4").tobytes() + xy_M2.T.tobytes())


def _rows_of_body(snapshot: Snapshot, body: bytes, key: str) -> NDArray[np.int64]:
    if key != snapshot.key:
        raise ServingError(
            status=409, detail="crops were added to the catalog since these rows were given. Load the page again."
        )
    if len(body) % 4:
        raise ServingError(status=422, detail=f"the body has {len(body)} bytes, expected rows of 4 bytes each.")
    return np.frombuffer(body, "<u4").astype(np.int64)


def _describe(snapshot: Snapshot, rows: NDArray[np.int64], form: str, condition: str) -> Response:
    def file(content: bytes, media_type: str, name: str) -> Response:
        headers = _keyed(snapshot) | {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=media_type, headers=headers)

    if form == "csv":
        return file(as_csv(snapshot, rows), "text/csv; charset=utf-8", "crops.csv")
    if form == "curation":
        return file(as_curation(snapshot, rows, condition), "application/yaml", "selection.yaml")
    if len(rows) > MAX_DESCRIBED:
        raise ServingError(
            status=422, detail=f"{len(rows):,} crops, at most {MAX_DESCRIBED:,} come as JSON. Request form=csv."
        )
    return JSONResponse({"crops": _described(snapshot, rows)}, headers=_keyed(snapshot))


def _described(snapshot: Snapshot, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    found = snapshot.taken(rows).select(list(DESCRIBED)).to_pylist()
    return [{"crop_row": int(row)} | _plain(crop) for row, crop in zip(rows, found, strict=True)]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}


def _row_of(snapshot: Snapshot, crop_id: str) -> int:
    row = int(snapshot.rows_of(pa.array([crop_id], pa.string()))[0])
    if row < 0:
        raise ServingError(
            status=404, detail=f"crop {crop_id!r} is not in the catalog. Take a crop id from its table crops."
        )
    return row


def _crop_card(snapshot: Snapshot, crop_id: str) -> dict[str, Any]:
    row = _row_of(snapshot, crop_id)
    crop = snapshot.taken(np.array([row])).to_pylist()[0]
    site = snapshot.catalog.dataset("sites").to_table(
        columns=["channels", "height", "width", "timepoint", "z"], filter=pc.field("site_id") == crop["site_id"]
    )
    verdicts = snapshot.catalog.dataset("qc_verdicts").to_table(
        columns=["level", "channel", "rule", "metric", "value", "threshold", "is_pass", "site_id", "well_id"],
        filter=(pc.field("qc_id") == snapshot.qc_ids.get(crop["plate_id"], ""))
        & (
            (pc.field("site_id") == crop["site_id"])
            | ((pc.field("well_id") == crop["well_id"]) & (pc.field("level") == "well"))
        ),
    )
    judged = verdicts.drop_columns(["site_id", "well_id"]).sort_by(
        [("is_pass", "ascending"), ("level", "ascending"), ("rule", "ascending"), ("channel", "ascending")]
    )
    about_site = site.to_pylist()[0] if site.num_rows else {"channels": []}
    return _plain(crop) | {
        "crop_row": row,
        "channels": about_site.pop("channels"),
        "site_image": about_site,
        "verdicts": [_plain(verdict) for verdict in judged.to_pylist()],
    }


def _qc(snapshot: Snapshot) -> dict[str, Any]:
    places = snapshot.crops.select(["site_id", "well_id", "plate_id", "plate", "well", "site"])
    of_level = {}
    for level in ("site", "well", "plate"):
        first = places.group_by(f"{level}_id", use_threads=False).aggregate(
            [(name, "first") for name in ("plate", "well", "site")]
        )
        of_level[level] = dict(zip(first[f"{level}_id"].to_pylist(), first.to_pylist(), strict=True))
    named = {"plate": ("plate",), "well": ("plate", "well"), "site": ("plate", "well", "site")}
    listed = []
    for verdict in snapshot.failed.to_pylist():
        level = verdict["level"]
        place = of_level[level].get(verdict[f"{level}_id"], {})
        listed.append(
            {name: place.get(f"{name}_first") or "" if name in named[level] else "" for name in named["site"]}
            | _plain({name: verdict[name] for name in ("rule", "channel", "metric", "value", "threshold")})
            | {"level": level}
        )
    listed.sort(key=lambda each: (each["level"] != "site", each["level"], each["rule"], each["plate"], each["well"]))
    return {
        "qc_ids": sorted(set(snapshot.qc_ids.values())),
        "rules": list(snapshot.rules),
        "n_failed": sum(rule["n_failed"] for rule in snapshot.rules),
        "failed": listed,
    }


def _pixels(catalog: Catalog, crop_ids: list[str]) -> tuple[list[NDArray[Any]], list[tuple[str, ...]]]:
    try:
        channels = catalog.channels_of(crop_ids)
    except CatalogError as error:
        raise ServingError(status=404, detail=" ".join(str(error).split())[:600]) from error
    try:
        return list(catalog.crop_pixels(crop_ids)), list(channels)
    except (OSError, ValueError) as error:
        raise ServingError(
            status=503, detail=f"the source images of these crops cannot be read: {' '.join(str(error).split())[:500]}"
        ) from error


def _crop_png(catalog: Catalog, crop_id: str, views: tuple[ChannelView, ...]) -> bytes:
    crops, channels = _pixels(catalog, [crop_id])
    return png(render(crops[0], channels[0], contrast(crops, channels, views)))


def _montage(catalog: Catalog, crop_ids: list[str], views: list[ChannelView] | None) -> Response:
    crops, channels = _pixels(catalog, crop_ids)
    open_views = contrast(crops, channels, ())
    there = {name for names in channels for name in names}
    # A channel that these crops have not is left out rather than refused: the page keeps its settings from one
    # selection to the next.
    wanted = None if views is None else [view for view in views if view.name in there]
    shown = open_views if wanted is None else contrast(crops, channels, wanted) if wanted else {}
    joined, tile, n_columns = sheet([render(*each, shown) for each in zip(crops, channels, strict=True)])
    told = [
        {"name": name, "is_on": name in shown}
        | {part: getattr(shown.get(name, view), part) for part in ("black", "white", "colour")}
        for name, view in open_views.items()
    ]
    headers = {"X-Tile": str(tile), "X-Columns": str(n_columns), "X-Channels": json.dumps(told)}
    return Response(png(joined), media_type="image/png", headers=headers)


_ROWS_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}
_MONTAGE_ANSWER: dict[str, Any] = {"responses": {"200": {"description": "the sheet", "content": {"image/png": {}}}}}
