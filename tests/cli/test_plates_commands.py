from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.plates import IngestConfig, ingest_plates
from cytolake.cli.main import app
from cytolake.screens.sources import ScreenSource, list_plates

CONFIG = IngestConfig(crop_size=32)
pytestmark = pytest.mark.usefixtures("ray_in_process")


def write_images(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = ["path,plate,well,site,channel"]
    for well in ("A01", "A02"):
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{well}.tif", rng.integers(0, 4096, (64, 64), np.uint16))
        lines.append(f"{well}.tif,P1,{well},1,DNA")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")


def ingest(root: Path, folder: Path, screen: str = "S"):
    source = ScreenSource(screen=screen, path=str(folder))
    plates = list_plates(source, channel_vocabulary().aliases, layout_presets())
    catalog = cytolake.catalog.open(root, create=True)
    return ingest_plates(catalog, plates, CONFIG, sources={screen: source})


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Root of a catalog with plate S/P1, the folder of its images, and `run`, which runs a command on it."""
    monkeypatch.setattr("cytolake.pipeline.session.ray_session", lambda *_: nullcontext())
    root, folder = tmp_path / "catalog", tmp_path / "images"
    write_images(folder, 0)
    ingest(root, folder)

    def run(*words, code=0):
        found = CliRunner().invoke(app, [*map(str, words), "--root", str(root)])
        assert found.exit_code == code, found.output
        return " ".join(found.output.split())

    return root, folder, run


def command_in(text: str) -> list[str]:
    """The words of the command that a problem gives, without its root."""
    words = text[text.index("cytolake plates") :].split()
    end = words.index("--root")
    return words[1:end]


def test_the_command_that_ingest_gives_for_a_plate_map_that_came_later_takes_it(lab):
    root, folder, run = lab
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,MYC\n")
    refused = ingest(root, folder).refused[0]
    command = command_in(refused.next_step)
    looked = run(*command, "--dry-run")
    assert "S/P1 A01 gene TP53" in looked
    assert "nothing was written" in looked
    assert set(cytolake.catalog.open(root).table("wells")["gene"].to_pylist()) == {""}
    assert "4 changes in 1 plate committed" in run(*command)  # gene and perturbation of two wells
    assert not ingest(root, folder).refused
    assert "the catalog has these labels already" in run(*command)


def test_the_command_that_ingest_gives_for_other_pixels_takes_them(lab):
    root, folder, run = lab
    write_images(folder, 1)
    refused = ingest(root, folder).refused[0]
    assert "acquisition 2 is visible, 2 sites" in run(*command_in(refused.next_step))
    report = ingest(root, folder)
    assert (len(report.skipped), report.refused) == (1, ())
    listed = run("plates")
    assert "S/P1 replaced 1 2 2 8" in listed
    assert "S/P1 visible 2 2 2 8" in listed
    assert "put the files of this one back" in run("plates", "restore", "S/P1", "--acquisition", 1)
    assert "S/P1 visible 1" in run("plates")


def test_the_command_that_ingest_gives_for_files_of_a_renamed_screen_renames_it(lab):
    root, folder, run = lab
    report = ingest(root, folder, "new")
    assert [problem.problem for problem in report.refused] == ["files_in_catalog"]
    assert "1 plate renamed: new/P1" in run(*command_in(report.refused[0].next_step))
    assert len(ingest(root, folder, "new").skipped) == 1


def test_a_plate_is_retracted_with_a_reason_and_purged_only_with_yes(lab):
    root, folder, run = lab
    assert "is hidden" in run("plates", "retract", "P1", "--why", "mouldy")
    assert "retracted" in run("plates")
    assert "mouldy" in run("plates")
    preview = run("plates", "purge", "P1", "--why", "mouldy")
    assert "would delete S/P1, acquisition 1, from this and every older version rows: 8 of crops" in preview
    assert "nothing was deleted" in preview
    assert "would stay" not in preview
    run("plates", "restore", "P1")
    assert "1 acquisition purged: 8 of crops" in run("plates", "purge", "P1", "--why", "mouldy", "--yes")
    assert cytolake.catalog.open(root).table("crops").num_rows == 0
    assert [problem.problem for problem in ingest(root, folder).left_out] == ["plate_purged"]
    assert "expected it replaced or retracted" in run("plates", "restore", "P1", code=2)


def test_a_check_ends_with_1_where_something_is_wrong(lab):
    _, folder, run = lab
    assert "everything refers to what exists" in run("catalog", "check")
    (folder / "A01.tif").unlink()
    assert "1 of 2 image files are gone" in run("catalog", "check", code=1)


@pytest.mark.parametrize(("form", "text"), [("duckdb", "delta_scan("), ("polars", "pl.scan_delta(")])
def test_views_are_printed_for_each_program(lab, form, text):
    assert text in lab[2]("catalog", "views", "--format", form)


def test_a_column_of_another_name_is_taken_as_the_label_that_is_declared_for_it(lab, tmp_path):
    root, _, run = lab
    (tmp_path / "map.csv").write_text("plate,well,gene,kind\nP1,A01,TP53,\nP1,A02,none,negcon\nP7,A01,KRAS,\n")
    said = run("plates", "annotate", "S", "--plate-map", tmp_path / "map.csv", "--label", "control=kind")
    assert "P7" in said  # no such plate
    wells = cytolake.catalog.open(root).table("wells").to_pylist()
    assert {row["well"]: row["is_negative_control"] for row in wells} == {"A01": False, "A02": True}
    wrong = ("plates", "annotate", "S", "--plate-map", tmp_path / "map.csv", "--label", "colour=kind")
    assert "colour" in run(*wrong, code=2)


def test_samples_that_stand_for_wells_are_annotated_by_their_names(lab, tmp_path):
    root, _, run = lab
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, name in enumerate(("control 1", "drug A_1")):
        pixels = np.random.default_rng(number).integers(0, 4096, (64, 64), np.uint16)
        tifffile.imwrite(folder / f"{name}.tif", pixels)
    source = ScreenSource(screen="samples", path=str(folder), layout="regex", pattern=r"(?P<sample>[^/]+)\.tif")
    ingest_plates(cytolake.catalog.open(root), list_plates(source, channel_vocabulary().aliases), CONFIG)
    (tmp_path / "map.csv").write_text("sample,treatment\ncontrol 1,DMSO\ndrug A_1,A\n")
    run("plates", "annotate", "samples", "--plate-map", tmp_path / "map.csv")  # the plate has the screen's name
    wells = cytolake.catalog.open(root).table("wells", where="screen = 'samples'").to_pylist()
    assert {row["well"]: row["perturbation"] for row in wells} == {"control 1": "DMSO", "drug A_1": "A"}


def test_a_plate_that_was_renamed_and_retracted_stays_out_of_the_next_ingest(lab):
    root, folder, run = lab
    run("plates", "rename", "S/P1", "--plate", "Q1")
    run("plates", "retract", "S/Q1", "--why", "blurred")
    report = ingest(root, folder)
    assert (report.ingested, report.refused) == ((), ())
    (problem,) = report.left_out
    assert "restore S/Q1" in problem.next_step


@pytest.mark.parametrize("name", ["[/]", "it's P[red]"])
def test_a_name_that_looks_like_markup_is_printed_as_it_is(lab, name, tmp_path):
    root, _, run = lab
    write_images(folder := tmp_path / "of that name", 9)
    index = folder / "index.csv"
    index.write_text(index.read_text().replace("P1", name))
    assert len(ingest(root, folder).ingested) == 1
    assert f"plate S/{name} is hidden" in run("plates", "retract", f"S/{name}", "--why", "blurred")
    assert f"plate S/{name}: acquisition 1 is visible" in run("plates", "restore", f"S/{name}")
    assert f"S/{name}" in run("plates")


def test_cells_of_a_pooled_screen_are_labelled_by_command(lab, tmp_path):
    root, _, run = lab
    cells = tmp_path / "cells.csv"
    cells.write_text("well,site,cell,y,x,call\nA01,1,1,9,9,g1\nA01,1,2,9,40,g2\nA01,1,3,10,41,g3\nA02,1,1,400,9,g1\n")
    words = ("plates", "label-objects", "S/P1", cells, "--label", "guide=call")
    assert "nothing was written" in run(*words, "--dry-run")
    assert cytolake.catalog.open(root).table("objects").num_rows == 0
    said = run(*words)
    assert "objects: 4 of 3 perturbations (0 labelled before), 1 in no crop" in said
    assert "crops: 1 of one kind of object, 1 of several, without a label" in said
    assert "1 plate committed" in said
    assert cytolake.catalog.open(root).table("objects").num_rows == 4
    assert "the catalog has these labels already" in run(*words)
    assert "expected LABEL=COLUMN" in run("plates", "label-objects", "S/P1", cells, "--label", "guide", code=2)
    assert "a label such as perturbation" in run("plates", "label-objects", "S/P1", cells, code=2)
