"""Names that the terminal could read as markup, `[/]` or `[x]`, are printed as they are."""

from __future__ import annotations

import csv
import datetime

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows
from typer.testing import CliRunner

from cytolake.cli.main import app

NASTY = "a[/]b [red] [bold"
"""A closing tag without an opening one, which is an error of markup; a tag that would vanish; an open bracket."""
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A catalog with a plate, a curation and a scored representation of such names."""
    root = tmp_path_factory.mktemp("lake") / "root"
    catalog = empty_catalog(root)
    add_rows(
        catalog, "plates",
        {"plate_id": "p", "screen": NASTY, "plate": NASTY, "state": "visible", "n_wells": 0, "ingested_at": NOW},
    )  # fmt: skip
    add_rows(
        catalog, "curation_runs",
        *({"curation_id": f"c{n}", "curation": NASTY, "curated_at": NOW, "n_kept": n, "n_considered": 2}
          for n in (0, 1)),
    )  # fmt: skip
    representation = {
        "representation_id": "r", "kind": "external", "model_id": "m", "architecture": NASTY, "block": -1,
        "pooling": "all", "dim": 4, "pack_id": "", "created_at": NOW,
    }  # fmt: skip
    score = {
        "score_id": "s", "representation_id": "r", "benchmark": NASTY, "label": NASTY, "metric": NASTY, "split": "",
        "seed": -1, "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "alignment": "none", "protocol": "p",
        "scored_at": NOW,
    }  # fmt: skip
    add_rows(catalog, "representations", representation)
    add_rows(catalog, "scores", score)
    return root


def run(*words, code=0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize(
    ("words", "times"),
    [
        (("plates",), 1),
        (("curation", "list"), 2),
        (("leaderboard",), 3),
        (("sql", 'select screen, plate as "' + NASTY + '" from plates'), 3),
        (("tag", NASTY), 1),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_name_of_the_catalog_is_printed_whole(root, monkeypatch, words, times):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(*words, "--root", root).count(NASTY) >= times


@pytest.mark.slow
def test_a_name_that_is_given_on_the_command_line_is_printed_whole(tmp_path):
    table = tmp_path / "genes[x].csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["gene", "f1", "f2"], ["TP53", 0.1, 0.2], ["MYC", 0.3, 0.4]])
    lake = tmp_path / "lake"
    assert NASTY in run("import", table, "--name", NASTY, "--by", "gene", "--screen", NASTY, "--root", lake)
    folder = tmp_path / "screens[x]"
    settings = [
        f"--set={name}=1" for name in ("n_plates", "n_batches", "n_pathways", "guides_per_gene", "sites_per_well")
    ]
    assert "screens[x]" in run("simulate", folder, *settings)
    assert "r[x].yaml" in run("init", folder / "simulated", "--recipe-file", tmp_path / "r[x].yaml")
