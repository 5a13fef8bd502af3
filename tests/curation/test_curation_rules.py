"""Each rule against planted truth, through `curate`, on real Delta tables."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import false_discovery_control
from tests.curation.planted_catalog import (
    CONTROLS,
    CROPS_EACH,
    N_PLATES,
    TREATMENTS,
    WELLS_EACH,
    add_embeddings,
    add_screen,
    add_verdicts,
    details,
    planted_catalog,
    plate_labels,
    reasons_by,
    run_row,
    well_vectors,
)

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.curation.curate import CurateConfig, Curation, curate
from cytolake.curation.rules import MISSING, Considered

CONSISTENCY = {"rule": "consistency", "representations": "first", "n_draws": 1000}
PER_TREATMENT = N_PLATES * WELLS_EACH * CROPS_EACH


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> Catalog:
    """Read only: tests that add rows take a copy."""
    return planted_catalog(tmp_path_factory.mktemp("planted") / "catalog")


@pytest.fixture
def own(screen: Catalog, tmp_path: Path) -> Catalog:
    """A copy of the screen to add to."""
    shutil.copytree(screen.root, tmp_path / "own")
    return cytolake.catalog.open(tmp_path / "own")


@pytest.fixture
def run(tmp_path: Path):
    """Curate under steps."""

    def run_steps(catalog: Catalog, *steps: dict, name: str = "tried", seed: int = 0) -> Curation:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"steps": list(steps), "seed": seed}))
        return curate(catalog, CurateConfig(name=name, folder=str(tmp_path)))

    return run_steps


def kept(catalog: Catalog, curation: Curation) -> set[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    return set(rows.column("crop_id").to_pylist())


def kept_perturbations(catalog: Catalog, curation: Curation) -> Counter[str]:
    by_label = reasons_by(catalog, curation.curation_id, "perturbation")
    return Counter({label: reasons[""] for label, reasons in by_label.items() if "" in reasons})


# consistency


def test_conditions_that_do_nothing_go_and_those_that_do_something_stay(screen, run):
    curation = run(screen, CONSISTENCY)
    found = kept_perturbations(screen, curation)
    active = {name for name in TREATMENTS if name.startswith("active")}
    assert {name for name in TREATMENTS if name in found} == active
    assert all(found[name] == PER_TREATMENT for name in active), "a condition stays whole or goes whole"
    assert found["negative control"] == N_PLATES * CONTROLS.count("negative") * CROPS_EACH
    assert found["positive control"] == N_PLATES * CONTROLS.count("positive") * CROPS_EACH
    assert curation.reasons == {"consistency: p 0.01 or more": 16 * PER_TREATMENT}


def test_passing_under_one_of_two_representations_is_enough(screen, run):
    both = run(screen, CONSISTENCY | {"representations": ["first", "second"]})
    expected = {name for name in TREATMENTS if not name.startswith("inert")}
    assert set(kept_perturbations(screen, both)) & set(TREATMENTS) == expected


def test_what_each_experiment_said_is_kept_as_evidence(screen, run):
    curation = run(screen, CONSISTENCY, name="evidence")
    rows = screen.table("consistency_tests", where=f"curation_id = '{curation.curation_id}'").to_pylist()
    assert len(rows) == len(TREATMENTS) * (3 + 1), "three batches, and all of them combined"
    combined = {row["perturbation"]: row for row in rows if row["experiment"] == ""}
    assert all((combined[name]["p_value"] < 0.01) == name.startswith("active") for name in TREATMENTS)
    assert combined["inert-0"]["n_wells"] == N_PLATES * WELLS_EACH
    assert {row["experiment"] for row in rows} == {"", '["S", "B0"]', '["S", "B1"]', '["S", "B2"]'}
    crop_details = details(screen, curation.curation_id)
    q_values = false_discovery_control([combined[name]["p_value"] for name in TREATMENTS])
    assert set(crop_details.values()) == {
        f"p = {combined[name]['p_value']:.3g}, q = {q:.3g}"
        for name, q in zip(TREATMENTS, q_values, strict=True)
        if "active" not in name
    }


def test_a_shift_of_a_whole_plate_is_no_effect(own, run):
    wells = plate_labels()
    shift = np.array([100.0 * int(well["plate"][1:]) for well in wells])[:, None, None]
    add_embeddings(own, wells, "shifted", (well_vectors(wells, "active") + shift).astype(np.float32))
    first = run(own, CONSISTENCY, name="first")
    shifted = run(own, CONSISTENCY | {"representations": "shifted"}, name="second")
    assert kept(own, first) == kept(own, shifted)


@pytest.mark.parametrize("change", [{"experiment": "plate"}, {"is_stratified": False}, {"sphere": False}])
def test_effects_this_strong_are_found_in_other_ways_too(screen, run, change):
    found = kept_perturbations(screen, run(screen, CONSISTENCY | change))
    assert {name for name in TREATMENTS if name in found} == {name for name in TREATMENTS if "active" in name}


def test_with_ray_and_without_it_the_result_is_the_same(screen, run, local_ray, monkeypatch):
    def evidence(curation: Curation) -> list[tuple]:
        rows = screen.table("consistency_tests", where=f"curation_id = '{curation.curation_id}'").to_pylist()
        return sorted((row["condition"], row["experiment"], row["cosine"], row["p_value"]) for row in rows)

    spread = run(screen, CONSISTENCY, name="spread")
    monkeypatch.delitem(sys.modules, "ray")
    here = run(screen, CONSISTENCY, name="here")
    assert kept(screen, spread) == kept(screen, here)
    assert evidence(spread) == evidence(here)


def test_conditions_that_no_experiment_can_test_say_so(own, run):
    lone = [
        {"plate_id": "P0", "plate": "P0", "batch": "B0", "well": "Z01", "well_id": "P0/Z01", "perturbation": "lone"}
        | {"guide": "", "control": ""}
    ]
    add_screen(own, lone)
    curation = run(own, CONSISTENCY)
    (reason,) = reasons_by(own, curation.curation_id, "perturbation")["lone"]
    assert reason.startswith("consistency: not tested, fewer than 2 wells with embeddings in each experiment")


# support


def support_screen(tmp_path: Path) -> Catalog:
    """Conditions by what is wrong with them, each in wells of plates P0 to P5 of batches B0 to B2."""
    catalog = cytolake.catalog.open(tmp_path / "support", create=True)
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


def test_only_conditions_that_are_known_and_repeated_stay(tmp_path, run):
    catalog = support_screen(tmp_path)
    curation = run(catalog, {"rule": "support"})
    assert reasons_by(catalog, curation.curation_id, "perturbation") == {
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


def test_plates_or_batches_count_as_experiments_as_the_spec_says(tmp_path, run):
    catalog = support_screen(tmp_path)
    asked = {"rule": "support", "condition": "perturbation", "min_experiments": 4, "min_wells": 2}
    by_plate = kept_perturbations(catalog, run(catalog, asked | {"experiment": "plate"}, name="by_plate"))
    assert set(by_plate) == {"enough", "few experiments", "dosed", "DMSO"}
    by_batch = kept_perturbations(catalog, run(catalog, asked | {"experiment": "batch"}, name="by_batch"))
    assert set(by_batch) == {"DMSO"}


# undersample_controls


def test_of_each_plate_a_share_of_the_control_wells_stays_whole(screen, run):
    curation = run(screen, {"rule": "undersample_controls"})
    left = Counter(crop.rsplit("/", 1)[0] for crop in kept(screen, curation))
    assert set(left.values()) == {CROPS_EACH}
    rows = screen.sql("SELECT well_id, plate_id, control FROM wells WHERE control <> ''").to_pylist()
    per_plate = Counter((row["plate_id"], row["control"]) for row in rows if row["well_id"] in left)
    # 30 % of 12 negative and 10 % of 10 positive control wells
    assert per_plate == {(f"P{p}", kind): n for p in range(N_PLATES) for kind, n in (("negative", 4), ("positive", 1))}
    assert set(curation.reasons) == {
        "undersample_controls: beyond 0.3 of negative control wells",
        "undersample_controls: beyond 0.1 of positive control wells",
    }


def test_which_controls_stay_follows_the_seed_and_a_larger_share_keeps_those_of_a_smaller_one(screen, run):
    small = kept(screen, run(screen, {"rule": "undersample_controls", "negative_share": 0.25}))
    large = kept(screen, run(screen, {"rule": "undersample_controls", "negative_share": 0.5}))
    other = kept(screen, run(screen, {"rule": "undersample_controls", "negative_share": 0.25}, seed=1))
    assert small < large
    assert small != other
    assert len(small) == len(other)


def test_a_share_of_0_may_still_leave_some_wells(screen, run):
    nothing = {"rule": "undersample_controls", "negative_share": 0.0, "positive_share": 0.0}
    assert "negative control" not in kept_perturbations(screen, run(screen, nothing | {"min_wells": 0}))
    some = kept_perturbations(screen, run(screen, nothing | {"min_wells": 2}))
    assert some["negative control"] == some["positive control"] == 2 * N_PLATES * CROPS_EACH


# qc


def test_a_failing_well_or_plate_loses_its_crops_where_the_rule_asks_for_that(own, run):
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
        ],
    )
    all_crops = own.table("crops").num_rows
    site = run(own, {"rule": "qc", "qc_id": "q"}, name="site")
    assert site.reasons == {"qc: blurred": CROPS_EACH}
    well = run(own, {"rule": "qc", "qc_id": "q", "levels": ["site", "well"]}, name="well")
    assert well.reasons == {"qc: blurred": CROPS_EACH, "qc: well few_cells": CROPS_EACH}
    every = run(own, {"rule": "qc", "qc_id": "q", "levels": ["site", "well", "plate"]}, name="every")
    assert every.reasons["qc: plate drifted"] == all_crops // N_PLATES
    assert every.n_kept == all_crops - all_crops // N_PLATES - 2 * CROPS_EACH
    named = run(own, {"rule": "qc", "qc_id": "q", "levels": ["well", "plate"], "rules": "few_cells"}, name="named")
    assert named.reasons == {"qc: well few_cells": CROPS_EACH}


def test_verdicts_written_before_there_were_levels_count_as_those_of_sites(own, run):
    add_verdicts(own, "old", [{"level": None, "site_id": "P0/W001", "is_pass": False}])
    assert run(own, {"rule": "qc", "qc_id": "old"}).reasons == {"qc: blurred": CROPS_EACH}


# duplicates


@pytest.fixture
def copied(tmp_path: Path) -> Catalog:
    """A screen whose wells W000 to W009 of P0 have copies W010 to W019: five of the pixels, five near ones."""
    wells = plate_labels()
    vectors = well_vectors(wells, "active")
    for n in range(10):
        vectors[10 + n] = vectors[n] + 0.05 * np.random.default_rng(n).standard_normal(vectors.shape[1:])
        if n < 5:
            values = dict.fromkeys(("mean", "sd", "p01", "p50", "p99", "max", "noise_share"), 0.5 + n)
            values |= {"laplacian_variance": 0.1 * n, "focus_slope": -float(n)}
            wells[n] |= {"metrics": values}
            wells[10 + n] |= {"metrics": values}
    catalog = cytolake.catalog.open(tmp_path / "copied", create=True)
    add_screen(catalog, wells)
    add_embeddings(catalog, wells, "first", vectors)
    return catalog


def pairs(n: range) -> set[frozenset[str]]:
    return {frozenset((f"P0/W{i:03d}", f"P0/W{10 + i:03d}")) for i in n}


def gone_and_originals(catalog: Catalog, curation: Curation) -> set[frozenset[str]]:
    found = details(catalog, curation.curation_id)
    return {frozenset((crop.rsplit("/", 1)[0], detail.split(",")[0].split()[1])) for crop, detail in found.items()}


def test_of_two_sites_with_the_same_pixels_one_goes_and_says_which_it_repeats(copied, run):
    curation = run(copied, {"rule": "exact_duplicates"})
    assert curation.reasons == {"exact_duplicates: same pixels as another site": 5 * CROPS_EACH}
    assert gone_and_originals(copied, curation) == pairs(range(5))


@pytest.mark.parametrize("level", ["site", "crop"])
def test_near_copies_go_and_nothing_else_does(copied, run, level):
    curation = run(copied, {"rule": "near_duplicates", "min_cosine": 0.98, "level": level})
    assert curation.reasons == {f"near_duplicates: cosine 0.98 or more to another {level}": 10 * CROPS_EACH}
    if level == "site":
        assert gone_and_originals(copied, curation) == pairs(range(10))
    left = Counter(crop.rsplit("/", 1)[0] for crop in kept(copied, curation))
    assert set(left.values()) == {CROPS_EACH}, "of a site that is copied crop by crop, all crops stay or all go"


def test_which_copy_stays_is_drawn_by_the_seed(copied, run):
    outcomes = {
        frozenset(kept(copied, run(copied, {"rule": "exact_duplicates"}, seed=seed, name=f"s{seed}")))
        for seed in range(4)
    }
    assert len(outcomes) > 1
    again = run(copied, {"rule": "exact_duplicates"}, {"rule": "where", "where": "true"}, seed=0, name="again")
    assert frozenset(kept(copied, again)) in outcomes


def test_a_copy_of_what_an_earlier_rule_excluded_stays(copied, run):
    where = {"rule": "where", "where": "well NOT IN ('W000', 'W001', 'W002', 'W003', 'W004')"}
    assert run(copied, where, {"rule": "exact_duplicates"}).steps[1].n_removed == 0


def test_crops_without_an_embedding_cannot_be_compared_and_say_so(own, run):
    lone = [
        {"plate_id": "P0", "plate": "P0", "batch": "B0", "well": "Z01", "well_id": "P0/Z01", "perturbation": "lone"}
        | {"guide": "", "control": ""}
    ]
    add_screen(own, lone)
    asked = {"rule": "near_duplicates", "representation": "first", "min_cosine": 0.99}
    assert run(own, asked).reasons == {"near_duplicates: no embedding": CROPS_EACH}


# cluster_balanced


def test_rare_kinds_of_images_weigh_more_afterwards_and_no_cluster_crowds_out_others(tmp_path, run):
    """Six blobs of very different size in embedding space."""
    wells = plate_labels()
    blob = np.random.default_rng(0).choice(6, len(wells), p=[0.5, 0.2, 0.12, 0.08, 0.06, 0.04])
    vectors = 10 * np.eye(6)[blob][:, None, :] + np.random.default_rng(1).standard_normal((len(wells), CROPS_EACH, 6))
    catalog = cytolake.catalog.open(tmp_path / "blobs", create=True)
    add_screen(catalog, wells)
    add_embeddings(catalog, wells, "blobs", vectors.astype(np.float32))
    blob_of = {well["well_id"]: int(b) for well, b in zip(wells, blob, strict=True)}
    sizes = Counter(blob_of[well["well_id"]] for well in wells for _ in range(CROPS_EACH))
    asked = {"rule": "cluster_balanced", "representation": "blobs", "n_clusters": 20, "n_kinds": 6}
    chosen = run(catalog, asked | {"max_crops": 300})
    found = Counter(blob_of[crop.rsplit("/", 1)[0]] for crop in kept(catalog, chosen))
    assert chosen.n_kept == 300
    assert found[5] >= 0.9 * min(50, sizes[5]), "the rarest, 4 % of all, gives as much as any other"
    assert found[0] / 300 < 0.5 * sizes[0] / chosen.n_considered, "the most common"
    capped = run(catalog, asked | {"max_crops_per_cluster": 5}, name="capped")
    assert capped.n_kept == 20 * 5
    of_cluster = Counter(details(catalog, capped.curation_id).values())
    assert set(of_cluster) == {f"cluster {n}" for n in range(20)}


def test_within_a_cluster_perturbations_are_balanced(screen, run):
    step = {"rule": "cluster_balanced", "representation": "first", "n_clusters": 1, "max_crops": 26 * 20}
    found = kept_perturbations(screen, run(screen, step))
    assert set(found.values()) == {20}, "24 treatments and 2 controls"


# a curation as a whole


def test_a_crop_keeps_the_reason_of_the_first_rule_that_excludes_it(screen, run):
    where = {"rule": "where", "where": "plate <> 'P0'"}
    curation = run(screen, where, CONSISTENCY)
    by_plate = reasons_by(screen, curation.curation_id, "plate")
    assert set(by_plate["P0"]) == {"not where plate <> 'P0'"}
    assert set(by_plate["P1"]) == {"", "consistency: p 0.01 or more"}
    assert [step.rule for step in curation.steps] == ["where", "consistency"]


def test_more_embeddings_of_other_models_change_nothing(own, run):
    first = run(own, CONSISTENCY)
    before = own.versions()
    add_embeddings(own, plate_labels(), "another", well_vectors(plate_labels(), "inert"), day=3)
    assert run(own, CONSISTENCY) == first
    assert own.versions()["curations"] == before["curations"]


def test_the_pinned_versions_give_the_same_choice_again(own, run):
    steps = (CONSISTENCY, {"rule": "undersample_controls"}, {"rule": "near_duplicates", "representation": "first"})
    curation = run(own, *steps)
    pinned = run_row(own, curation.curation_id)["table_versions"]
    assert {"crops", "wells", "embeddings", "representations"} <= set(pinned)
    later = [well | {"plate_id": "P9", "plate": "P9", "well_id": f"P9/{well['well']}"} for well in plate_labels()[:50]]
    add_screen(own, later)
    assert run(own, *steps).curation_id != curation.curation_id
    old = own.at(pinned)
    crops = old.sql("SELECT * FROM crops ORDER BY crop_id")
    assert crops.num_rows == curation.n_considered
    assert set(kept(own, curation)) <= set(crops.column("crop_id").to_pylist())


def test_two_catalogs_with_the_same_content_choose_the_same(screen, run, tmp_path):
    wells = plate_labels()
    other = cytolake.catalog.open(tmp_path / "other", create=True)
    add_embeddings(other, wells, "first", well_vectors(wells, "active"), kind="untrained")
    add_screen(other, wells)
    steps = (CONSISTENCY, {"rule": "undersample_controls"}, {"rule": "cap", "max_crops_per_perturbation": 7})
    assert kept(screen, run(screen, *steps)) == kept(other, run(other, *steps))


def test_groups_are_equal_in_all_columns_and_only_then(screen):
    crops = screen.sql("SELECT crops.*, perturbation FROM crops JOIN wells USING (well_id) ORDER BY crop_id")
    considered = Considered(name="t", catalog=screen, crops=crops, kept=np.ones(crops.num_rows, bool), seed=0)
    groups, first = considered.groups(["plate", "perturbation"])
    labels = list(zip(crops["plate"].to_pylist(), crops["perturbation"].to_pylist(), strict=True))
    assert len(set(zip(labels, groups.tolist(), strict=True))) == len(set(labels)) == len(first)
    assert all(groups[row] == number for number, row in enumerate(first.tolist()))
