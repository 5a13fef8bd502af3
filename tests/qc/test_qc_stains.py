"""Verdicts belong to stains, not to places in a site's list of channels."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tifffile
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit

from cytolake.curation.curate import CurateConfig, curate
from cytolake.qc.verdicts import QcConfig, judge_sites, qc_profile
from cytolake.screens.plate import Plate, SiteImage

STAINS = {"1": ("DNA", "ER", "Red"), "2": ("DNA", "ER", "Far red")}
"""By focal plane: Red was taken in one and Far red in another, both in third place."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A catalog of one plate of 5 x 5 wells, each a site in two planes."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    sites = []
    for row, column in itertools.product("ABCDE", range(1, 6)):
        for z, stains in STAINS.items():
            paths = []
            for stain in stains:
                path = folder / f"{row}{column:02d}_z{z}_{stain}.tif"
                pixels = rng.poisson(200, (64, 64)).astype(np.uint16)
                pixels[10:30, 20:44] += 3000
                tifffile.imwrite(path, pixels)
                paths.append(str(path))
            well = f"{row}{column:02d}"
            sites.append(
                SiteImage(
                    screen="s", plate="P1", well=well, site="1", z=z, channels=stains, reader="files",
                    image_paths=tuple(paths),
                )
            )  # fmt: skip
    plate = Plate(
        screen="s", plate="P1", batch="P1", source=str(folder), reader="files",
        channels=("DNA", "ER", "Red", "Far red"), sites=tuple(sites),
    )  # fmt: skip
    catalog = empty_catalog(folder / "catalog")
    commit(catalog, plate)
    return catalog


def test_two_stains_in_one_place_of_their_sites_have_verdicts_of_their_own(lake):
    qc_id = judge_sites(lake, QcConfig())
    judged = lake.sql(f"SELECT DISTINCT level, channel FROM qc_verdicts WHERE qc_id = '{qc_id}' AND channel <> ''")
    stains = {"DNA", "ER", "Red", "Far red"}
    of_wells = {row["channel"] for row in judged.to_pylist() if row["level"] == "well"}
    assert {row["channel"] for row in judged.to_pylist() if row["level"] == "site"} == stains
    assert of_wells == stains
    wells = lake.sql("SELECT count(*) FROM qc_verdicts WHERE rule = 'edge_well' AND channel = 'Far red'")
    assert wells.column(0).to_pylist() == [9]  # row A and column 1 of 5 x 5 wells on a plate of 96


@pytest.mark.slow
def test_such_a_plate_can_be_curated(lake):
    curation = curate(lake, CurateConfig(name="any_screen"))
    assert curation.n_considered == 5 * 5 * 2 * 4
    assert curation.n_kept > 0


def test_failed_channels_of_a_site_are_counted_by_stain(lake):
    profile = qc_profile("default")
    metrics = lake.table("qc_metrics")
    verdicts = profile.judge(metrics)
    of_sites = verdicts.select(["site_id", "channel", "rule"])
    assert of_sites.group_by(["site_id", "channel", "rule"]).aggregate([]).num_rows == of_sites.num_rows


def test_labels_of_a_zarr_image_become_names_that_differ():
    from cytolake.screens.images.ome_metadata import image_facts

    ome = {
        "multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}],
        "omero": {"channels": [{"label": name} for name in ("A", "A c2", "A")]},
    }
    facts = image_facts(ome, {"shape": [3, 8, 8]})
    assert len(set(facts.channels)) == 3
    assert dataclasses.replace(facts, channels=()).shape == (3, 8, 8)
