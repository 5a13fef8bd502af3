"""Clusters and compound targets planted among genes, from a published table to the scores."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.empty_catalog import empty_catalog

from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig, Task
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.benchmark.profiles.tasks import TASKS
from cytolake.catalog.ingest.published_wells import import_wells
from cytolake.exchange.external import import_embeddings
from cytolake.exchange.vector_tables import ExternalTable
from cytolake.screens.positions import name_of_well

pytestmark = pytest.mark.usefixtures("without_layout_warnings")

N_GENES, N_COMPOUNDS, DIM = 40, 6, 32
GENES = [f"G{i:02d}" for i in range(N_GENES)]
TIGHT, RANDOM = GENES[:12], GENES[20:32]
DOSES_UM = (0.1, 1.0, 10.0)


def treatments():
    """Every gene by two guides, compound i on genes 2 i and 2 i + 1 at the middle dose, 20 controls."""
    rows = [
        {"perturbation": gene, "gene": gene, "guide": f"{gene}_{guide}", "pathway": "tight" if gene in TIGHT else ""}
        for gene in GENES
        for guide in (1, 2)
    ]
    rows += [
        {"perturbation": f"drug{i}", "compound": f"drug{i}", "gene": "G39", "dose": dose}  # a target as people note it
        for i in range(N_COMPOUNDS)
        for dose in DOSES_UM
    ]
    return rows + [{"perturbation": "none", "control": "negative"}] * 20


def wells_table():
    names = ("perturbation", "gene", "guide", "pathway", "compound", "dose", "control")
    rows = [
        {
            "screen": "s",
            "plate": plate,
            "well": name_of_well(i // 24, i % 24),
            **{name: each.get(name) for name in names},
        }
        for plate in ("p0", "p1")
        for i, each in enumerate(treatments())
    ]
    return pa.Table.from_pylist(rows)


def vectors(rng, strength):
    of_gene = {gene: rng.normal(size=DIM) for gene in GENES}
    shared = rng.normal(size=DIM)
    rows = []
    for _ in ("p0", "p1"):
        for each in treatments():
            effect = np.zeros(DIM)
            if "compound" in each:
                i = int(each["compound"][4:])
                if each["dose"] == DOSES_UM[1]:
                    effect = -2 * (of_gene[GENES[2 * i]] + of_gene[GENES[2 * i + 1]])
            elif "gene" in each:
                effect = of_gene[each["gene"]] + (shared if each["gene"] in TIGHT else 0)
            rows.append(strength * effect + 0.3 * rng.normal(size=DIM))
    return np.asarray(rows, np.float32)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    catalog = empty_catalog(tmp_path_factory.mktemp("root"))
    wells = wells_table()
    assert import_wells(catalog, wells) == wells.num_rows
    labels = {name: tuple(wells[name].to_pylist()) for name in ("screen", "plate", "well")}
    rng = np.random.default_rng(0)
    for name, strength in (("planted", 1.0), ("noise", 0.0)):
        import_embeddings(catalog, ExternalTable(name, vectors(rng, strength), labels), name)
    return catalog


@pytest.fixture
def files(tmp_path):
    """Clusters and targets, all genes among the targets of a compound that is not in the screen."""
    clusters = tmp_path / "complexes.tsv"
    clusters.write_text(f"tight\t{' '.join(TIGHT)}\nrandom\t{', '.join(RANDOM)}\nsmall\tG00 G01\n")
    truth = tmp_path / "truth.csv"
    lines = [f"drug{i},{GENES[2 * i + k]},0.5" for i in range(N_COMPOUNDS) for k in (0, 1)]
    lines += [f"elsewhere,{gene},0.01" for gene in GENES]
    truth.write_text("\n".join(["compound,gene,activity_um", *lines]) + "\n")
    return clusters, truth


def score(catalog, names=("planted",), alignments=("none",), tasks=("clusters", "compound_gene"), **fields):
    representations = catalog.table("representations").to_pylist()
    ids = [row["representation_id"] for name in names for row in representations if row["architecture"] == name]
    config = ProfileBenchmarkConfig(draws=49, tasks=tasks, alignments=alignments, **fields)
    return score_profiles(catalog, ids, config)


def values(scores):
    return {(row["benchmark"], row["label"], row["metric"]): row for row in scores.rows}


def test_every_task_has_its_function():
    assert set(TASKS) == set(get_args(Task))


@pytest.mark.parametrize("alignment", ["none", "centre_scale"])
def test_planted_targets_rank_first_and_only_where_they_are_planted(catalog, files, alignment):
    _, truth = files
    fields = {"compound_gene_truth": str(truth), "tasks": ("compound_gene",), "alignments": (alignment,)}
    planted = values(score(catalog, **fields))
    noise = values(score(catalog, ("noise",), **fields))
    for metric, least in (("average_precision", 0.75), ("auroc", 0.9)):
        row = planted["compound_gene", "gene", metric]
        assert row["value"] > least > noise["compound_gene", "gene", metric]["value"] + 0.2
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert (row["n_test"], row["n_classes"]) == (N_COMPOUNDS, N_GENES)
        details = json.loads(row["details"])
        assert details["z_score"] > 5
        assert set(details["of_compound"]) == {f"drug{i}" for i in range(N_COMPOUNDS)}
        assert details["not_in_map"] == {"compounds": 1, "genes": 0}


def test_a_tight_cluster_is_set_apart_and_a_random_one_is_not(catalog, files):
    clusters, _ = files
    found = values(score(catalog, cluster_files=(str(clusters),)))
    share = found["cluster_separation", "complexes", "share_significant"]
    assert (share["value"], share["n_test"], share["n_classes"]) == (0.5, 2, 24)  # the small one is not tested
    details = json.loads(share["details"])
    assert details["q_values"]["tight"] < 0.001 < 0.05 < details["q_values"]["random"]
    assert details["statistics"]["tight"] > 0.5 > details["statistics"]["random"]
    mean = found["cluster_separation", "complexes", "mean_statistic"]
    assert mean["value"] == pytest.approx(np.mean(list(details["statistics"].values())), abs=1e-4)
    assert (mean["ci_low"], mean["ci_high"]) == (None, None)  # of two clusters


def test_pathways_of_the_wells_are_clusters_unless_switched_off(catalog, files):
    clusters, _ = files
    with_pathways = values(score(catalog, cluster_files=(str(clusters),)))
    assert with_pathways["cluster_separation", "pathway", "share_significant"]["value"] == 1.0
    without = score(catalog, cluster_files=(str(clusters),), pathway_relations=False)
    assert {label for _, label, _ in values(without)} == {"complexes"}
    same_name = clusters.with_name("pathway.tsv")
    same_name.write_text(clusters.read_text())
    with pytest.raises(ValueError, match=r"pathway.tsv: clusters of the source pathway come a second time"):
        score(catalog, cluster_files=(str(same_name),))


def test_genes_of_files_are_renamed_as_those_of_the_screen(catalog, files):
    clusters, truth = files
    aliases = clusters.with_name("aliases.csv")
    aliases.write_text("alias,symbol\nOLD,G00\n")
    plain = score(catalog, cluster_files=(str(clusters),), compound_gene_truth=str(truth))
    for file in files:
        file.write_text(file.read_text().replace("G00", "OLD"))
    renamed = score(catalog, cluster_files=(str(clusters),), compound_gene_truth=str(truth), gene_aliases=str(aliases))
    assert {key: row["value"] for key, row in values(renamed).items()} == {
        key: row["value"] for key, row in values(plain).items()
    }


def test_what_is_not_possible_is_left_out_with_its_reason(catalog, files):
    clusters, truth = files
    left_out = score(catalog, pathway_relations=False).left_out
    assert "set benchmark.profiles.compound_gene_truth" in left_out["compound_gene, none"]
    assert "set benchmark.profiles.cluster_files" in left_out["clusters, none"]
    left_out = score(catalog, min_cluster_genes=13, cluster_files=(str(clusters),)).left_out
    assert "no cluster of complexes, pathway has 13 or more of the 40 genes" in left_out["clusters, none"]
    truth.write_text("compound,gene,activity_um\naspirin,G00,1\n")
    left_out = score(catalog, compound_gene_truth=str(truth)).left_out
    assert "1 are not in the map" in left_out["compound_gene, none"]


def test_another_content_of_a_file_is_scored_anew_and_the_same_is_not(catalog, files):
    clusters, truth = files
    fields = {"cluster_files": (str(clusters),), "compound_gene_truth": str(truth)}
    protocols = []
    changes = ((clusters, "G31", "G31"), (clusters, "G31", "G32"), (truth, "drug0,G00,0.5", "drug0,G00,0.6"))
    for file, old, new in changes:
        file.write_text(file.read_text().replace(old, new))
        (protocol,) = {row["protocol"] for row in score(catalog, **fields).rows}
        protocols.append(protocol)
    assert len(set(protocols)) == 3
    n_scores = catalog.table("scores").num_rows
    (again,) = {row["protocol"] for row in score(catalog, **fields).rows}
    assert (again, catalog.table("scores").num_rows) == (protocols[-1], n_scores)


def test_truth_in_parquet_and_as_rxrx3_core_has_it_says_the_same(catalog, files):
    _, csv = files
    rows = [line.split(",") for line in csv.read_text().splitlines()[1:]]
    parquet, published = csv.with_suffix(".parquet"), csv.with_name("published.csv")
    compounds, genes, activities = zip(*rows, strict=True)
    pq.write_table(
        pa.table({"compound": compounds, "gene": genes, "activity_um": list(map(float, activities))}), parquet
    )
    lines = [f"{gene},{1000 * float(activity)},{compound}" for compound, gene, activity in rows]
    published.write_text("\n".join(["gene_symbol,nM_value,treatment", *lines]) + "\n")
    found = [
        {
            key: row["value"]
            for key, row in values(score(catalog, tasks=("compound_gene",), compound_gene_truth=str(path))).items()
        }
        for path in (csv, parquet, published)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compound,gene\na,G00\n", r"truth.csv: the truth has columns compound, gene, expected compound, gene, activ"),
        ("compound,gene,activity_um\na,G00,0\n", r"truth.csv: row 0 of the truth: .*above 0"),
        ("compound,gene,activity_um\na,G00,high\n", r"truth.csv: not a table of compound, gene, activity_um"),
    ],
)
def test_a_truth_that_cannot_be_used_stops_before_anything_is_scored(catalog, files, text, said):
    _, truth = files
    truth.write_text(text)
    with pytest.raises(ValueError, match=said):
        score(catalog, compound_gene_truth=str(truth))
