"""Commands print the beginnings of ids and take them back."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import whole_id

ID = "5113d1f6d3a8"


def run(*words: str, code: int = 0) -> str:
    from cytolake.cli.main import app

    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{words}: {result.output}{result.exception}"
    return result.output


@pytest.mark.parametrize(
    ("given", "found"),
    [(ID, ID), (ID[:6], ID), (ID[:5], ""), ("5113d1f", ID), ("5113d2", ""), ("", ""), ("short", "short")],
)
def test_an_id_is_found_by_its_first_six_digits(given: str, found: str):
    assert whole_id(given, [ID, "5112000000", "short", None], "pack") == found


def test_a_whole_id_wins_over_a_longer_one_and_several_are_listed():
    assert whole_id("abcdef", ["abcdef", "abcdef01"], "pack") == "abcdef"
    with pytest.raises(CatalogError, match=r"pack abcdef: 2 ids begin so: abcdef01, abcdef02. Give more digits"):
        whole_id("abcdef", ["abcdef02", "abcdef01"], "pack")


def test_what_the_leaderboard_prints_can_be_exported(golden_lake: Path, tmp_path: Path):
    root = str(golden_lake)
    rows = cytolake.catalog.open(root).table("representations").to_pylist()
    trained = next(row for row in rows if row["kind"] == "trained")
    printed = run("leaderboard", "--root", root)
    assert f"{trained['model_id'][:8]}, trained" in printed
    n_blocks = sum(row["model_id"] == trained["model_id"] for row in rows)
    run("export", str(tmp_path / "blocks.h5ad"), "--model", trained["model_id"][:8], "--root", root)
    pack = trained["pack_id"][:12]
    exported = run(
        *("export", str(tmp_path / "of_pack.h5ad"), "--model", trained["model_id"][:8], "--pack-id", pack),
        *("--root", root),
    )
    assert exported.startswith(f"{n_blocks} representations in")
    whole, begun = tmp_path / "whole.csv", tmp_path / "begun.csv"
    run("export", str(whole), "--representation", trained["representation_id"], "--root", root)
    run("export", str(begun), "--representation", trained["representation_id"][:12], "--root", root)
    assert whole.read_bytes() == begun.read_bytes()
    unknown = run("export", str(begun), "--model", "ffffffff", "--root", root, code=2)
    assert trained["model_id"] in unknown


def test_a_pack_is_verified_by_the_beginning_that_the_pipeline_prints(golden_lake: Path):
    (pack,) = (path.name for path in (golden_lake / "packs").iterdir() if path.is_dir())
    verified = run("pack", "verify", str(golden_lake / "packs" / pack))
    assert "every file as it was written" in verified
    assert run("pack", "verify", str(golden_lake / "packs" / pack[:12])).splitlines()[-1] == verified.splitlines()[-1]
    assert "as it was written" in run("pack", "verify", pack[:12], "--root", str(golden_lake))
    refused = run("pack", "verify", str(golden_lake / "packs" / "ffffffff"), code=2)
    assert f"There are in {golden_lake / 'packs'}: {pack}" in " ".join(refused.split())


def test_verdicts_and_curations_are_found_by_a_beginning(golden_lake: Path, tmp_path: Path):
    root = str(golden_lake)
    catalog = cytolake.catalog.open(root)
    qc_id = catalog.table("qc_verdicts", columns=["qc_id"])["qc_id"][0].as_py()
    run("qc", "page", qc_id[:12], "--folder", str(tmp_path), "--root", root)
    assert (tmp_path / "qc.html").is_file()
    assert qc_id in run("qc", "page", "ffffffff", "--folder", str(tmp_path), "--root", root, code=2)
    curation_id = catalog.table("curation_runs")["curation_id"][0].as_py()
    assert curation_id[:12] in run("curation", "diff", curation_id[:12], curation_id[:7], "--root", root)


def test_a_curation_by_the_beginning_of_a_qc_id_is_that_of_the_whole_id(golden_lake: Path):
    from cytolake.curation.rules.qc import QcStep

    catalog = cytolake.catalog.open(golden_lake)
    qc_id = catalog.table("qc_verdicts", columns=["qc_id"])["qc_id"][0].as_py()
    assert QcStep(qc_id=qc_id[:8]).resolved(catalog, "default") == QcStep(qc_id=qc_id)


def test_the_preview_of_a_purge_names_packs_and_representations_and_changes_nothing(golden_lake: Path):
    root = str(golden_lake)
    catalog = cytolake.catalog.open(root)
    plate = catalog.table("plates").to_pylist()[0]
    shown = run("plates", "purge", f"{plate['screen']}/{plate['plate']}", "--why", "consent", "--root", root)
    for table in ("crops", "embeddings", "curations"):
        n = catalog.sql(f"select count(*) n from {table} where plate_id = ?", parameters=[plate["plate_id"]])["n"][0]
        assert f"{n.as_py():,} of {table}" in shown
    (pack,) = (path.name for path in (golden_lake / "packs").iterdir() if path.is_dir())
    assert f"would stay pack {pack}" in shown
    assert f"vectors of representation {catalog.table('profiles')['representation_id'][0].as_py()[:4]}" in shown or (
        shown.count("vectors of representation") > 5
    )
