"""Features of the sites of a plate for an artefact detector: measured from pixels, relative to the plate.

The reference of a plate is measured on some of its sites, drawn by hashing their ids, so the features of a site do not
depend on the other sites measured. Raw counts are read: illumination correction would hide its faults.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.tables import Catalog
from cytolake.qc.detector.encoders import FeatureConfig, features_of_key
from cytolake.qc.detector.feature_store import StoredSite, read_features, write_features
from cytolake.qc.detector.features import (
    FeatureExtractor,
    Numbers,
    PlateReference,
    PlateScale,
    RawFeatures,
    SiteStatistics,
    measure_sites,
    plate_reference,
    plate_scale,
)
from cytolake.qc.verdicts import Progress
from cytolake.screens.images.pixels import read_site, site_image
from cytolake.screens.simulated.artefacts import add_artefact

_SITES_PER_TASK = 16
_SCALE_SITES = 24  # with 20,000 pixels of each, half a million for the 0.1st percentile


@dataclass(frozen=True, slots=True)
class Spoiling:
    """An artefact to add to a site before it is measured."""

    kind: str
    severity: float
    seed: int


@dataclass(frozen=True, slots=True)
class MeasuredSite:
    """Features of one site."""

    site_id: str
    well_id: str
    channels: tuple[str, ...]
    deviations: Numbers
    """(C, D) of `PlateReference.deviations`."""
    is_spoilt: NDArray[np.bool_]
    """(C,) channels with an added artefact."""


class PlateSites:
    """The sites of one plate of a catalog, and the plate's reference."""

    def __init__(
        self, catalog: Catalog, plate_id: str, key: str, progress: Progress | None = None, store: Path | None = None
    ) -> None:
        """Measure the reference.

        Args:
            plate_id: Of the plate.
            key: How to measure: `encoders.features_key`.
            progress: Called with the parts done.
            store: Folder of cached features, read and extended; None for no cache.

        Raises:
            CatalogError: The catalog has no site of that plate.
            ScreenError: The pixels of a site cannot be read.
        """
        rows = catalog.table("sites", where="plate_id = ?", parameters=[plate_id]).to_pylist()
        if not rows:
            raise CatalogError(f"{catalog.place}: no site of plate {plate_id}. Ingest its screen first.")
        self.plate_id = plate_id
        self._rows: dict[str, dict[str, Any]] = {row["site_id"]: row for row in sorted(rows, key=_order)}
        self._key, self._progress = key, progress
        config, extractors = _extractors(key)
        self._file = store and store / _file_name(catalog, plate_id, config, extractors)
        self._stored = read_features(self._file) if self._file else {}
        self.reference_ids = tuple(list(self._rows)[: config.reference_sites])
        self._scale = PlateScale({})
        if any(not isinstance(extractor, SiteStatistics) for extractor in extractors):
            shown = [self._rows[site] for site in self.reference_ids[:_SCALE_SITES]]
            self._scale = plate_scale([_pixels(row) for row in shown], [tuple(row["channels"]) for row in shown])
        self._raw = dict(zip(self.reference_ids, self._measure(self.reference_ids), strict=True))
        self._reference: PlateReference = plate_reference([raw for raw, _ in self._raw.values()])

    @property
    def site_ids(self) -> tuple[str, ...]:
        """All sites of the plate; sites of the reference first."""
        return tuple(self._rows)

    def channels(self, site_id: str) -> tuple[str, ...]:
        """Stains of a site."""
        return tuple(self._rows[site_id]["channels"])

    def measure(self, site_ids: Sequence[str], spoilings: Mapping[int, Spoiling] | None = None) -> list[MeasuredSite]:
        """Measure sites of the plate.

        Args:
            site_ids: Which; may hold a site twice.
            spoilings: Position in `site_ids` to the artefact to add to that site first.

        Raises:
            ScreenError: The pixels of a site cannot be read.
        """
        spoilings = spoilings or {}
        todo = [i for i, site in enumerate(site_ids) if i in spoilings or site not in self._raw]
        found = dict(
            zip(todo, self._measure([site_ids[i] for i in todo], [spoilings.get(i) for i in todo]), strict=True)
        )
        measured = []
        for i, site in enumerate(site_ids):
            raw, is_spoilt = found[i] if i in found else self._raw[site]
            row = self._rows[site]
            measured.append(
                MeasuredSite(site, row["well_id"], raw.channels, self._reference.deviations(raw), is_spoilt)
            )
        return measured

    def _measure(
        self, site_ids: Sequence[str], spoilings: Sequence[Spoiling | None] | None = None
    ) -> list[tuple[RawFeatures, NDArray[np.bool_]]]:
        wanted = list(zip(site_ids, spoilings or [None] * len(site_ids), strict=True))
        missing = [each for each in dict.fromkeys(wanted) if _entry(*each) not in self._stored]
        tasks = [
            (
                [self._rows[site] for site, _ in missing[start : start + _SITES_PER_TASK]],
                [spoiling for _, spoiling in missing[start : start + _SITES_PER_TASK]],
                self._key,
                self._scale,
            )
            for start in range(0, len(missing), _SITES_PER_TASK)
        ]
        parts = run_tasks(_measure_part, tasks, len(tasks), "parts measured", self._progress)
        found = {
            _entry(*each): StoredSite(raw.values, raw.correlation, is_spoilt)
            for each, (raw, is_spoilt) in zip(missing, (site for part in parts for site in part), strict=True)
        }
        if self._file and found:
            self._stored |= found
            write_features(self._file, self._stored)
        found |= self._stored
        return [
            (RawFeatures(self.channels(site), each.values, each.correlation), each.is_spoilt)
            for site, spoiling in wanted
            for each in (found[_entry(site, spoiling)],)
        ]


def _measure_part(
    rows: list[dict[str, Any]], spoilings: list[Spoiling | None], key: str, scale: PlateScale
) -> list[tuple[RawFeatures, NDArray[np.bool_]]]:
    """Measure the sites of one task, one in memory at a time."""
    _, extractors = _extractors(key)
    measured = []
    for row, spoiling in zip(rows, spoilings, strict=True):
        pixels, is_spoilt = _pixels(row), np.zeros(len(row["channels"]), bool)
        if spoiling is not None:
            pixels, is_spoilt = add_artefact(pixels, spoiling.kind, spoiling.severity, spoiling.seed)
        measured.append((measure_sites([pixels], [tuple(row["channels"])], extractors, scale)[0], is_spoilt))
    return measured


def _pixels(row: Mapping[str, Any]) -> NDArray[Any]:
    return np.asarray(read_site(site_image(row), is_corrected=False))


def site_order(site_id: str) -> bytes:
    """Sort key of a random order of sites that does not depend on the other sites."""
    return hashlib.blake2b(site_id.encode(), digest_size=8).digest()


def _order(row: Mapping[str, Any]) -> bytes:
    return site_order(row["site_id"])


def _entry(site_id: str, spoiling: Spoiling | None) -> str:
    if spoiling is None:
        return site_id
    return f"{site_id}/{spoiling.kind}/{spoiling.severity!r}/{spoiling.seed}"


def _file_name(catalog: Catalog, plate_id: str, config: FeatureConfig, extractors: Sequence[FeatureExtractor]) -> str:
    keys = [extractor.key for extractor in extractors]
    content = catalog.plate_content("sites", plate_id)
    return content_id("qc_features", *keys, str(config.reference_sites), plate_id, str(content)) + ".safetensors"


@lru_cache(maxsize=2)
def _extractors(key: str) -> tuple[FeatureConfig, list[FeatureExtractor]]:
    """Cached: a process that measures several parts loads its encoder once."""
    return features_of_key(key)
