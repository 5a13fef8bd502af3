"""A plate that is imaged again: its second run takes the place of the first, and the first is no news any more."""

from __future__ import annotations

import numpy as np
import tifffile
from tests.catalog.empty_catalog import empty_catalog

from cytolake.catalog.corrections import replace_plate
from cytolake.catalog.corrections.replace import plate_in_source
from cytolake.catalog.ingest.plates import IngestConfig, ingest_screens
from cytolake.screens.sources import ScreenSource

CONFIG = IngestConfig(crop_size=32)
GUID = "AA847666-9AC4-4326-A184-8FC928D4368A"


def write_run(folder, seed):
    for well in ("A01", "A02"):
        path = folder / f"TimePoint_1/P1_{well}_s1_w1{GUID}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(100, 999, (64, 64), dtype=np.uint16)
        tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None, software=False)


def test_after_a_replacement_the_first_run_is_not_refused_again(tmp_path):
    catalog = empty_catalog(tmp_path / "lake")
    screen, second = tmp_path / "screen", tmp_path / "screen/P1/2024-01-08/101"
    source = ScreenSource(screen="s", path=str(screen))
    write_run(screen / "P1/2024-01-01/100", 1)
    assert len(ingest_screens(catalog, [source], CONFIG).ingested) == 1
    write_run(second, 2)
    before = ingest_screens(catalog, [source], CONFIG)
    assert [problem.problem for problem in before.refused] == ["duplicate_plate"]
    listed = plate_in_source(ScreenSource(screen="s", path=str(second)), "P1")
    replace_plate(catalog, "s/P1", listed, CONFIG)
    after = ingest_screens(catalog, [source], CONFIG)
    assert (after.refused, len(after.skipped), len(after.ingested)) == ((), 1, 0)
    assert catalog.table("sites").num_rows == 2
    assert all("/101/" in paths[0] for paths in catalog.table("sites").column("image_paths").to_pylist())
