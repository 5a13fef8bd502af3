"""Curations by embeddings as versioned tables: pinned versions, equal content, other embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.catalog.empty_catalog import empty_catalog
from tests.curation.planted_catalog import add_embeddings, add_screen, plate_labels, run_row, well_vectors

from cytolake.catalog import Catalog
from cytolake.curation.curate import CurateConfig, Curation, curate

STEPS = (
    {"rule": "consistency", "representations": "first", "n_draws": 200},
    {"rule": "undersample_controls"},
    {"rule": "near_duplicates", "representation": "first"},
    {"rule": "cap", "max_crops_per_perturbation": 7},
)


@pytest.fixture
def run(tmp_path: Path):
    """Curate under STEPS."""
    (tmp_path / "pinned.yaml").write_text(yaml.safe_dump({"steps": list(STEPS)}))

    def run_steps(catalog: Catalog) -> Curation:
        return curate(catalog, CurateConfig(name="pinned", folder=str(tmp_path)))

    return run_steps


def kept(catalog: Catalog, curation: Curation) -> set[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    return set(rows.column("crop_id").to_pylist())


@pytest.mark.slow
def test_other_embeddings_change_nothing_and_other_crops_make_another_curation(own, run, tmp_path):
    curation = run(own)
    assert [step.rule for step in curation.steps] == [step["rule"] for step in STEPS]
    evidence = own.table("consistency_tests", where=f"curation_id = '{curation.curation_id}'")
    assert evidence.num_rows == 24 * 4, "three batches and their combination"
    before = own.versions()
    add_embeddings(own, plate_labels(), "another", well_vectors(plate_labels(), "inert"), day=3)
    assert run(own) == curation
    assert own.versions()["curations"] == before["curations"]
    pinned = run_row(own, curation.curation_id)["table_versions"]
    assert {"crops", "wells", "embeddings", "representations"} <= set(pinned)
    later = [well | {"plate_id": "P9", "plate": "P9", "well_id": f"P9/{well['well']}"} for well in plate_labels()[:50]]
    add_screen(own, later)
    assert run(own).curation_id != curation.curation_id
    crops = own.at(pinned).sql("SELECT * FROM crops ORDER BY crop_id")
    assert crops.num_rows == curation.n_considered
    assert kept(own, curation) <= set(crops.column("crop_id").to_pylist())


def test_two_catalogs_with_the_same_content_keep_the_same_crops(own, run, tmp_path):
    wells = plate_labels()
    other = empty_catalog(tmp_path / "other")
    add_embeddings(other, wells, "first", well_vectors(wells, "active"), kind="untrained")
    add_screen(other, wells)
    assert kept(own, run(own)) == kept(other, run(other))
