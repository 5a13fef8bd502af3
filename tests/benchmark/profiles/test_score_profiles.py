"""All profile benchmarks of a screen with planted pathways, plate effects and dose responses."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

import cytolake.catalog
from cytolake.benchmark.leaderboard import leaderboard
from cytolake.benchmark.position_confounding import WellPlace
from cytolake.benchmark.profiles.compared_controls import ComparedControls, compared_controls
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.gene_sets import read_gene_sets
from cytolake.benchmark.profiles.profile_input import BenchmarkInput
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.benchmark.profiles.tasks import TASKS
from cytolake.benchmark.profiles.wells import Wells
from cytolake.catalog.declared import table_contract
from cytolake.embed.align import align_representation
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.stored import load_alignment
from cytolake.embed.alignment.variants import AlignmentConfig
from cytolake.reports.leaderboard_page import encoder_name
from cytolake.screens.positions import name_of_well

CONFIG = ProfileBenchmarkConfig(draws=49, seeds=(0, 1))
DIM, N_PLATES, N_GENES = 16, 4, 30
KINDS = ("trained", "untrained")


def plate_map(plate, batch, compounds=True):
    """96 wells: 30 genes of 10 pathways by two guides, a compound at four doses, the rest negative controls."""
    treatments = [
        {"perturbation": f"gene{g}", "gene": f"gene{g}", "pathway": f"pathway{g // 3}", "guide": f"gene{g}_{guide}"}
        for g in range(N_GENES)
        for guide in range(2)
    ]
    if compounds:
        treatments += [
            {"perturbation": f"drug {dose}", "compound": "drug", "dose": dose, "pathway": "pathway0"}
            for dose in (0.1, 1.0, 10.0, 100.0)
        ]
    treatments += [{"perturbation": "control", "control": "negative"}] * (96 - len(treatments))
    return [
        {
            "well_id": f"{plate}-{i:02d}", "plate_id": plate, "screen": "s", "plate": plate, "batch": batch,
            "well": name_of_well(*divmod(i, 12)), "row": i // 12, "column": i % 12,
            "is_negative_control": "control" in each, "has_images": True, **each,
        }
        for i, each in enumerate(treatments)
    ]  # fmt: skip


def vectors_of(wells, rng, signal):
    pathway = {f"pathway{p}": rng.normal(size=DIM) for p in range(N_GENES // 3)}
    gene = {f"gene{g}": rng.normal(size=DIM) for g in range(N_GENES)}
    plate = {f"p{p}": 4 * rng.normal(size=DIM) for p in range(N_PLATES)}
    rows = []
    for well in wells:
        effect = np.zeros(DIM)
        if "gene" in well:
            effect = pathway[well["pathway"]] + 0.7 * gene[well["gene"]]
        elif "compound" in well:
            effect = pathway["pathway0"] * (1 + np.log10(well["dose"])) / 3
        rows.append(plate[well["plate"]] + signal * effect + 0.5 * rng.normal(size=DIM))
    return np.asarray(rows)


def rows(table, rows):
    """Rows of a table, columns that they lack empty."""
    contract = table_contract(table)
    return contract.rows([dict.fromkeys(contract.schema.names) | row for row in rows])


def write(root, wells, vectors_of_kind):
    catalog = cytolake.catalog.open(root, create=True)
    catalog.append("wells", rows("wells", wells), transaction="wells")
    plates = [{"plate_id": plate, "plate": plate, "screen": "s"} for plate in sorted({w["plate"] for w in wells})]
    catalog.append("plates", rows("plates", plates), transaction="plates")
    for kind, vectors in vectors_of_kind.items():
        shared = {"representation_id": kind, "dim": DIM}
        representation = {
            "kind": kind, "model_id": kind, "architecture": "x", "block": 0, "pack_id": "pack",
            "pooling": "all" if kind == "pixel_statistics" else "mean", "created_at": datetime.now(UTC),
        }  # fmt: skip
        profiles = [
            {**shared, "well_id": w["well_id"], "plate_id": w["plate_id"], "n_crops": 1, "profile": v.tolist()}
            for w, v in zip(wells, vectors, strict=True)
        ]
        for row in profiles:
            del row["dim"]
        catalog.append("profiles", rows("profiles", profiles), transaction=f"profiles {kind}")
        catalog.append(
            "representations",
            rows("representations", [{**shared, **representation}]),
            transaction=f"representation {kind}",
        )
    return catalog


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    rng = np.random.default_rng(0)
    wells = [well for p in range(N_PLATES) for well in plate_map(f"p{p}", f"b{p % 2}")]
    vectors = {"trained": vectors_of(wells, rng, 1.0), "untrained": vectors_of(wells, rng, 0.0)}
    # What a plain measurement sees of the same wells: a mix of a few features, in units of its own.
    vectors["pixel_statistics"] = 1000 + 100 * vectors["trained"] @ rng.normal(size=(DIM, DIM))
    return write(tmp_path_factory.mktemp("root"), wells, vectors)


@pytest.fixture(scope="module")
def scores(catalog):
    return score_profiles(catalog, KINDS, CONFIG)


def value(scores, benchmark, metric, alignment="pca_cs", representation="trained"):
    (row,) = (
        row
        for row in scores.rows
        if (row["benchmark"], row["metric"], row["alignment"], row["representation_id"], row["seed"])
        == (benchmark, metric, alignment, representation, -1)
    )
    return row["value"]


@pytest.mark.parametrize(
    ("benchmark", "metric", "least_gain"),
    [
        ("relation_recall", "recall_05_95", 0.3),
        ("perturbation_consistency", "share_significant", 0.6),
        ("replicate_consistency", "kolmogorov_smirnov", 0.4),
        ("activity_map", "mean_average_precision", 0.3),
        ("mechanism_map", "mean_average_precision", 0.3),
        ("mechanism_nearest", "nsc", 0.4),
        ("dose_response", "share_increasing", 1.0),
        ("linear_separability", "balanced_top1_standardised", 0.5),
        ("nearest_neighbours", "balanced_top1", 0.3),
        ("reconstruction", "r2", 0.2),
        ("reconstruction", "structural_integrity_profiles", 0.05),
    ],
)
def test_planted_biology_is_found_where_it_is_and_not_where_it_is_not(scores, benchmark, metric, least_gain):
    assert value(scores, benchmark, metric) - value(scores, benchmark, metric, representation="untrained") >= least_gain


def test_alignment_removes_differences_between_plates_and_shows_the_pathways(scores):
    assert value(scores, "batch_leakage", "balanced_accuracy", "none") > 0.95
    assert value(scores, "batch_leakage", "balanced_accuracy") < 0.5
    unaligned, aligned = (value(scores, "relation_recall", "recall_05_95", each) for each in ("none", "pca_cs"))
    assert aligned >= unaligned
    assert value(scores, "activity_map", "mean_average_precision") > 0.1 + value(
        scores, "activity_map", "mean_average_precision", "none"
    )
    assert value(scores, "false_positives", "rate") < 0.15


def test_batches_mix_once_they_are_aligned(scores):
    assert value(scores, "batch_mixing", "ilisi_normalised", "none") < 0.3
    assert value(scores, "batch_mixing", "ilisi_normalised") > 0.8


def test_scores_that_hold_batches_out_are_the_mean_over_the_seeds(scores):
    found = {
        row["seed"]: row["value"]
        for row in scores.rows
        if (row["benchmark"], row["metric"], row["alignment"], row["representation_id"])
        == ("linear_separability", "top1_standardised", "pca_cs", "trained")
    }
    assert set(found) == {-1, *CONFIG.seeds}
    assert found[-1] == pytest.approx(np.mean([found[seed] for seed in CONFIG.seeds]))


@pytest.mark.slow
def test_nothing_is_decoded_where_no_pixel_statistics_are_scored(tmp_path):
    wells = [well for p in range(2) for well in plate_map(f"p{p}", f"b{p}")]
    catalog = write(tmp_path / "root", wells, {"trained": vectors_of(wells, np.random.default_rng(2), 1.0)})
    config = ProfileBenchmarkConfig(draws=99, tasks=("reconstruction", "batch_mixing"), alignments=("none",))
    scores = score_profiles(catalog, ["trained"], config)
    assert "pixel statistics" in scores.left_out["reconstruction, none"]
    assert {row["benchmark"] for row in scores.rows} == {"batch_mixing"}


def test_scores_are_in_the_table_with_their_intervals_classes_and_fitted_alignment(catalog, scores):
    stored = catalog.table("scores")
    assert stored.num_rows == len(scores.rows)
    for row in stored.to_pylist():
        # A distance of two samples is greater than that of what they are drawn from: its interval may lie below it.
        if row["ci_low"] is not None and row["benchmark"] != "replicate_consistency":
            assert row["ci_low"] - 1e-9 <= row["value"] <= row["ci_high"] + 1e-9
    (activity,) = catalog.table(
        "scores",
        where="benchmark = 'activity_map' and metric = 'mean_average_precision' and alignment = 'pca_cs' "
        "and representation_id = 'trained'",
    ).to_pylist()
    details = json.loads(activity["details"])
    assert set(details["normalised"]) == {f"gene{g}" for g in range(N_GENES)} | {
        f"drug {d}" for d in (0.1, 1.0, 10.0, 100.0)
    }
    fitted = load_alignment(catalog.root, details["alignment_id"])
    assert fitted.id == details["alignment_id"]


def test_what_has_been_scored_is_not_scored_again(catalog, scores):
    calls = []
    again = score_profiles(catalog, KINDS, CONFIG, lambda *where: calls.append(where))
    assert {row["score_id"] for row in again.rows} == {row["score_id"] for row in scores.rows}
    assert not calls
    assert catalog.table("scores").num_rows == len(scores.rows)


@pytest.mark.slow
def test_profiles_aligned_in_the_tables_score_as_those_aligned_on_the_way(catalog, scores):
    config = AlignmentConfig(variant="pca_cs", missing_controls=CONFIG.missing_controls)
    aligned = align_representation(catalog, "trained", config, level="well", align_by=CONFIG.align_by)
    # Without the tasks of other modules, which take the longest.
    tasks = tuple(task for task in CONFIG.tasks if task not in ("reconstruction", "linear_separability", "replicates"))
    found = score_profiles(catalog, [aligned], replace(CONFIG, tasks=tasks))
    of_aligned = [row for row in found.rows if row["representation_id"] == aligned]
    assert {row["alignment"] for row in of_aligned} == {"none"}
    expected = {
        (row["benchmark"], row["label"], row["metric"]): row["value"]
        for row in scores.rows
        if (row["representation_id"], row["alignment"]) == ("trained", "pca_cs")
    }
    got = {(row["benchmark"], row["label"], row["metric"]): row["value"] for row in of_aligned}
    # Nothing can be compared with the controls that these vectors were aligned on.
    of_controls = {"activity_map", "batch_leakage", "grit", "perturbation_magnitude"}
    expected = {key: value for key, value in expected.items() if key[0] not in of_controls and key in got}
    for task in ("activity", "grit", "leakage", "magnitude"):
        assert "aligned on these controls when it was stored" in found.left_out[f"{task}, none"]
    assert len(got) > 15
    assert got == pytest.approx(expected, abs=0.02)  # stored as float32: a rank or a draw may change places
    ranked = [encoder_name(row) for row in leaderboard(catalog).to_pylist() if row["representation_id"] == aligned]
    assert ranked
    assert all(name.endswith(", aligned (pca_cs)") for name in ranked)


def test_what_a_screen_does_not_allow_is_left_out_with_its_reason(tmp_path):
    wells = plate_map("p0", "b0", compounds=False)[:10] + plate_map("p0", "b0")[-2:]
    for well in wells:
        well.pop("pathway", None)
    catalog = write(tmp_path / "root", wells, {"trained": np.random.default_rng(1).normal(size=(12, DIM))})
    scores = score_profiles(catalog, ["trained"], ProfileBenchmarkConfig(draws=99, alignments=("none",)))
    assert "expected 12 or more" in scores.left_out["relations, none"]
    assert "no treated well has a pathway" in scores.left_out["mechanism, none"]
    assert "2 of 2 experiments" not in scores.left_out["replicates, none"]
    assert {row["benchmark"] for row in scores.rows} >= {"activity_map"}


def warnings_of(root, wells):
    catalog = write(root, wells, {"trained": np.random.default_rng(1).normal(size=(len(wells), DIM))})
    config = ProfileBenchmarkConfig(draws=99, tasks=("leakage",), alignments=("none",))
    return score_profiles(catalog, ["trained"], config).warnings


def test_labels_that_go_with_batches_and_layouts_that_repeat_are_warned_of(tmp_path):
    wells = [well for p in range(2) for well in plate_map(f"p{p}", f"b{p}")]
    for well in wells:
        if "gene" in well and int(well["gene"][4:]) % 2 != int(well["plate"][1:]):
            well["perturbation"] = ""
    _, tied, controls, repeated = warnings_of(tmp_path / "root", wells)
    assert tied.startswith("perturbation is confounded with batch: 30 of 34 values that two or more wells have")
    assert controls.startswith("control can be predicted from the row alone")
    assert "gene0 (s/b0)" in tied
    assert repeated.startswith(
        "the same layout on every plate: 4 of 4 values of perturbation, 10 of 10 values of pathway"
    )


def test_treatments_in_column_blocks_of_one_plate_are_warned_of(tmp_path):
    wells = plate_map("p0", "b0")
    for well in wells:
        well |= {"perturbation": f"drug{well['column'] // 3}", "is_negative_control": well["column"] < 3}
    once, drugs, _, controls = warnings_of(tmp_path / "root", wells)
    assert once == "one batch only: no statement about batches is possible."
    assert drugs.startswith("perturbation can be predicted from the column alone (balanced accuracy 1.00, chance 0.33")
    assert controls.startswith("control can be predicted from the column alone")


def test_a_table_with_one_row_for_each_gene_is_not_warned_of(tmp_path):
    wells = [well for p in range(2) for well in plate_map(f"p{p}", f"b{p}", compounds=False)]
    for i, well in enumerate(wells):
        well |= {"perturbation": f"gene{i}", "gene": f"gene{i}", "pathway": f"pathway{i // 8}"}
        well |= {"control": "", "is_negative_control": False}
    assert warnings_of(tmp_path / "root", wells) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": ("sorcery",)}, "profiles.tasks is"),
        ({"alignments": ()}, "expected one or more of none"),
        ({"align_by": "moon"}, "expected plate or batch"),
        ({"draws": 1}, "expected 19 or more"),
        ({"seeds": (1, 1)}, "expected different numbers"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ProfileBenchmarkConfig(**change)


def test_representations_that_are_not_there_are_named_as_such(catalog):
    with pytest.raises(ValueError, match="none of 1 representations has a pooling"):
        score_profiles(catalog, ["missing"], CONFIG)


def without_effects(n_plates=3, n_controls=24, n_perturbations=24, dim=32):
    """Wells of which none has an effect, though all that are treated share one; each perturbation twice on a plate."""
    names = ["control"] * n_controls + [f"p{i:02d}" for i in range(n_perturbations)] * 2
    plates = [f"plate {p}" for p in range(n_plates) for _ in names]
    names *= n_plates
    blank = ("",) * len(names)
    is_control = np.asarray([name == "control" for name in names])
    wells = Wells(
        well_id=tuple(f"w{i:04d}" for i in range(len(names))), plate=tuple(plates), batch=tuple(plates),
        perturbation=tuple(names), gene=blank, guide=blank, compound=blank, pathway=blank,
        dose=np.full(len(names), np.nan), is_control=is_control,
        place=tuple(WellPlace(plate, None, None, plate) for plate in plates),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    plate = np.unique(plates, return_inverse=True)[1]
    return wells, rng.normal(size=(len(names), dim)) + 3 * rng.normal(size=(n_plates, dim))[plate]


def input_of(wells, profiles, variant, config):
    fitted = fit_alignment(profiles, wells.plate, wells.is_control, AlignmentConfig(variant=variant))
    compared = compared_controls(profiles, wells, variant, config)
    gene_sets = read_gene_sets(wells, config, {})
    return BenchmarkInput(fitted.apply(profiles, wells.plate), wells, [], {}, gene_sets, config, variant, compared)


@pytest.mark.parametrize("task", ["magnitude", "activity"])
def test_aligned_wells_without_an_effect_do_not_differ_from_the_controls(task):
    """From the controls that `pca_cs` was fitted on, most do."""
    wells, profiles = without_effects(dim=64)
    config = ProfileBenchmarkConfig(draws=200)
    data = input_of(wells, profiles, "pca_cs", config)
    seen = replace(data, compared=ComparedControls(data.vectors, wells.is_control, False))
    share = {
        name: np.mean([p <= 0.05 for p in p_values_of(TASKS[task](each)).values()])
        for name, each in (("held out", data), ("seen", seen))
    }
    assert share["held out"] < 0.3
    assert share["seen"] > share["held out"] + 0.2


def p_values_of(scores):
    return next(row["details"]["p_values"] for row in scores if row["metric"] == "share_significant")


def test_a_shift_that_all_wells_share_makes_them_distinct_and_not_consistent():
    wells, profiles = without_effects()
    profiles[~wells.is_control] += 3
    data = input_of(wells, profiles, "pca_cs", ProfileBenchmarkConfig(draws=200))
    distinct, consistent = (p_values_of(TASKS[task](data)) for task in ("magnitude", "consistency"))
    assert max(distinct.values()) <= 0.05
    assert np.mean([p <= 0.05 for p in consistent.values()]) < 0.25


@pytest.mark.parametrize("task", ["consistency", "magnitude"])
def test_null_perturbations_that_are_named_are_the_null(task):
    wells, profiles = without_effects()
    names = tuple(f"p{i:02d}" for i in range(20))
    acting = np.asarray([name in ("p20", "p21") for name in wells.perturbation])
    profiles[acting] += 3 * np.random.default_rng(1).normal(size=profiles.shape[1])
    rows = list(
        TASKS[task](input_of(wells, profiles, "pca_cs", ProfileBenchmarkConfig(draws=200, null_perturbations=names)))
    )
    details = rows[0]["details"]
    assert details["null"] == "20 null perturbations"
    assert set(details["p_values"]) == set(details["q_values"]) == {"p20", "p21", "p22", "p23"}
    assert details["p_values"]["p20"] == details["p_values"]["p21"] == round(1 / 21, 4)
    assert all(q >= p for p, q in zip(details["p_values"].values(), details["q_values"].values(), strict=True))
    with pytest.raises(ValueError, match=r"1 of 1 are no perturbation or gene of the screen \(nobody\)"):
        list(TASKS[task](input_of(wells, profiles, "pca_cs", ProfileBenchmarkConfig(null_perturbations=("nobody",)))))
