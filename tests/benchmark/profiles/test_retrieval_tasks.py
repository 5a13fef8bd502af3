"""How wells become treatments, and siblings of one target: from a catalog of published profiles to the scores."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control
from tests.catalog.empty_catalog import empty_catalog

from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.catalog.ingest.published_wells import import_wells
from cytolake.exchange.external import import_embeddings
from cytolake.exchange.vector_tables import ExternalTable
from cytolake.screens.positions import name_of_well

pytestmark = pytest.mark.usefixtures("without_layout_warnings")

DIM = 24
PLATES = ("p0", "p1", "p2")


def score(root, wells, vectors, tasks, **fields):
    """Scores of well vectors without alignment, by benchmark, label and metric."""
    catalog = empty_catalog(root)
    columns = ("plate", "well", "batch", "perturbation", "gene", "guide", "pathway", "compound", "dose", "control")
    table = pa.Table.from_pylist([{"screen": "s"} | {name: well.get(name) for name in columns} for well in wells])
    import_wells(catalog, table)
    labels = {name: tuple(table[name].to_pylist()) for name in ("screen", "plate", "well")}
    made = import_embeddings(catalog, ExternalTable("x", np.asarray(vectors, np.float32), labels), "x")
    config = ProfileBenchmarkConfig(**{"draws": 49, "alignments": ("none",), "tasks": tasks, **fields})
    scores = score_profiles(catalog, [made], config)
    return {(row["benchmark"], row["label"], row["metric"]): row for row in scores.rows}, scores.left_out


def on_plates(treatments):
    return [
        {"plate": plate, "well": name_of_well(i // 24, i % 24), "perturbation": f"t{i}"} | each
        for plate in PLATES
        for i, each in enumerate(treatments)
    ]


@pytest.fixture(scope="module")
def bbbc021(real_data):
    """Wells of BBBC021 and their published profiles."""
    folder = real_data / "bbbc021_ljosa_profiles" / "morpheus" / "csvs"
    table = pd.read_csv(folder / "BBBC021_feature_selected_mad_robustize.csv")
    is_control = table["Metadata_Compound"] == "DMSO"
    wells = [
        {
            "plate": row.Metadata_Plate,
            "well": row.Metadata_Well,
            "batch": row.Metadata_Plate.split("_")[0],
            "perturbation": f"{row.Metadata_Compound}@{row.Metadata_Concentration}",
            "compound": "" if control else row.Metadata_Compound,
            "dose": row.Metadata_Concentration,
            "pathway": "" if control else row.Metadata_moa,
            "control": "negative" if control else "",
        }
        for row, control in zip(table.filter(regex="^Metadata_").itertuples(), is_control, strict=True)
    ]
    return wells, table.filter(regex="^(?!Metadata_)").to_numpy()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("fields", "aggregation", "mean_ap", "nsc", "nscb"),
    [({}, "median", 0.8174, 94 / 103, 68 / 92), ({"treatment_aggregation": "mean"}, "mean", 0.7738, 94 / 103, 67 / 92)],
)
def test_mechanisms_of_bbbc021_are_the_published_oracles_by_default(
    bbbc021, tmp_path, fields, aggregation, mean_ap, nsc, nscb
):
    found, left_out = score(tmp_path / "root", *bbbc021, ("mechanism", "nsc", "nscb"), **fields)
    assert not left_out
    rows = {metric: row for (_, _, metric), row in found.items()}
    assert rows["mean_average_precision"]["value"] == pytest.approx(mean_ap, abs=5e-5)
    assert rows["nsc"]["value"] == pytest.approx(nsc)
    assert rows["nscb"]["value"] == pytest.approx(nscb)
    assert {json.loads(row["details"])["aggregation"] for row in rows.values()} == {aggregation}


@pytest.mark.real_data
def test_medians_of_the_wells_of_bbbc021_are_the_oracles(bbbc021, real_data):
    wells, vectors = bbbc021
    oracle = pd.read_csv(real_data / "oracles" / "bbbc021_treatment_median.csv").set_index("Metadata_Treatment")
    keys = [None if well["control"] else well["perturbation"] for well in wells]
    names, medians = aggregated(vectors, keys, "median")
    assert set(names) == set(oracle.index)
    np.testing.assert_allclose(medians, oracle.loc[names].filter(regex="^(?!Metadata_)").to_numpy(), atol=1e-9)


def test_one_failed_well_misleads_the_mean_of_a_treatment_and_not_its_median(tmp_path):
    rng = np.random.default_rng(0)
    treatments = [{"compound": f"c{i}", "pathway": f"m{i // 3}", "dose": 1.0} for i in range(12)]
    wells = on_plates(treatments)
    mechanisms = rng.normal(size=(4, DIM))
    vectors = np.stack([mechanisms[i // 3] for _ in PLATES for i in range(12)]) + 0.3 * rng.normal(size=(36, DIM))
    vectors[:12] = 20 * rng.normal(size=(12, DIM))  # a plate that failed
    nearest = {}
    for name, fields in (("mean", {"treatment_aggregation": "mean"}), ("default", {})):
        found, _ = score(tmp_path / name, wells, vectors, ("nsc",), **fields)
        nearest[name] = found["mechanism_nearest", "pathway", "nsc"]["value"]
    assert nearest["default"] == 1.0
    assert nearest["mean"] < 0.7


def test_aggregation_is_the_mean_or_the_median_of_each_group():
    vectors = np.asarray([[0.0, 1], [9, 2], [1, 3], [5, 4], [2, 8]])
    keys = ["b", None, "b", "a", "b"]
    for how, expected in (("mean", [[1, 4], [5, 4]]), ("median", [[1, 3], [5, 4]])):
        names, groups = aggregated(vectors, keys, how)
        assert names == ["b", "a"]
        np.testing.assert_array_equal(groups, expected)
    assert aggregated(vectors, [None] * 5, "mean")[1].shape == (0, 2)


def test_compounds_of_one_target_gene_are_treatments_of_their_own(tmp_path):
    """Two compounds on the gene G0 at one dose: each is the other's neighbour, not one treatment."""
    treatments = [{"compound": f"c{i}", "gene": f"G{i // 2}", "pathway": f"m{i // 2}", "dose": 1.0} for i in range(8)]
    rng = np.random.default_rng(1)
    mechanisms = rng.normal(size=(4, DIM))
    vectors = np.stack([mechanisms[i // 2] for _ in PLATES for i in range(8)]) + 0.1 * rng.normal(size=(24, DIM))
    found, left_out = score(tmp_path / "root", on_plates(treatments), vectors, ("nsc",))
    assert not left_out
    row = found["mechanism_nearest", "pathway", "nsc"]
    assert (row["value"], row["n_test"]) == (1.0, 8)


def test_wells_of_compounds_are_no_knock_outs_of_the_target_that_they_name(tmp_path):
    rng = np.random.default_rng(2)
    genes = [
        {"gene": f"G{i:02d}", "guide": f"G{i:02d}_{k}", "pathway": f"m{i // 4}"} for i in range(20) for k in (1, 2)
    ]
    compounds = [{"compound": f"c{i}", "gene": f"G{i:02d}", "dose": 1.0, "pathway": f"m{i // 4}"} for i in range(20)]
    vectors = np.stack([rng.normal(size=DIM) for _ in PLATES for _ in genes + compounds])
    recall = {}
    for name, rows in (("genes alone", genes), ("with compounds", genes + compounds)):
        used = [i for i in range(len(vectors)) if i % 60 < len(rows)]
        found, _ = score(tmp_path / name, on_plates(rows), vectors[used], ("relations",))
        row = found["relation_recall", "pathway", "recall_05_95"]
        recall[name] = (row["value"], row["n_classes"], json.loads(row["details"])["aggregation"])
    assert recall["genes alone"] == recall["with compounds"]
    assert recall["genes alone"][1:] == (20, "mean")


def siblings(rng, strength, n_genes=20, n_targets=10):
    """Two guides of every gene, and of each of the first ones two compounds that look like its knock-out."""
    treatments = [{"gene": f"G{i:02d}", "guide": f"G{i:02d}_{k}"} for i in range(n_genes) for k in (1, 2)]
    treatments += [
        {"compound": f"drug{i}{k}", "gene": f"G{i:02d}", "dose": dose}
        for i in range(n_targets)
        for k in "ab"
        for dose in (1.0, 10.0)
    ]
    effects = strength * rng.normal(size=(n_genes, DIM))
    vectors = np.stack([effects[int(each["gene"][1:])] for _ in PLATES for each in treatments])
    return on_plates(treatments), vectors + rng.normal(size=vectors.shape)


LABELS = ("guides", "compounds", "compounds_and_genes")


def test_siblings_of_one_target_find_each_other_where_they_look_alike_and_not_elsewhere(tmp_path):
    planted, noise = (
        score(
            tmp_path / name,
            *siblings(np.random.default_rng(3), strength, n_genes=24, n_targets=20),
            ("sibling_retrieval",),
            draws=299,
        )[0]
        for name, strength in (("planted", 2.0), ("noise", 0.0))
    )
    for label, n_genes in zip(LABELS, (24, 20, 20), strict=True):
        row = planted["sibling_retrieval", label, "mean_average_precision"]
        assert row["value"] > 0.9
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["n_test"] == n_genes
        share = planted["sibling_retrieval", label, "share_significant"]
        assert share["value"] > 0.9
        assert share["ci_low"] < share["value"]
        details = json.loads(share["details"])
        assert details["aggregation"] == "median"
        names = sorted(details["p_values"])
        q = false_discovery_control([details["p_values"][name] for name in names])
        np.testing.assert_allclose([details["q_values"][name] for name in names], q, atol=1e-3)  # stored rounded
        normalised = noise["sibling_retrieval", label, "mean_normalised_average_precision"]
        assert abs(normalised["value"]) < 0.15
        assert noise["sibling_retrieval", label, "share_significant"]["value"] == 0


def test_doses_of_a_compound_are_not_siblings_and_one_guide_alone_has_none(tmp_path):
    rng = np.random.default_rng(5)
    wells, vectors = siblings(rng, 2.0)
    taken = [
        i
        for i, well in enumerate(wells)
        if well.get("guide", "_1").endswith("_1") and "b" not in well.get("compound", "")
    ]
    found, left_out = score(tmp_path / "root", [wells[i] for i in taken], vectors[taken], ("sibling_retrieval",))
    assert {label for _, label, _ in found} == {"compounds_and_genes"}
    assert not left_out
    alone = [i for i in taken if "compound" not in wells[i]]
    _, left_out = score(tmp_path / "alone", [wells[i] for i in alone], vectors[alone], ("sibling_retrieval",))
    assert "no target gene has two reagents (guides: none of 20 rows" in left_out["sibling_retrieval, none"]


def test_a_compound_without_a_gene_takes_the_most_potent_target_of_the_truth(tmp_path):
    wells, vectors = siblings(np.random.default_rng(6), 2.0)
    target = {well["compound"]: well.pop("gene") for well in wells if "compound" in well}
    truth = tmp_path / "truth.csv"
    lines = [f"{compound},{gene},0.1" for compound, gene in target.items()]
    lines += [f"{compound},G19,0.9" for compound in target] + ["drug0a,G18,5"]
    truth.write_text("\n".join(["compound,gene,activity_um", *lines]) + "\n")
    found, _ = score(tmp_path / "root", wells, vectors, ("sibling_retrieval",), compound_gene_truth=str(truth))
    row = found["sibling_retrieval", "compounds_and_genes", "mean_average_precision"]
    assert row["n_test"] == 10
    assert row["value"] > 0.9
    for well in wells:
        if "compound" in well:
            well["gene"] = target[well["compound"]]
    named, _ = score(tmp_path / "named", wells, vectors, ("sibling_retrieval",))
    assert named["sibling_retrieval", "compounds_and_genes", "mean_average_precision"]["value"] == row["value"]


@pytest.mark.parametrize("name", ["treatment_aggregation", "gene_aggregation"])
def test_an_aggregation_of_another_name_is_refused(name):
    with pytest.raises(ValueError, match=rf"profiles\.{name} is 'mode', expected one of mean, median"):
        ProfileBenchmarkConfig(**{name: "mode"})
