"""Published screens as wells and embeddings that fit each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.empty_catalog import empty_catalog

from cytolake.catalog.ingest.published_wells import import_wells
from cytolake.catalog.representations import find_representation
from cytolake.embed.aggregate import aggregate
from cytolake.exchange.external import import_embeddings
from cytolake.exchange.published_screens import read_release, read_wells_of_plate_map
from cytolake.screens.plate import ScreenError

RXRX3_CORE = """\
well_id,experiment_name,plate,address,gene,treatment,concentration,perturbation_type
gene-001_1_B02,gene-001,1,B02,TP53,TP53_guide_2,,CRISPR
gene-001_1_B03,gene-001,1,B03,EMPTY_control,EMPTY_control,,CRISPR
compound-001_7_AA15,compound-001,7,AA15,,Esomeprazole,0.25,COMPOUND
"""
RXRX1 = """\
site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id
HUVEC-1_1_B02_1,HUVEC-1_1_B02,HUVEC,train,HUVEC-1,1,B02,1,treatment,s21721,1
HUVEC-1_1_B02_2,HUVEC-1_1_B02,HUVEC,train,HUVEC-1,1,B02,2,treatment,s21721,1
HUVEC-1_1_B03_1,HUVEC-1_1_B03,HUVEC,train,HUVEC-1,1,B03,1,negative_control,EMPTY,1138
"""


def written(folder, text, id_column):
    """Metadata and embeddings whose vectors count up, in files."""
    ids = [line.split(",")[0] for line in text.splitlines()[1:]]
    vectors = np.arange(len(ids) * 2, dtype=np.float32).reshape(-1, 2)
    embeddings = pa.table({id_column: ids, "feature_0": vectors[:, 0], "feature_1": vectors[:, 1]})
    pq.write_table(embeddings, folder / "embeddings.parquet")
    (folder / "metadata.csv").write_text(text)
    return folder / "metadata.csv", folder / "embeddings.parquet"


@pytest.fixture
def catalog(tmp_path):
    return empty_catalog(tmp_path / "catalog")


def test_rxrx3_core_comes_in_with_facts_and_vectors_of_its_wells(catalog, tmp_path):
    wells, table = read_release("rxrx3-core", *written(tmp_path, RXRX3_CORE, "well_id"))
    assert import_wells(catalog, wells) == 3
    found = aggregate(catalog, import_embeddings(catalog, table, "openphenom"), "well").to_pylist()
    assert [(row["screen"], row["plate"], row["well"], row["vector"]) for row in found] == [
        ("rxrx3-core", "compound-001_7", "AA15", [4, 5]),
        ("rxrx3-core", "gene-001_1", "B02", [0, 1]),
        ("rxrx3-core", "gene-001_1", "B03", [2, 3]),
    ]
    columns = ["well", "batch", "perturbation", "gene", "guide", "compound", "dose", "is_negative_control"]
    assert [tuple(row.values()) for row in catalog.table("wells", columns=columns).sort_by("well").to_pylist()] == [
        ("AA15", "compound-001", "Esomeprazole", "", "", "Esomeprazole", 0.25, False),
        ("B02", "gene-001", "TP53", "TP53", "TP53_guide_2", "", None, False),
        ("B03", "gene-001", "EMPTY_control", "", "", "", None, True),
    ]
    name = find_representation(catalog, "openphenom")
    assert find_representation(catalog, name["representation_id"]) == name


def test_sites_of_rxrx1_become_wells_under_the_name_given(catalog, tmp_path):
    wells, table = read_release("rxrx1", *written(tmp_path, RXRX1, "site_id"), screen="recursion")
    assert import_wells(catalog, wells) == 2
    found = aggregate(catalog, import_embeddings(catalog, table, "theirs"), "well").to_pylist()
    assert [(row["screen"], row["plate"], row["well"], row["vector"]) for row in found] == [
        ("recursion", "HUVEC-1_1", "B02", [1, 2]),
        ("recursion", "HUVEC-1_1", "B03", [4, 5]),
    ]
    assert [row["is_negative_control"] for row in found] == [False, True]


def test_embeddings_of_a_part_bring_all_wells_so_that_those_of_another_part_fit(catalog, tmp_path):
    metadata, embeddings = written(tmp_path, RXRX3_CORE, "well_id")
    whole = pq.read_table(embeddings)
    for name, part in (("first", whole.slice(0, 2)), ("second", whole.slice(1, 2))):
        pq.write_table(part, embeddings)
        with pytest.raises(ValueError, match="allow_missing"):
            read_release("rxrx3-core", metadata, embeddings)
        wells, table = read_release("rxrx3-core", metadata, embeddings, allow_missing=True)
        assert len(table.vectors) == 2
        assert import_wells(catalog, wells) == (3 if name == "first" else 0)
        import_embeddings(catalog, table, name)


def test_names_are_of_one_external_representation(catalog, tmp_path):
    wells, table = read_release("rxrx3-core", *written(tmp_path, RXRX3_CORE, "well_id"))
    import_wells(catalog, wells)
    ids = [import_embeddings(catalog, table, "openphenom")]
    table.vectors[0, 0] += 1
    ids.append(import_embeddings(catalog, table, "openphenom"))
    with pytest.raises(ValueError, match=r"2 external representations have this name, expected one: .*Give one"):
        find_representation(catalog, "openphenom")
    assert [find_representation(catalog, each)["representation_id"] for each in ids] == ids
    with pytest.raises(ValueError, match=r"representation dino: not in the table representations.*\(openphenom, "):
        find_representation(catalog, "dino")


def test_a_plate_map_of_any_screen_is_a_table_of_wells(catalog, tmp_path):
    path = tmp_path / "wells.csv"
    path.write_text("plate,well,gene,control,batch,note\nP1,a1,TP53,,B,hello\nP2,A02,,negcon,B,\n")
    assert import_wells(catalog, read_wells_of_plate_map(path, "mine")) == 2
    wells = catalog.table("wells").sort_by("well").to_pylist()
    assert [(row["screen"], row["plate"], row["batch"], row["gene"], row["control"]) for row in wells] == [
        ("mine", "P1", "B", "TP53", ""),
        ("mine", "P2", "B", "", "negative"),
    ]
    with pytest.raises(ValueError, match="found screen '' and a column of plates"):
        read_wells_of_plate_map(path, "")
    path.write_text("well,gene\nA01,TP53\n")
    with pytest.raises(ValueError, match="found screen 'mine' and no column of plates"):
        read_wells_of_plate_map(path, "mine")
    path.write_text("plate,well\nP1,Z99\n")
    with pytest.raises(ScreenError, match="bad well name"):
        read_wells_of_plate_map(path, "mine")
