"""Content of a pack: the hashes that identify it, existing packs with the same content, pixel types of its sources."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytolake.catalog import Catalog
from cytolake.catalog.content import OF_PIXELS, content_of, plate_contents
from cytolake.catalog.ids import content_id
from cytolake.packs.pack import PACK_FILE, PixelKind

CONTENT = 2
"""Version of the choice and order of crops; part of a pack's id, unlike FORMAT, the layout of its files. Ids of version
1 hashed the Delta versions of tables, which other screens may share."""


def find_pack(
    packs: Path, curation_id: str, shuffle_seed: int, pixels: PixelKind, exclude_plates: Iterable[str] = ()
) -> Path | None:
    """The folder of a pack with the crops of this curation in this order; None if there is none."""
    for folder, described in _described_packs(packs):
        found = (
            described.get("curation_id"),
            described.get("shuffle_seed"),
            described.get("pixels", "native"),
            described.get("exclude_plates", []),
        )
        if found == (curation_id, shuffle_seed, pixels, sorted(exclude_plates)):
            return folder
    return None


def find_pack_of_pixels(packs: Path, pixels_content: str, shuffle_seed: int, pixels: PixelKind) -> Path | None:
    """The folder of a pack with the same crops, pixels and order, of any curation; None if there is none."""
    for folder, described in _described_packs(packs):
        found = (described.get("pixels_content"), described.get("shuffle_seed"), described.get("pixels", "native"))
        if found == (pixels_content, shuffle_seed, pixels):
            return folder
    return None


def _described_packs(packs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(packs.glob(f"[!.]*/{PACK_FILE}")):
        try:
            yield file.parent, json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue  # damaged: `Pack.open` reports it when the pack is opened by its id


def pixels_of_crops(catalog: Catalog, versions: Mapping[str, int], crops: pa.Table) -> str:
    """Hash of crops and of their plates' pixels; independent of labels, batches and names of the plates.

    Args:
        catalog: Not pinned.
        versions: That the curation pinned.
        crops: Columns crop_id and plate_id, in the order of the ids.
    """
    pinned = catalog.at({name: catalog.versions()[name] for name in OF_PIXELS} | dict(versions))
    parts = [_ids_of_crops(crops)]
    plates = frozenset(crops.column("plate_id").unique().to_pylist())
    for table in ("qc_metrics", "sites"):
        for plate, content in sorted(plate_contents(pinned, table, ("screen", "plate", "batch")).items()):
            if plate in plates:
                parts += [table, plate, content]
    return content_id("pixels of crops", *parts)


def content_of_crops(catalog: Catalog, versions: Mapping[str, int], crops: pa.Table) -> str:
    """Hash of crops and of what the catalog knows of the pixels of their plates.

    Args:
        catalog: Not pinned.
        versions: That the curation pinned.
        crops: Columns crop_id and plate_id, in the order of the ids.
    """
    # Curations made before ids were hashed from rows did not pin the metrics: current ones are used.
    pinned = catalog.at({name: catalog.versions()[name] for name in OF_PIXELS} | dict(versions))
    plates = frozenset(crops.column("plate_id").unique().to_pylist())
    return content_id(_ids_of_crops(crops), content_of(pinned, OF_PIXELS, plates))


def _ids_of_crops(crops: pa.Table) -> str:
    ids = hashlib.blake2b(digest_size=16)
    for batch in crops.select(["crop_id"]).to_batches(max_chunksize=1_000_000):
        ids.update("\n".join([*batch.column(0).to_pylist(), ""]).encode())
    return ids.hexdigest()


def source_dtypes(sites: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Numpy name of the pixel type of each plate, for `Pack.full_scale`; empty for a plate of several types."""
    of_plate: dict[str, set[str]] = defaultdict(set)
    for site in sites:
        of_plate[site["plate_id"]].add(site["dtype"])
    return {plate: next(iter(names)) if len(names) == 1 else "" for plate, names in sorted(of_plate.items())}
