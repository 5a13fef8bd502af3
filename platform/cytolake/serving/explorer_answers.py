"""Answers of the explorer's endpoints: maps, neighbours, descriptions of crops, and QC, from a snapshot of the catalog.

Shapes: M crops of one representation, D width of the vector.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from cytolake.catalog.representations import VectorReader
from cytolake.embed.maps import Points
from cytolake.qc.newest import QC_COLUMNS
from cytolake.serving.follower import Loaded
from cytolake.serving.problems import ServingError
from cytolake.serving.projections import Computing, Method, Projections
from cytolake.serving.search import CropIndex
from cytolake.serving.search.sites import sites_of
from cytolake.serving.selections import as_csv, as_curation
from cytolake.serving.service import Service
from cytolake.serving.snapshot import Snapshot, read_snapshot, read_vectors, versions_of

MAX_DESCRIBED = 2000
"""Most crops that one JSON answer describes."""

DESCRIBED = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "dose",
    "control", *QC_COLUMNS,
)  # fmt: skip


class Explorer:
    """State between requests: the current snapshot, the maps, and the last index."""

    def __init__(self, service: Service) -> None:
        self._refresh_s = service.config.refresh_s
        self._projections = Projections(Path(service.config.root) / "projections")
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._checked_at = -float("inf")
        self._rows: dict[tuple[str, int], NDArray[np.uint32]] = {}
        self._index: CropIndex | None = None

    def snapshot(self, loaded: Loaded) -> Snapshot:
        """The tables as of now or up to `refresh_s` ago; the previous snapshot while a new one is being read."""
        held = self._snapshot
        if not self._lock.acquire(blocking=held is None):
            assert held is not None
            return held
        try:
            if self._snapshot is None or time.monotonic() - self._checked_at >= self._refresh_s:
                versions = versions_of(loaded.catalog)
                if self._snapshot is None or self._snapshot.versions != versions:
                    self._snapshot = read_snapshot(loaded.catalog, versions)
                    self._rows, self._index = {}, None
                self._checked_at = time.monotonic()
            return self._snapshot
        finally:
            self._lock.release()

    def points(self, loaded: Loaded, representation_id: str, method: Method) -> tuple[Snapshot, bytes | Computing]:
        """A map as bytes, or its progress."""
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

    def neighbours(
        self, loaded: Loaded, representation_id: str, crop_id: str, k: int, where: str
    ) -> tuple[Snapshot, list[dict[str, Any]]]:
        """The k crops most similar to one, best first, with their rows and similarities."""
        snapshot = self.snapshot(loaded)
        if representation_id == loaded.index.representation_id:
            index = loaded.index
        else:
            index = self._index_of(snapshot, representation_id)
        own = index.row_of(crop_id)
        found = index.search(index.unit_vectors[own], k, where, leave_out=np.array([own]))
        similarity = {hit["crop_id"]: hit["similarity"] for hit in found}
        rows = snapshot.rows_of(pa.array(list(similarity), pa.string()))
        hits = _described(snapshot, rows[rows >= 0])
        return snapshot, [hit | {"similarity": similarity[hit["crop_id"]]} for hit in hits]

    def _rows_of(self, snapshot: Snapshot, representation_id: str) -> NDArray[np.uint32]:
        """(M,) rows of a representation's crops, increasing: the order of its map."""
        snapshot.representation(representation_id)
        key = representation_id, snapshot.versions["embeddings"]
        rows = self._rows.get(key)
        if rows is None:
            stored = VectorReader(snapshot.catalog).columns(representation_id, ["crop_id"])
            found = snapshot.rows_of(stored["crop_id"].combine_chunks())
            rows = self._rows[key] = np.sort(found[found >= 0]).astype(np.uint32)
        return rows

    def _index_of(self, snapshot: Snapshot, representation_id: str) -> CropIndex:
        """A representation's search index, held in memory until another one is requested."""
        index = self._index
        versions = snapshot.versions
        if index is None or (index.representation_id, index.versions) != (representation_id, versions):
            self._index = None  # frees the last index first: each may be as large as memory allows
            rows, vectors_MD = read_vectors(snapshot, representation_id)
            is_all = np.array_equal(rows, np.arange(snapshot.crops.num_rows))  # then no copy is needed
            crops = snapshot.crops if is_all else snapshot.crops_at(rows).combine_chunks()
            index = self._index = CropIndex(
                representation_id=representation_id,
                versions=versions,
                unit_vectors=vectors_MD,
                crops=crops,
                sites=sites_of(crops),
            )
        return index


def keyed(snapshot: Snapshot) -> dict[str, str]:
    """The header that identifies the rows of an answer."""
    return {"X-Rows-Key": snapshot.key}


def _points_bytes(rows: NDArray[np.uint32], points_M2: Points) -> bytes:
    """Rows, x and y, one after the other; the longer side of the map spans -1..1."""
    low, high = points_M2.min(axis=0), points_M2.max(axis=0)
    half = max(float((high - low).max()) / 2, 1e-12)
    xy_M2 = np.clip((points_M2 - (low + high) / 2) / half, -1, 1).astype("<f4")
    return bytes(rows.astype("<u4").tobytes() + xy_M2.T.tobytes())


def rows_of_body(snapshot: Snapshot, body: bytes, key: str) -> NDArray[np.int64]:
    """Rows that a request sends.

    Raises:
        ServingError: 409, a key of other rows; 422, a body that is not whole.
    """
    if key != snapshot.key:
        raise ServingError(
            status=409, detail="crops were added to the catalog since these rows were sent. Load the page again."
        )
    if len(body) % 4:
        raise ServingError(status=422, detail=f"the body has {len(body)} bytes, expected rows of 4 bytes each.")
    return np.frombuffer(body, "<u4").astype(np.int64)


def describe(snapshot: Snapshot, rows: NDArray[np.int64], form: str, where: str) -> Response:
    """Some crops as JSON, CSV or a curation.

    Raises:
        ServingError: 422, an unknown row, or more crops than the form can hold.
    """

    def file(content: bytes, media_type: str, name: str) -> Response:
        headers = keyed(snapshot) | {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=media_type, headers=headers)

    if form == "csv":
        return file(as_csv(snapshot, rows), "text/csv; charset=utf-8", "crops.csv")
    if form == "curation":
        return file(as_curation(snapshot, rows, where), "application/yaml", "selection.yaml")
    if len(rows) > MAX_DESCRIBED:
        raise ServingError(
            status=422, detail=f"{len(rows):,} crops, at most {MAX_DESCRIBED:,} come as JSON. Request form=csv."
        )
    return JSONResponse({"crops": _described(snapshot, rows)}, headers=keyed(snapshot))


def _described(snapshot: Snapshot, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    found = snapshot.crops_at(rows).select(list(DESCRIBED)).to_pylist()
    return [{"crop_row": int(row)} | _plain(crop) for row, crop in zip(rows, found, strict=True)]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """None instead of NaN, which JSON cannot hold."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}


def _row_of(snapshot: Snapshot, crop_id: str) -> int:
    row = int(snapshot.rows_of(pa.array([crop_id], pa.string()))[0])
    if row < 0:
        raise ServingError(
            status=404, detail=f"crop {crop_id!r} is not in the catalog. Take a crop id from the table crops."
        )
    return row


def crop_card(snapshot: Snapshot, crop_id: str) -> dict[str, Any]:
    """Columns of a crop, its channels, and the verdicts on its site and well.

    Raises:
        ServingError: 404, an unknown crop.
    """
    row = _row_of(snapshot, crop_id)
    crop = snapshot.crops_at(np.array([row])).to_pylist()[0]
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


def qc_summary(snapshot: Snapshot) -> dict[str, Any]:
    """Rules with their counts, and failed verdicts with their plate, well and site."""
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
