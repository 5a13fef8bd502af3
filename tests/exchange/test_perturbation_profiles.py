"""Profiles by gene or perturbation come in without wells."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from tests.embed.stored_embeddings import planted_catalog

from cytolake.exchange.perturbation_profiles import import_perturbations, read_perturbation_table, read_perturbations

GENES = ["TP53", "MYC", "KRAS"]


@pytest.fixture
def frame():
    values = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    return pd.DataFrame({"Gene": GENES, "Mito": values[:, 0], "DAPI": values[:, 1]})


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "h5ad"])
def test_a_map_of_genes_comes_in_from_every_kind_of_file_and_makes_no_well(tmp_path, frame, kind):
    path = tmp_path / f"genes.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "h5ad":
        anndata.AnnData(frame[["Mito", "DAPI"]].to_numpy(), obs=frame[["Gene"]].set_index(frame["Gene"])).write_h5ad(
            path
        )
    else:
        frame.to_csv(path, index=False)
    catalog = planted_catalog(tmp_path / "catalog")
    before = catalog.table("wells").num_rows, catalog.table("plates").num_rows
    identity = import_perturbations(catalog, read_perturbation_table(path, "gene"), "periscope", screen="HeLa")
    assert (catalog.table("wells").num_rows, catalog.table("plates").num_rows) == before
    for wanted in (identity, "periscope"):
        found = read_perturbations(catalog, wanted)
        assert (found.level, found.names) == ("gene", tuple(sorted(GENES)))
        expected = frame.set_index("Gene").loc[list(found.names)]
        np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)


def test_the_same_rows_in_another_order_are_there_once(tmp_path, frame):
    catalog = planted_catalog(tmp_path / "catalog")
    ids = set()
    for name, rows in {"one": frame, "two": frame[::-1]}.items():
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        table = read_perturbation_table(tmp_path / f"{name}.csv", "gene")
        ids.add(import_perturbations(catalog, table, "periscope", screen="HeLa"))
    assert len(ids) == 1
    assert catalog.table("perturbation_profiles").num_rows == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Gene": ["TP53", "TP53", "MYC"]}, "names twice"),
        ({"Gene": ["TP53", "NA", "MYC"]}, "without a gene"),
        ({"Mito": [1.0, None, 2.0]}, "not finite"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, frame, change, said):
    frame.assign(**change).to_csv(tmp_path / "genes.csv", index=False)
    with pytest.raises(ValueError, match=said):
        read_perturbation_table(tmp_path / "genes.csv", "gene")


def test_a_table_without_a_column_of_names_says_which_it_has(tmp_path, frame):
    frame.rename(columns={"Gene": "entity"}).to_csv(tmp_path / "genes.csv", index=False)
    with pytest.raises(ValueError, match="found the columns entity, Mito, DAPI"):
        read_perturbation_table(tmp_path / "genes.csv", "gene")


def test_an_import_that_is_not_there_is_reported_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match="found 0 imports"):
        read_perturbations(planted_catalog(tmp_path / "catalog"), "periscope")
