from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from tests.curation.planted_catalog import (
    CONTROLS,
    CROPS_EACH,
    N_PLATES,
    TREATMENTS,
    WELLS_EACH,
    add_embeddings,
    add_screen,
    plate_labels,
    well_vectors,
)

CONSISTENCY = {"rule": "consistency", "representations": "first", "n_draws": 1000}
PER_TREATMENT = N_PLATES * WELLS_EACH * CROPS_EACH
ACTIVE = {name for name in TREATMENTS if name.startswith("active")}
LONE = [
    {"plate_id": "P0", "plate": "P0", "batch": "B0", "well": "Z01", "well_id": "P0/Z01", "perturbation": "lone"}
    | {"guide": "", "control": ""}
]


def test_conditions_without_an_effect_are_excluded_and_the_evidence_is_stored(screen, run):
    applied = run(screen, CONSISTENCY)
    found = applied.kept_perturbations
    assert {name for name in TREATMENTS if name in found} == ACTIVE
    assert all(found[name] == PER_TREATMENT for name in ACTIVE), "a condition stays whole or goes whole"
    assert found["negative control"] == N_PLATES * CONTROLS.count("negative") * CROPS_EACH
    assert found["positive control"] == N_PLATES * CONTROLS.count("positive") * CROPS_EACH
    assert applied.counts == {"consistency: p 0.01 or more": 16 * PER_TREATMENT}
    rows = applied.candidates.evidence
    assert len(rows) == len(TREATMENTS) * (3 + 1), "three batches, and all of them combined"
    combined = {row["perturbation"]: row for row in rows if row["experiment"] == ""}
    assert all((combined[name]["p_value"] < 0.01) == (name in ACTIVE) for name in TREATMENTS)
    assert combined["inert-0"]["n_wells"] == N_PLATES * WELLS_EACH
    assert {row["experiment"] for row in rows} == {"", '["S", "B0"]', '["S", "B1"]', '["S", "B2"]'}
    q_values = false_discovery_control([combined[name]["p_value"] for name in TREATMENTS])
    assert set(applied.crop_details.values()) == {
        f"p = {combined[name]['p_value']:.3g}, q = {q:.3g}"
        for name, q in zip(TREATMENTS, q_values, strict=True)
        if name not in ACTIVE
    }


def test_passing_under_one_of_two_representations_is_enough(screen, run):
    both = run(screen, CONSISTENCY | {"representations": ["first", "second"]})
    expected = {name for name in TREATMENTS if not name.startswith("inert")}
    assert set(both.kept_perturbations) & set(TREATMENTS) == expected


def test_a_shift_of_a_whole_plate_changes_nothing_and_untested_conditions_are_reported(own, run):
    wells = plate_labels()
    shift = np.array([100.0 * int(well["plate"][1:]) for well in wells])[:, None, None]
    add_embeddings(own, wells, "shifted", (well_vectors(wells, "active") + shift).astype(np.float32))
    add_screen(own, LONE)
    first, shifted = run(own, CONSISTENCY), run(own, CONSISTENCY | {"representations": "shifted"})
    assert first.kept == shifted.kept
    (reason,) = first.reasons_by("perturbation")["lone"]
    assert reason.startswith("consistency: not tested, fewer than 2 wells with embeddings in each experiment")


@pytest.mark.parametrize("change", [{"experiment": "plate"}, {"is_stratified": False}, {"sphere": False}])
def test_strong_effects_are_found_with_other_settings_too(screen, run, change):
    found = run(screen, CONSISTENCY | change).kept_perturbations
    assert {name for name in TREATMENTS if name in found} == ACTIVE


def test_ray_changes_no_result(screen, run, local_ray, monkeypatch):
    on_ray = run(screen, CONSISTENCY)
    monkeypatch.delitem(sys.modules, "ray")
    here = run(screen, CONSISTENCY)
    assert on_ray.kept == here.kept
    assert on_ray.candidates.evidence == here.candidates.evidence
