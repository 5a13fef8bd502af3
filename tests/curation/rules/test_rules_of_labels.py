"""Rules that look at labels, sizes and verdicts: support, undersample_controls, qc, cap, where, foreground."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.curation.planted_catalog import CROPS_EACH, N_PLATES, add_screen, add_verdicts

from cytolake.catalog import Catalog, CatalogError
from cytolake.curation.rules import Candidates
from cytolake.curation.rules.support import MISSING


@pytest.fixture(scope="module")
def conditions(tmp_path_factory) -> Catalog:
    """Conditions named by their fault, each in wells of plates P0 to P5 of batches B0 to B2."""
    catalog = empty_catalog(tmp_path_factory.mktemp("support") / "catalog")
    wells = []

    def add(perturbation: str, plates: str, wells_each: int, guide: str = "", control: str = "", **more: float) -> None:
        for p in map(int, plates):
            for _ in range(wells_each):
                name = f"W{len(wells):03d}"
                place = {"plate_id": f"P{p}", "plate": f"P{p}", "batch": f"B{p % 3}", "well": name}
                labels = {"perturbation": perturbation, "guide": guide, "control": control} | more
                wells.append(place | {"well_id": f"P{p}/{name}"} | labels)

    add("enough", "012345", 4)
    add("few experiments", "0134", 6)
    add("few wells", "012", 2)
    add("", "012345", 4)
    add("  N/A ", "012345", 4)
    add("named twice", "012345", 4, guide="g1")
    add("named twice too", "012345", 4, guide="g1")
    add("dosed", "012345", 2, dose=1.0)
    add("dosed", "012345", 2, dose=10.0)
    add("DMSO", "0", 1, control="negative")
    add_screen(catalog, wells)
    return catalog


def test_only_known_and_replicated_conditions_stay(conditions, run):
    assert run(conditions, {"rule": "support"}).reasons_by("perturbation") == {
        "enough": {"": 48},
        "DMSO": {"": 2},
        "few experiments": {"support: fewer than 3 experiments": 48},
        "few wells": {"support: fewer than 20 wells": 12},
        "": {"support: no perturbation": 48},
        "  N/A ": {"support: no perturbation": 48},
        "named twice": {"support: a guide of several perturbations": 48},
        "named twice too": {"support: a guide of several perturbations": 48},
        "dosed": {"support: fewer than 20 wells": 48},
    }
    assert {"n/a", ""} <= MISSING


@pytest.mark.parametrize(
    ("experiment", "kept"), [("plate", {"enough", "few experiments", "dosed", "DMSO"}), ("batch", {"DMSO"})]
)
def test_an_experiment_is_a_plate_or_a_batch(conditions, run, experiment, kept):
    step = {"rule": "support", "condition": "perturbation", "min_experiments": 4, "min_wells": 2}
    assert set(run(conditions, step | {"experiment": experiment}).kept_perturbations) == kept


def test_a_share_of_the_control_wells_of_each_plate_stays_whole(screen, run):
    applied = run(screen, {"rule": "undersample_controls"})
    left = applied.kept_wells
    assert set(left.values()) == {CROPS_EACH}
    per_plate = {
        (plate, control, well)
        for plate, control, well in zip(*map(applied.column, ("plate_id", "control", "well_id")), strict=True)
        if control and well in left
    }
    # 30 % of 12 negative and 10 % of 10 positive control wells
    assert Counter((plate, control) for plate, control, _ in per_plate) == {
        (f"P{p}", kind): n for p in range(N_PLATES) for kind, n in (("negative", 4), ("positive", 1))
    }
    assert set(applied.counts) == {
        "undersample_controls: beyond 0.3 of negative control wells",
        "undersample_controls: beyond 0.1 of positive control wells",
    }


def test_the_seed_decides_which_controls_stay_and_a_larger_share_includes_a_smaller(screen, run):
    step = {"rule": "undersample_controls", "negative_share": 0.25}
    small, other = run(screen, step).kept, run(screen, step, seed=1).kept
    assert small < run(screen, step | {"negative_share": 0.5}).kept
    assert small != other
    assert len(small) == len(other)


def test_a_share_of_0_may_still_leave_some_wells(screen, run):
    nothing = {"rule": "undersample_controls", "negative_share": 0.0, "positive_share": 0.0}
    assert "negative control" not in run(screen, nothing | {"min_wells": 0}).kept_perturbations
    some = run(screen, nothing | {"min_wells": 2}).kept_perturbations
    assert some["negative control"] == some["positive control"] == 2 * N_PLATES * CROPS_EACH


def test_a_failing_site_well_or_plate_loses_its_crops_at_the_levels_of_the_rule(own, run):
    add_verdicts(
        own,
        "q",
        [
            {"level": "site", "site_id": "P0/W001", "well_id": "P0/W001", "is_pass": False},
            {"level": "site", "site_id": "P0/W002", "well_id": "P0/W002"},
            {"level": "well", "well_id": "P0/W003", "rule": "few_cells", "is_pass": False},
            {"level": "well", "well_id": "P0/W004", "rule": "few_cells"},
            {"level": "plate", "plate_id": "P1", "rule": "drifted", "is_pass": False},
            {"level": "plate", "plate_id": "P2", "rule": "drifted"},
            {"level": None, "site_id": "P0/W005", "rule": "without_level", "is_pass": False},
        ],
    )
    qc = {"rule": "qc", "qc_id": "q"}
    site = {"qc: blurred": CROPS_EACH, "qc: without_level": CROPS_EACH}
    assert run(own, qc).counts == site
    well = {"qc: well few_cells": CROPS_EACH}
    assert run(own, qc | {"levels": ["site", "well"]}).counts == site | well
    every = run(own, qc | {"levels": ["site", "well", "plate"]})
    of_plate = len(every.reasons) // N_PLATES
    assert every.counts == site | well | {"qc: plate drifted": of_plate}
    assert run(own, qc | {"levels": ["well", "plate"], "rules": "few_cells"}).counts == well
    with pytest.raises(CatalogError, match=r"QC rules blurry are not in qc_id q\. There are: blurred, drifted"):
        run(own, qc | {"rules": "blurry"})


def test_a_crop_has_the_reason_of_the_first_rule_that_excludes_it(screen, run):
    where, cap = {"rule": "where", "where": "plate <> 'P0'"}, {"rule": "cap", "max_crops_per_perturbation": 7}
    applied = run(screen, where, cap)
    assert set(applied.reasons_by("plate")["P0"]) == {"not where plate <> 'P0'"}
    assert set(applied.reasons_by("plate")["P1"]) == {"", "beyond 7 crops of perturbation"}
    assert [(step.rule, step.n_considered - step.n_removed) for step in applied.steps] == [
        ("where", applied.steps[0].n_kept),
        ("cap", len(applied.kept)),
    ]
    assert applied.steps[1].n_considered == applied.steps[0].n_kept
    reverse = run(screen, cap, where)
    assert len(reverse.kept) < len(applied.kept), "each rule sees only what the rules before it keep"


def test_a_cap_keeps_as_many_of_each_perturbation_and_control_by_the_seed(screen, run):
    cap = {"rule": "cap", "max_crops_per_perturbation": 5, "max_crops_per_control": 3}
    applied = run(screen, cap)
    found = applied.kept_perturbations
    assert {found[name] for name in found if "control" not in name} == {5}
    assert found["negative control"] == found["positive control"] == 3
    assert set(applied.counts) == {"beyond 5 crops of perturbation", "beyond 3 crops of control"}
    assert applied.kept != run(screen, cap, seed=1).kept
    assert applied.kept < run(screen, cap | {"max_crops_per_perturbation": 8, "max_crops_per_control": 9}).kept


def test_where_excludes_crops_for_which_the_condition_is_false_or_null(screen, run):
    applied = run(screen, {"rule": "where", "where": "dose > 0 OR (well = 'W001' AND x < 64)"})
    assert applied.kept == {f"P{p}/W001/0" for p in range(N_PLATES)}


@pytest.mark.parametrize(
    "where", ["colour = 'red'", "gene = ", "1) FROM wells --", "x IN (SELECT * FROM read_csv('/etc/passwd'))"]
)
def test_an_invalid_where_is_refused_with_the_columns(screen, run, where):
    with pytest.raises(CatalogError, match=r"(?s)curation tried: where .* cannot be used.* Columns: crop_id"):
        run(screen, {"rule": "where", "where": where})


def test_foreground_excludes_crops_below_the_minimum_and_those_without_a_share(screen, run):
    assert run(screen, {"rule": "foreground", "min_share": 0.5}).counts == {}
    (reason,) = run(screen, {"rule": "foreground", "min_share": 0.6}).counts
    assert re.fullmatch(r"foreground_share below 0\.6", reason)


def test_groups_are_equal_in_all_columns_and_only_then(screen, crops):
    table = crops(screen)
    candidates = Candidates(name="t", catalog=screen, crops=table, kept=np.ones(table.num_rows, bool), seed=0)
    groups, first = candidates.groups(["plate", "perturbation"])
    labels = list(zip(table["plate"].to_pylist(), table["perturbation"].to_pylist(), strict=True))
    assert len(set(zip(labels, groups.tolist(), strict=True))) == len(set(labels)) == len(first)
    assert all(groups[row] == number for number, row in enumerate(first.tolist()))


def test_an_unknown_column_is_refused_with_the_known_ones(screen, run):
    with pytest.raises(CatalogError, match=r"support\.condition: no column colour\. Columns of crops and wells"):
        run(screen, {"rule": "support", "condition": ["colour"]})
