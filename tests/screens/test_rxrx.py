"""Tables of RxRx3-core and RxRx1, in the layout that they are published in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytolake.benchmark.compound_gene import CompoundGeneConfig, compound_gene_activity
from cytolake.screens.rxrx import (
    CONFLICTS,
    perturbation_of_treatment,
    read_rxrx1,
    read_rxrx1_wells,
    read_rxrx3_core,
    read_rxrx3_core_truth,
    read_rxrx3_core_wells,
    screen_names_of,
)

DIM = 12  # more than ten features: their names are not in order as text

RXRX3_CORE = """\
well_id,experiment_name,plate,address,gene,treatment,SMILES,concentration,perturbation_type,cell_type
0001,gene-001,1,B02,TP53,TP53_guide_2,,,CRISPR,HUVEC
0002,gene-001,1,B03,EMPTY_control,EMPTY_control,,,CRISPR,HUVEC
0003,gene-001,1,B04,CRISPR_control,CRISPR_control_1,,,CRISPR,HUVEC
0004,compound-001,7,AA15,,Esomeprazole,"COC1=C(C)C |o1:3,5|",0.25,COMPOUND,HUVEC
"""
RXRX1 = """\
site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id
HUVEC-1_1_B02_1,HUVEC-1_1_B02,HUVEC,train,HUVEC-1,1,B02,1,treatment,s21721,1
HUVEC-1_1_B02_2,HUVEC-1_1_B02,HUVEC,train,HUVEC-1,1,B02,2,treatment,s21721,1
HUVEC-1_1_B03_1,HUVEC-1_1_B03,HUVEC,test,HUVEC-1,1,B03,1,negative_control,EMPTY,1138
HUVEC-1_1_B04_1,HUVEC-1_1_B04,HUVEC,test,HUVEC-1,1,B04,1,positive_control,s15652,1108
"""


def vectors_of(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def feature_table(ids, vectors, id_column="well_id") -> pa.Table:
    """Feature columns in the order of their names as text, as a join may leave them."""
    names = sorted(f"feature_{i}" for i in range(DIM))
    return pa.table({id_column: ids, **{name: vectors[:, int(name[8:])] for name in names}})


@pytest.fixture
def rxrx3(tmp_path):
    """Metadata, and embeddings in another order than the wells."""
    (tmp_path / "metadata_rxrx3_core.csv").write_text(RXRX3_CORE)
    vectors = vectors_of(4)
    order = [2, 0, 3, 1]
    ids = [f"{i + 1:04d}" for i in order]
    pq.write_table(feature_table(ids, vectors[order]), tmp_path / "embeddings.parquet")
    return tmp_path / "metadata_rxrx3_core.csv", tmp_path / "embeddings.parquet", vectors


def test_vectors_follow_the_metadata_and_features_their_numbers(rxrx3):
    metadata, embeddings, expected = rxrx3
    vectors, wells = read_rxrx3_core(metadata, embeddings)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected)
    assert wells["published_well_id"].to_pylist() == ["0001", "0002", "0003", "0004"]  # leading zeros stay
    assert wells["plate"].to_pylist() == ["gene-001_1"] * 3 + ["compound-001_7"]
    assert wells["well"].to_pylist() == ["B02", "B03", "B04", "AA15"]
    assert wells["perturbation"].to_pylist() == ["TP53", "EMPTY_control", "CRISPR_control_1", "Esomeprazole"]
    assert wells["control"].to_pylist() == ["", "negative", "", ""]
    assert wells["gene"].to_pylist() == ["TP53", "", "", ""]  # a control targets no gene
    assert wells["guide"].to_pylist() == ["TP53_guide_2", "", "", ""]
    assert wells["compound"].to_pylist() == ["", "", "", "Esomeprazole"]
    assert wells["dose"].to_pylist() == [None, None, None, 0.25]
    assert wells.equals(read_rxrx3_core_wells(metadata))


def test_lists_of_numbers_and_an_external_id_are_read_too(rxrx3, tmp_path):
    metadata, _, expected = rxrx3
    for name, type_ in (("list", pa.list_(pa.float64())), ("fixed", pa.list_(pa.float32(), DIM))):
        table = pa.table(
            {"external_well_id": ["0001", "0002", "0003", "0004"], "vector": pa.array(expected.tolist(), type_)}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
        np.testing.assert_array_equal(read_rxrx3_core(metadata, tmp_path / f"{name}.parquet")[0], expected)


def test_several_vectors_of_a_well_count_as_their_mean(rxrx3, tmp_path):
    metadata, _, expected = rxrx3
    ids = ["0001", "0002", "0003", "0004"]
    both = feature_table(ids * 2, np.concatenate([expected + 1, expected - 1]))
    pq.write_table(both, tmp_path / "twice.parquet")
    np.testing.assert_allclose(read_rxrx3_core(metadata, tmp_path / "twice.parquet")[0], expected, atol=1e-6)


def test_wells_without_a_counterpart_are_an_error_or_left_out_by_choice(rxrx3, tmp_path):
    metadata, _, expected = rxrx3
    pq.write_table(feature_table(["0004", "0001", "9999"], expected[:3]), tmp_path / "part.parquet")
    with pytest.raises(ValueError, match=r"2 rows of .*\(0002, 0003\), and 1 vectors no row \(9999\).*allow_missing"):
        read_rxrx3_core(metadata, tmp_path / "part.parquet")
    vectors, wells = read_rxrx3_core(metadata, tmp_path / "part.parquet", allow_missing=True)
    assert wells["published_well_id"].to_pylist() == ["0001", "0004"]
    np.testing.assert_array_equal(vectors, expected[[1, 0]])
    pq.write_table(feature_table(["8", "9"], expected[:2]), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"no well_id is in .* too \('8' against '0001'\)"):
        read_rxrx3_core(metadata, tmp_path / "other.parquet", allow_missing=True)


def test_files_of_another_layout_are_refused_with_what_is_missing(rxrx3, tmp_path):
    metadata, embeddings, _ = rxrx3
    (tmp_path / "other.csv").write_text(RXRX3_CORE.replace("experiment_name", "experiment"))
    with pytest.raises(ValueError, match="expected experiment_name too"):
        read_rxrx3_core(tmp_path / "other.csv", embeddings)
    (tmp_path / "twice.csv").write_text(RXRX3_CORE.replace("0002,", "0001,"))
    with pytest.raises(ValueError, match="well_id 0001 is in rows 0 and 1"):
        read_rxrx3_core(tmp_path / "twice.csv", embeddings)
    (tmp_path / "words.csv").write_text(RXRX3_CORE.replace("0.25", "high"))
    with pytest.raises(ValueError, match="concentration is 'high' in row 3"):
        read_rxrx3_core(tmp_path / "words.csv", embeddings)
    pq.write_table(pa.table({"id": ["0001"], "x": [1.0]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="columns id, x, expected well_id and feature_0"):
        read_rxrx3_core(metadata, tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("treatment", "expected"),
    [
        ("TP53_guide_2", "TP53"),
        ("EMPTY_control", "EMPTY_control"),
        ("CRISPR_control_3", "CRISPR_control_3"),
        ("ABT-199",) * 2,
    ],
)
def test_a_guide_becomes_its_gene_and_a_control_stays(treatment, expected):
    assert perturbation_of_treatment(treatment) == expected


def test_the_truth_is_in_micromolar_and_named_as_in_the_screen(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text(
        "gene_symbol,nM_value,measurement_type,database,treatment\n"
        'BCL2,4.4,"ec50, ic50","BindingDB, ChEMBL",ABT-199\n'
        "INTS15,20000.0,ic50,ChEMBL,ABT-263\n"
    )
    truth = read_rxrx3_core_truth(path, ["BCL2", "C7orf26"])
    assert truth.to_pylist() == [
        {"compound": "ABT-199", "gene": "BCL2", "activity_um": pytest.approx(0.0044)},
        {"compound": "ABT-263", "gene": "C7orf26", "activity_um": 20.0},
    ]
    assert screen_names_of(["PALS1", "MPP5", "X"], ["MPP5"]) == ["MPP5", "MPP5", "X"]


def test_read_tables_go_into_the_benchmark(rxrx3, tmp_path):
    metadata, embeddings, _ = rxrx3
    vectors, wells = read_rxrx3_core(metadata, embeddings)
    rows = wells.to_pylist()
    compounds = [i for i, row in enumerate(rows) if row["perturbation_type"] == "COMPOUND"]
    genes = [i for i, row in enumerate(rows) if row["perturbation_type"] == "CRISPR"]
    (tmp_path / "truth.csv").write_text(
        "gene_symbol,nM_value,treatment\nTP53,10,Esomeprazole\nEMPTY_control,50000,Esomeprazole\n"
    )
    result = compound_gene_activity(
        vectors[compounds],
        [rows[i]["perturbation"] for i in compounds],
        [rows[i]["dose"] for i in compounds],
        vectors[genes],
        [rows[i]["perturbation"] for i in genes],
        read_rxrx3_core_truth(tmp_path / "truth.csv"),
        CompoundGeneConfig(min_negatives=1, negatives_per_active=1, n_seeds=3),
    )
    assert result.summary["concentration"].unique().to_pylist() == ["max", "0.25"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_sites_of_rxrx1_become_wells(tmp_path, suffix):
    (tmp_path / "metadata.csv").write_text(RXRX1)
    sites = [line.split(",")[0] for line in RXRX1.splitlines()[1:]]
    of_site = vectors_of(4)
    table = feature_table(sites[::-1], of_site[::-1], "site_id")
    path = tmp_path / f"embeddings{suffix}"
    if suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        pq.write_table(table, path)
    vectors, wells = read_rxrx1(tmp_path / "metadata.csv", path)
    np.testing.assert_allclose(vectors, [of_site[:2].mean(axis=0), of_site[2], of_site[3]], atol=1e-6)
    expected = pd.DataFrame(
        {
            "published_well_id": ["HUVEC-1_1_B02", "HUVEC-1_1_B03", "HUVEC-1_1_B04"], "batch": ["HUVEC-1"] * 3,
            "plate": ["HUVEC-1_1"] * 3, "well": ["B02", "B03", "B04"], "perturbation": ["s21721", "EMPTY", "s15652"],
            "guide": ["s21721", "", "s15652"], "control": ["", "negative", "positive"], "cell_type": ["HUVEC"] * 3,
            "split": ["train", "test", "test"], "n_sites": [2, 1, 1],
        }
    )  # fmt: skip
    pd.testing.assert_frame_equal(wells.to_pandas(), expected)
    assert wells.equals(read_rxrx1_wells(tmp_path / "metadata.csv"))


def test_sites_that_disagree_cost_their_own_well_that_label(tmp_path):
    (tmp_path / "metadata.csv").write_text(RXRX1.replace("2,treatment,s21721", "2,treatment,s99"))
    wells = read_rxrx1_wells(tmp_path / "metadata.csv")
    assert wells["perturbation"].to_pylist() == ["", "EMPTY", "s15652"]
    assert wells["cell_type"].to_pylist() == ["HUVEC"] * 3
    assert wells[CONFLICTS].to_pylist() == ["sirna: s21721 and s99", "", ""]


def test_sites_of_one_well_on_two_plates_are_an_error(tmp_path):
    lines = RXRX1.splitlines()
    row = lines[2].split(",")
    row[lines[0].split(",").index("plate")] = "7"
    (tmp_path / "metadata.csv").write_text("\n".join([*lines[:2], ",".join(row), *lines[3:]]) + "\n")
    with pytest.raises(ValueError, match=r"well HUVEC-1_1_B02 has sites of .* or 7"):
        read_rxrx1_wells(tmp_path / "metadata.csv")
