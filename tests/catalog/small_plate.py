"""A small plate of TIFF files, and its way into a catalog without Ray."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from tests.catalog.rows import add_rows

import cytolake.catalog
from cytolake.catalog import Catalog, table_names
from cytolake.catalog.ids import PlateIds
from cytolake.catalog.ingest.commit import Incoming, commit_incoming
from cytolake.catalog.ingest.plate_content import content_hash, plate_content
from cytolake.catalog.ingest.plates import IngestConfig, stage_well, staging_of
from cytolake.catalog.ingest.staging import Staging
from cytolake.screens.plate import Plate, Problem, SiteImage

CONFIG = IngestConfig(crop_size=32, sites_per_task=2)
CHANNELS = ("DNA", "Actin")


def write_plate(folder: Path, name: str = "P1", seed: int = 0) -> Plate:
    """Three wells of two sites of two channels, 70 x 100 pixels, as TIFF files, with a plate map."""
    rng = np.random.default_rng(seed)
    sites = []
    for well in ("A01", "A02", "B01"):
        for site in ("1", "2"):
            paths = []
            for channel in CHANNELS:
                path = folder / name / f"{well}_{site}_{channel}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.poisson(200, (70, 100)).astype(np.uint16)
                pixels[20:40, 30:60] += 5000
                pixels[0, 0] = 65535
                tifffile.imwrite(image := io.BytesIO(), pixels)
                # Of two processes that ingest one plate, none may change its files while the other reads them.
                if not path.exists() or path.read_bytes() != image.getvalue():
                    path.write_bytes(image.getvalue())
                paths.append(str(path))
            place = {"screen": "S", "plate": name, "well": well, "site": site}
            sites.append(SiteImage(**place, channels=CHANNELS, reader="files", image_paths=tuple(paths)))
    wells = (
        {"well": "A01", "gene": "TP53", "control": ""},
        {"well": "A02", "gene": "", "compound": "DMSO", "control": "negcon"},
        {"well": "C01", "gene": "MYC", "control": "what"},
    )
    lost = Problem(
        screen="S", plate=name, well="C01", problem="well_without_image", found="none", expected="one",
        next_step="Look.",
    )  # fmt: skip
    return Plate(
        screen="S", plate=name, batch="B", source=str(folder / name), reader="files", channels=CHANNELS,
        sites=tuple(sites), wells=wells, problems=(lost,), pixel_size_um=0.5,
    )  # fmt: skip


def stage(catalog: Catalog, plate: Plate, config: IngestConfig = CONFIG) -> Staging:
    """What the Ray tasks of a plate do, without Ray."""
    staging = staging_of(catalog, plate, content_hash(plate), config)
    for well in dict.fromkeys(site.well for site in plate.sites):
        sites = [site for site in plate.sites if site.well == well]
        stage_well(staging, sites, plate.batch, config.crop_size)
    return staging


def commit_plate(catalog: Catalog, plate: Plate, content: str, config: IngestConfig) -> object:
    """Commit the first acquisition of a plate whose wells are all staged, as an ingest does."""
    incoming = Incoming(plate, plate_content(plate), PlateIds(plate.screen, plate.plate), content)
    return commit_incoming(catalog, incoming, staging_of(catalog, plate, content, config), config.crop_size)


def commit(catalog: Catalog, plate: Plate, config: IngestConfig = CONFIG) -> object:
    stage(catalog, plate, config)
    return commit_plate(catalog, plate, content_hash(plate), config)


def contents(catalog: Catalog) -> dict[str, list[dict[str, object]]]:
    """Every row of every table but for times, and the hash of such, in order of the key."""
    found = {}
    for name in table_names():
        contract = cytolake.catalog.table_contract(name)
        rows = catalog.table(name).sort_by([(column, "ascending") for column in contract.key]).to_pylist()
        found[name] = [{k: v for k, v in row.items() if not k.endswith("_at") and k != "files_hash"} for row in rows]
    return found


def embed(catalog: Catalog) -> None:
    """One embedding of every crop, of all plates in one file."""
    crops = catalog.table("crops", columns=["crop_id", "well_id", "plate_id"]).to_pylist()
    add_rows(catalog, "embeddings", *crops, representation_id="r", embedding=[1.0])
