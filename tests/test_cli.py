"""The commands that people type, one after the other, on one small screen."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.benchmark.qc.label_efficiency import LabelEfficiencyConfig
from cytolake.cli import app
from cytolake.line.label_curve import LabelCurveConfig, has_label_curve
from cytolake.screens.simulated.screen import SimulatedScreen, simulate_screen

SCREEN = SimulatedScreen(
    screen="small",
    n_plates=2,
    n_pathways=1,
    genes_per_pathway=2,
    guides_per_gene=1,
    n_compounds=0,
    n_negative_controls=3,
    n_positive_controls=1,
    sites_per_well=2,
    site_size_px=128,
    artefact_share=0.5,
)


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output + repr(done.exception)
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screens")
    simulate_screen(SCREEN, folder)
    return folder


@pytest.fixture(scope="module")
def root(screens: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    root = tmp_path_factory.mktemp("lake")
    sources = [{"screen": "small", "path": "small", "layout": "ome-zarr"}]
    arguments = ["--recipe", "real_screens", "--set", f"root={root}", "--set", f"screens.root={screens}"]
    arguments += ["--set", f"screens.sources={json.dumps(sources)}", "--set", "ingest.crop_size=32"]
    assert "2 plates in" in run("ingest", *arguments)
    return root


def test_inspect_says_what_an_ingest_would_take_and_writes_nothing(screens, tmp_path):
    before = sorted(path for path in screens.rglob("*"))
    said = run("inspect", screens / "small")
    assert "ome-zarr" in said
    assert "2 plates" in said
    assert "ScreenSource(screen='small'" in said
    found = json.loads(CliRunner().invoke(app, ["inspect", str(screens / "small"), "--json"]).stdout)
    assert sum(plate["n_sites"] for plate in found["plates"]) == 24
    assert sorted(path for path in screens.rglob("*")) == before
    (tmp_path / "notes.txt").write_text("no images here")
    run("inspect", tmp_path, code=1)
    assert "expected" in run("inspect", tmp_path / "missing", code=2)


def test_a_screen_inspected_is_the_screen_ingested(screens, root):
    found = json.loads(
        CliRunner().invoke(app, ["inspect", str(screens / "small"), "--json", "--crop-size", "32"]).stdout
    )
    catalog = cytolake.catalog.open(root)
    assert sum(plate["n_sites"] for plate in found["plates"]) == catalog.table("sites").num_rows
    assert sum(plate["n_crops"] for plate in found["plates"]) == catalog.table("crops").num_rows


def test_tag_and_vacuum(root):
    assert run("tag", "first", "--root", root).startswith("first: ")
    orphan = root / "tables" / "crops" / "part-of-a-killed-run.parquet"
    orphan.write_bytes(b"half")
    assert "1 orphaned files and 0 staging folders would be" in run(
        "vacuum", "--dry-run", "--older-than-h", "0", "--root", root
    )
    assert orphan.exists()
    assert "were removed" in run("vacuum", "--older-than-h", "0", "--root", root)
    assert not orphan.exists()
    assert cytolake.catalog.open(root).at("first").table("plates").num_rows == 2


def test_qc_from_verdicts_to_a_detector_of_its_own_labels(root, tmp_path):
    assert "no verdicts" in run("qc", "page", "--root", root, code=2)
    assert "qc_id" in run("qc", "judge", "--root", root)
    page = Path(run("qc", "page", "--root", root))
    assert "</html>" in page.read_text(encoding="utf-8")

    run("qc", "label", tmp_path / "sheet", "--set", "n_sites=24", "--root", root)
    sheet = tmp_path / "sheet" / "labels.csv"
    with sheet.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for number, row in enumerate(rows):
        row["label"] = "normal" if number // 2 % 2 else "defocus"  # sheets take plates by turns
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert run("qc", "read", sheet, "--labelled-by", "ada", "--root", root) == "24 sites labelled"
    assert run("qc", "read", sheet, "--labelled-by", "ada", "--root", root) == "0 sites labelled"
    assert "defocus" in run("qc", "train", "--root", root)
    said = run("qc", "efficiency", "--curve", "labels_per_class=1,4", "--curve", "seeds=0,1", "--root", root)
    assert "AUROC" in said
    assert "</svg>" in (root / "report" / "label_efficiency.svg").read_text(encoding="utf-8")
    measured = LabelCurveConfig(curve=LabelEfficiencyConfig(labels_per_class=(1, 4), seeds=(0, 1)))
    assert has_label_curve(cytolake.catalog.open(root), measured)
    assert not has_label_curve(cytolake.catalog.open(root), LabelCurveConfig())
    scored = cytolake.catalog.open(root).table("scores", where="metric = 'auroc' AND seed = -1")
    assert scored.num_rows == 2
    assert "learned_artefact" in run("qc", "judge", "--detector", root / "qc" / "detector.safetensors", "--root", root)
    assert "no such file" in run("qc", "judge", "--detector", tmp_path / "none", "--root", root, code=2)


def test_curations_are_listed_and_compared_and_their_packs_verified(root, screens, local_ray):
    settings = ["--recipe", "real_screens", "--set", f"root={root}", "--set", "pack.shard_mb=1"]
    run("curate", *settings)
    run("curate", *settings, "--set", "curate.name=default")
    listed = run("curation", "list", "--root", root)
    assert "any_screen" in listed
    assert "default" in listed
    said = run("curation", "diff", "any_screen", "default", "--root", root)
    assert "both keep" in said
    assert "none with this id or name" in run("curation", "diff", "any_screen", "lost", "--root", root, code=2)

    pack = next(path.parent for path in root.glob("packs/*/pack.json"))
    assert "every file as it was written" in run("pack", "verify", pack)
    copy = shutil.copytree(pack, root / "copy" / pack.name)
    shard = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert shard.name in run("pack", "verify", copy, code=1)
