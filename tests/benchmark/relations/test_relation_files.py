"""Relation, alias and cluster files: what is read, and what is refused with file and line."""

from __future__ import annotations

import json

import pytest

from cytolake.benchmark.relations.relation_files import read_aliases, read_clusters, read_relations, rename

COUNTS = {"HuMAP": (117_076, 58_538, 7_368), "Reactome": (22_865, 18_565, 4_509), "StringDB": (116_118, 58_059, 10_335)}
"""Lines, unique pairs, genes of the published files."""


@pytest.fixture
def write(tmp_path):
    def written(text: str, name: str = "known.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.mark.real_data
@pytest.mark.parametrize("source", COUNTS)
def test_the_published_files_have_the_published_counts(real_data, source):
    relations = read_relations(real_data / "efaar_relationships" / f"{source}.txt")
    assert (relations.n_lines, len(relations.pairs), len(relations.genes)) == COUNTS[source]
    assert relations.source == source


@pytest.mark.real_data
def test_pairs_count_once_as_published(real_data, write):
    known = json.loads((real_data / "oracles" / "efaar_published.json").read_text())["filter_relationships"]
    lines = [f"{a},{b}" for a, b in zip(known["entity1"], known["entity2"], strict=True)]
    assert len(read_relations(write("\n".join(["entity1,entity2", *lines]))).pairs) == known["n"]


def test_order_duplicates_self_pairs_and_further_columns_do_not_matter(write):
    text = "score\tentity2\tentity1\n.9\tB\tA\n\n.8\tA\tB\n.7\tC\tC\n.6\t C\tA \n"
    relations = read_relations(write(text, "MINE.v2.tsv"))
    assert relations.pairs == (("A", "B"), ("A", "C"))
    assert (relations.source, relations.n_lines, relations.genes) == ("MINE", 4, {"A", "B", "C"})


def test_pairs_that_are_the_same_under_aliases_count_once(write):
    aliases = read_aliases(write("alias,symbol\nC7orf26,INTS15\nMPP5,PALS1\n", "aliases.csv"))
    text = "entity1,entity2\nC7orf26,INTS1\nINTS1,INTS15\nMPP5,PALS1\n"
    assert read_relations(write(text), aliases=aliases).pairs == (("INTS1", "INTS15"),)
    assert rename(["MPP5", "INTS1"], aliases) == ["PALS1", "INTS1"]


def test_a_screen_with_both_names_of_a_gene_must_aggregate_them():
    with pytest.raises(ValueError, match=r"PALS1 and MPP5 are both PALS1.*aggregate"):
        rename(["PALS1", "MPP5"], {"MPP5": "PALS1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene1,entity2\nA,B\n", r"known\.csv, line 1: no column entity1, found gene1, entity2"),
        ("", r"known\.csv, line 1: no column entity1 and entity2, found an empty line"),
        ("entity1,entity2\nA,B\n\nA\n", r"known\.csv, line 4: found 'A'"),
        ("entity1,entity2\nA,B\nA, \n", r"known\.csv, line 3: found 'A, '"),
        ("entity1,entity2\nA,A\n", r"known\.csv: 1 pairs, none of two different genes"),
    ],
)
def test_a_relation_file_that_cannot_be_read_is_refused_with_its_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_relations(write(text))


def test_a_compressed_file_is_refused_by_name(tmp_path):
    (tmp_path / "known.csv").write_bytes(b"\x1f\x8b\x08\x00\xff")
    with pytest.raises(ValueError, match=r"known\.csv: not text in UTF-8"):
        read_relations(tmp_path / "known.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alias,symbol\na,X\na,Y\n", "line 3: alias a is Y, on line 2 it is X"),
        ("alias,symbol\na,b\nb,C\n", "line 2: a becomes b, and line 3 makes that C"),
    ],
)
def test_aliases_that_contradict_each_other_are_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_aliases(write(text))


def test_clusters_are_read_with_any_blank_between_genes(write):
    clusters = read_clusters(write("big one\tB A,C\tA\n\nother\tD E\n", "clusters.tsv"), {"E": "F"})
    assert clusters == {"big one": ("A", "B", "C"), "other": ("D", "F")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\tA B\nalone\n", r"line 2: found 'alone', expected a cluster's name, a tab"),
        ("one\tA\none\tB\n", "line 2: cluster one comes a second time"),
        ("\n", "the file is empty"),
    ],
)
def test_a_cluster_file_that_cannot_be_read_is_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_clusters(write(text))
