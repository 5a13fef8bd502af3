"""Percent replicating, grit, chromosome arms and measured features of a small screen, from tables to scores."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.empty_catalog import empty_catalog

from cytolake.benchmark.leaderboard import leaderboard
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.catalog.ingest.published_wells import import_wells
from cytolake.exchange.external import import_embeddings
from cytolake.exchange.vector_tables import ExternalTable
from cytolake.reports.leaderboard_page import write_leaderboard
from cytolake.screens.positions import name_of_well

pytestmark = pytest.mark.usefixtures("without_layout_warnings")

DIM, N_GENES, N_CONTROLS, N_PLATES = 24, 60, 20, 4
ARMS = ("1p", "1q", "2p")
GENES = [f"G{i:02d}" for i in range(N_GENES)]
UNEXPRESSED = {gene for i, gene in enumerate(GENES) if i % 20 < 8}
"""Of each arm's 20 genes."""


def arm_of(gene):
    return ARMS[GENES.index(gene) // 20]


@pytest.fixture(scope="module")
def wells():
    """Each of 4 plates in 2 batches holds every gene once, pathways across arms, and 20 controls."""
    rows = [
        {
            "screen": "s", "plate": f"p{plate}", "batch": f"b{plate % 2}", "well": name_of_well(i // 24, i % 24),
            "perturbation": gene or "none", "gene": gene, "guide": gene,
            "pathway": f"m{GENES.index(gene) % 20}" if gene else "", "control": "" if gene else "negative",
        }
        for plate in range(N_PLATES)
        for i, gene in enumerate([*GENES, *[""] * N_CONTROLS])
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def vectors(wells):
    """Pathways under what each arm's cuts have in common; an unexpressed gene has the latter alone."""
    rng = np.random.default_rng(0)
    of_pathway = {f"m{i}": rng.normal(size=DIM) for i in range(20)}
    of_arm = {arm: 5 * rng.normal(size=DIM) for arm in ARMS}
    effects = []
    for gene, pathway in zip(wells["gene"].to_pylist(), wells["pathway"].to_pylist(), strict=True):
        effect = np.zeros(DIM)
        if gene:
            effect = of_arm[arm_of(gene)] + (0 if gene in UNEXPRESSED else of_pathway[pathway])
        effects.append(effect)
    return np.stack(effects) + 0.3 * rng.normal(size=(len(effects), DIM))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory, wells, vectors):
    catalog = empty_catalog(tmp_path_factory.mktemp("root"))
    import_wells(catalog, wells)
    labels = {name: tuple(wells[name].to_pylist()) for name in ("screen", "plate", "well")}
    noise = np.random.default_rng(1).normal(size=vectors.shape)
    for name, each in (("planted", vectors), ("noise", noise)):
        import_embeddings(catalog, ExternalTable(name, each.astype(np.float32), labels), name)
    return catalog


def scored(catalog, *tasks, names=("planted",), alignments=("none",), **fields):
    rows = catalog.table("representations").to_pylist()
    ids = [row["representation_id"] for name in names for row in rows if row["architecture"] == name]
    config = ProfileBenchmarkConfig(draws=49, tasks=tasks, alignments=alignments, **fields)
    scores = score_profiles(catalog, ids, config)
    return dataclasses.replace(scores, rows=[row for row in scores.rows if row["representation_id"] in ids])


def row_of(scores, benchmark, metric, label="perturbation", **where):
    (row,) = (
        row
        for row in scores.rows
        if (row["benchmark"], row["metric"], row["label"]) == (benchmark, metric, label)
        and all(row[name] == value for name, value in where.items())
    )
    return row


@pytest.fixture
def arms(tmp_path):
    path = tmp_path / "arms.csv"
    lines = [f"{gene},{arm_of(gene)},{str(gene in UNEXPRESSED).lower()}" for gene in GENES]
    path.write_text("\n".join(["gene,arm,unexpressed", *lines]) + "\n")
    return path


@pytest.fixture
def features(tmp_path, wells, vectors):
    """A shape and an intensity that the vectors hold, a texture that they don't; the last plate was not measured."""
    rng = np.random.default_rng(2)
    keep = np.asarray([plate != "p3" for plate in wells["plate"].to_pylist()])
    mixed = vectors @ rng.normal(size=(DIM, 2))
    offset = 100 * np.asarray([int(plate[1:]) for plate in wells["plate"].to_pylist()])
    columns = {
        "Metadata_Plate": np.asarray(wells["plate"].to_pylist())[keep],
        "Metadata_Well": [f"{name[0].lower()}{int(name[1:])}" for name in np.asarray(wells["well"].to_pylist())[keep]],
        "ImageNumber": np.arange(keep.sum()),
        "Cells_AreaShape_Area": mixed[keep, 0] + offset[keep],
        "Nuclei_Intensity_Mean": 1000 * mixed[keep, 1],
        "Cells_Texture_Noise": rng.normal(size=keep.sum()),
        "Cells_Texture_Missing": np.where(np.arange(keep.sum()) == 5, np.nan, 1.0),
    }
    path = tmp_path / "features.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_planted_perturbations_replicate_and_noise_replicates_as_chance_has_it(catalog):
    planted = scored(catalog, "percent_replicating", "grit")
    noise = scored(catalog, "percent_replicating", "grit", names=("noise",))
    for metric in ("share_replicating", "share_replicating_within_plates"):
        row = row_of(planted, "percent_replicating", metric)
        assert row["value"] > 0.95
        assert row["ci_low"] < row["value"] <= row["ci_high"]
        assert (row["n_test"], json.loads(row["details"])["chance"]) == (N_GENES, 0.05)
        assert set(json.loads(row["details"])["q_values"]) == set(GENES)
        assert row_of(noise, "percent_replicating", metric)["value"] < 0.2
    row = row_of(planted, "grit", "mean_grit")
    assert row["ci_low"] > 2
    assert json.loads(row["details"])["n_controls"] == N_PLATES * N_CONTROLS
    row = row_of(noise, "grit", "mean_grit")
    assert abs(row["value"]) < 0.5


def test_pathways_across_arms_are_found_once_what_arms_share_is_taken_out(catalog, arms):
    before = row_of(scored(catalog, "relations"), "relation_recall", "recall_05_95", "pathway")
    scores = scored(catalog, "relations", chromosome_arms=str(arms), min_arm_genes=8)
    after = row_of(scores, "relation_recall", "recall_05_95", "pathway")
    assert after["value"] > before["value"] + 0.2
    assert (before["alignment"], after["alignment"]) == ("none", "none, chromosome_arms")
    assert json.loads(after["details"])["chromosome_arms"] == {
        "arms": 3, "wells": N_GENES * N_PLATES, "arms_of_too_few_genes": 0, "genes_without_arm": 0,
        "genes_averaged": "unexpressed",
    }  # fmt: skip
    ranked = leaderboard(catalog).to_pylist()
    assert {row["alignment"] for row in ranked if row["benchmark"] == "relation_recall"} >= {
        "none",
        "none, chromosome_arms",
    }


def test_the_arms_are_taken_out_after_the_alignment_and_controls_stay(catalog, arms):
    aligned = ("centre_scale",)
    fields = {"chromosome_arms": str(arms), "min_arm_genes": 8}
    scores = scored(catalog, "leakage", "activity", alignments=aligned, **fields)
    plain = scored(catalog, "leakage", "activity", alignments=aligned)
    assert {row["alignment"] for row in scores.rows} == {"centre_scale, chromosome_arms"}
    leakage = [row_of(each, "batch_leakage", "balanced_accuracy", "plate")["value"] for each in (scores, plain)]
    assert leakage[0] == leakage[1]  # it looks at the controls alone
    activity = [row_of(each, "activity_map", "mean_average_precision")["value"] for each in (scores, plain)]
    assert activity[0] < activity[1]  # unexpressed genes look like controls again


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        ("gene,place\nG00,1p\n", {}, "arms.csv: found the columns gene, place, expected gene, arm"),
        ("gene,arm\nG00,1p\nG00,1q\n", {}, "row 1 has the gene 'G00' and the arm '1q', and before it the arm 1p"),
        ("gene,arm,unexpressed\nG00,1p,perhaps\n", {}, "the column unexpressed is string"),
        ("gene,arm\nTP53,17p\n", {}, r"no chromosome arm has 21 genes among the 60 .*\(none has any"),
        (None, {}, "no chromosome arm has 21 unexpressed genes among the 60 that were perturbed .*1p has the most, 8"),
    ],
)
def test_arms_that_correct_nothing_stop_before_anything_is_scored(catalog, arms, text, fields, said):
    if text is not None:
        arms.write_text(text)
    with pytest.raises(ValueError, match=said):
        scored(catalog, "relations", chromosome_arms=str(arms), **fields)


def test_features_that_the_vectors_hold_are_predicted_on_held_out_plates_and_batches(catalog, features):
    scores = scored(catalog, "feature_regression", features=str(features))
    of_noise = scored(catalog, "feature_regression", names=("noise",), features=str(features))
    assert not scores.left_out
    for split in ("plate", "batch"):
        check_features(split, scores, of_noise)


def check_features(split, scores, of_noise):
    planted, noise = ({row["label"]: row for row in each.rows if row["split"] == split} for each in (scores, of_noise))
    assert set(planted) == {"all", "AreaShape", "Intensity", "Texture"}
    for family in ("AreaShape", "Intensity"):
        assert planted[family]["value"] > 0.95
        assert noise[family]["value"] < 0.1
        assert planted[family]["ci_low"] <= planted[family]["value"] <= planted[family]["ci_high"]
    assert abs(planted["Texture"]["value"]) < 0.1
    details = json.loads(planted["AreaShape"]["details"])
    n_measured = 3 * (N_GENES + N_CONTROLS)
    assert planted["AreaShape"]["n_test"] == details["n_matched_wells"] == n_measured
    assert details["n_wells_without_features"] == N_GENES + N_CONTROLS
    assert (details["n_incomplete_features"], details["n_rows_of_other_wells"]) == (1, 0)
    assert set(details["of_compartment"]) == {"Cells"}
    assert len(details[f"of_{split}"]) == {"plate": 3, "batch": 2}[split]


def test_the_page_names_the_plates_held_out_and_the_q_values(catalog, features, tmp_path):
    scores = scored(catalog, "feature_regression", "percent_replicating", features=str(features))
    ids = sorted({row["representation_id"] for row in scores.rows})
    page = write_leaderboard(catalog, tmp_path / "page.html", title="t", representation_ids=ids).read_text("utf-8")
    assert "median r2 of AreaShape, held out by plate, alignment none" in page
    assert "How much of the measured features of a well" in page
    assert "p adjusted for the number tested (Benjamini-Hochberg)" in page


def test_other_features_are_scored_anew_and_the_same_are_not(catalog, features):
    first, again = (scored(catalog, "feature_regression", features=str(features)) for _ in range(2))
    assert {row["score_id"] for row in first.rows} == {row["score_id"] for row in again.rows}
    table = pq.read_table(features)
    place = table.column_names.index("Cells_Texture_Noise")
    pq.write_table(table.set_column(place, "Cells_Texture_Noise", table["Nuclei_Intensity_Mean"]), features)
    changed = scored(catalog, "feature_regression", features=str(features))
    assert row_of(changed, "feature_regression", "median_r2", "Texture", split="plate")["value"] > 0.95


def test_without_a_table_the_reason_says_how_to_give_one(catalog):
    scores = scored(catalog, "feature_regression")
    assert scores.left_out["feature_regression, none"].startswith("no table of features: set benchmark.profiles.feat")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Metadata_Plate": "elsewhere"}, r"none of 240 rows is of one of the 320 wells .*plate \['elsewhere'\]"),
        ({"Metadata_Well": "A01"}, "rows 0 and 1 are both of plate p0, well A01. Expected one for each well"),
        ({"Metadata_Plate": None}, "expected Metadata_Plate, Metadata_Well and columns of numbers"),
    ],
)
def test_features_that_fit_no_well_are_refused_before_anything_is_scored(catalog, features, change, said):
    table = pq.read_table(features)
    for name, value in change.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if value is not None:
            table = table.add_column(place, name, pa.array([value] * table.num_rows))
    pq.write_table(table, features)
    with pytest.raises(ValueError, match=said):
        scored(catalog, "feature_regression", features=str(features))


def test_a_plate_name_of_two_screens_needs_the_column_screen(wells, vectors, features, tmp_path):
    both = pa.concat_tables([wells, wells.set_column(0, "screen", pa.array(["other"] * wells.num_rows))])
    catalog = empty_catalog(tmp_path / "root")
    import_wells(catalog, both)
    labels = {name: tuple(both[name].to_pylist()) for name in ("screen", "plate", "well")}
    doubled = np.concatenate([vectors, vectors]).astype(np.float32)
    import_embeddings(catalog, ExternalTable("planted", doubled, labels), "planted")
    with pytest.raises(ValueError, match=r"row 0 \(plate p0, well a1\) is of one of 2 screens"):
        scored(catalog, "feature_regression", features=str(features))
    table = pq.read_table(features)
    pq.write_table(table.append_column("Metadata_Screen", pa.array(["other"] * table.num_rows)), features)
    row = row_of(
        scored(catalog, "feature_regression", features=str(features)),
        "feature_regression", "median_r2", "AreaShape", split="plate",
    )  # fmt: skip
    assert row["value"] > 0.95
