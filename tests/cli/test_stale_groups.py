from __future__ import annotations

import io

import pytest
from rich.console import Console

import cytolake.catalog
from cytolake.catalog.corrections import annotate
from cytolake.catalog.stale import Stale
from cytolake.cli.stale import print_stale, stale_groups


def stale(kind, identity, name="", **of):
    return Stale(kind=kind, identity=identity, name=name, why="labels", plates=("S/P1",), **of)


def scores(benchmark, label, n_of, metrics=("a", "b")):
    return [
        stale("score", f"{benchmark}{label}{i}{metric}", benchmark=benchmark, label=label, representation_id=str(i))
        for metric in metrics
        for i in range(n_of)
    ]


def test_stale_results_are_counted_by_kind_and_each_kind_has_its_command():
    found = [
        stale("curation", "c", "default"),
        stale("curation", "d", "phenoprints"),
        stale("representation", "x", representation_id="p1", alignment_variant="tvn_vcb, pca_cs"),
        stale("representation", "y", representation_id="p2", alignment_variant="tvn_vcb, pca_cs"),
        *scores("linear_probe", "perturbation", 17),
        *scores("linear_probe", "gene", 2),
        *scores("perturbation_magnitude", "perturbation", 1),
        stale("model", "m version 2", "champion"),
    ]
    job = " --recipe demo --set root=R"
    assert stale_groups(found, job, "R") == [
        ("curation default; other labels", f"cytolake curate{job}"),
        ("curation phenoprints; other labels", f"cytolake curate{job} --set curate.name=phenoprints"),
        (
            "2 representations, aligned by tvn_vcb, pca_cs; other labels",
            "cytolake align p1 --variant pca_cs --root R (and for p2)",
        ),
        ("scores of linear_probe (perturbation): 34 of 17 representations; other labels", f"cytolake probe{job}"),
        ("scores of linear_probe (gene): 4 of 2 representations; other labels", f"cytolake benchmark{job}"),
        (
            "scores of perturbation_magnitude (perturbation): 2 of 1 representation; other labels",
            f"cytolake benchmark{job}",
        ),
        ("model champion; other labels", f"cytolake promote{job}"),
    ]


@pytest.fixture
def printed(golden_copy, tmp_path, monkeypatch):
    """What is printed of the finished catalog after one correction of a plate map, and its root."""
    monkeypatch.chdir(tmp_path)
    catalog = cytolake.catalog.open(golden_copy)
    well = catalog.table("wells", where="not is_negative_control").to_pylist()[0]
    path = tmp_path / "map.csv"
    path.write_text(f"plate,well,gene\n{well['plate']},{well['well']},KRAS\n")
    annotate(catalog, f"{well['screen']}/{well['plate']}", path)
    output = io.StringIO()
    print_stale(Console(file=output, width=1000), str(golden_copy))
    return output.getvalue(), golden_copy


def test_a_finished_catalog_names_the_recipe_that_it_was_made_with(printed):
    text, root = printed
    lines = [line.strip() for line in text.splitlines()]
    for job in ("curate", "probe", "benchmark", "promote"):
        assert f"cytolake {job} --recipe demo --set root={root}" in lines
    listed = [line for line in lines if "; other " in line]
    assert len(listed) == len(set(listed)), "no two lines say the same"
    assert "more" not in text
