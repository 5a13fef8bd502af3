"""The commands that people type, one after the other, on one small screen."""

from __future__ import annotations

import csv
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows
from tests.embed.small_screen import make_small_screen
from tests.ray_in_process import ray_in_process as in_process
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.transcriptomics import TASKS
from cytolake.cli.main import app
from cytolake.pipeline.label_curve import LabelCurveConfig, has_label_curve
from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig
from cytolake.screens.positions import name_of_well
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.tracking import Baseline, ModelCard, TrackingConfig, promote

SCREEN = SimulatedScreen(
    screen="small", n_plates=2, n_pathways=1, genes_per_pathway=2, guides_per_gene=1, n_compounds=0,
    n_negative_controls=3, n_positive_controls=1, sites_per_well=2, site_size_px=128, artefact_share=0.5,
)  # fmt: skip


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
def root(screens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lake")
    sources = [{"screen": "small", "path": "small", "layout": "ome-zarr"}]
    arguments = ["--recipe", "real_screens", "--set", f"root={root}", "--set", f"screens.root={screens}"]
    arguments += ["--set", f"screens.sources={json.dumps(sources)}", "--set", "ingest.crop_size=32"]
    with in_process():
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


@pytest.mark.slow
def test_encoders_are_compared_with_pixel_statistics(root, tmp_path, ray_in_process):
    table = tmp_path / "scores.csv"
    few = ["--set", "curve.seeds=[0, 1]", "--set", "curve.labels_per_class=[1, 2]", "--set", "curve.n_resamples=20"]
    options = [
        "--labels",
        "plate_map",
        "--head",
        "knn",
        "--head",
        "mahalanobis",
        *few,
        "--table",
        table,
        "--root",
        root,
    ]
    said = run("qc", "compare-encoders", "test_vit", *options)
    assert re.search(
        r"\d plates? (is|are) too few for an interval, so no encoder is shown to beat pixel statistics", said
    )
    page = (root / "report" / "qc_encoders.html").read_text()
    assert "test_vit (untrained)" in page
    rows = pd.read_csv(table)
    assert set(rows["encoder"]) == {"statistics", "test_vit (untrained)"}
    assert set(rows["head"]) == {"knn", "mahalanobis"}
    scores = cytolake.catalog.open(root).table("scores", where="benchmark = 'qc_encoders'")
    assert f"{scores.num_rows:,} scores in the scores table" in said
    assert "found no model of timm" in run("qc", "compare-encoders", "nothing", *options, code=2)
    assert "expected .csv or .parquet" in run(
        "qc", "compare-encoders", "test_vit", *options, "--table", tmp_path / "scores.txt", code=2
    )


@pytest.mark.slow
def test_curations_are_listed_and_compared_and_their_packs_verified(root, ray_in_process):
    settings = ["--recipe", "real_screens", "--set", f"root={root}", "--set", "pack.shard_mb=1"]
    run("curate", *settings)
    run("curate", *settings, "--set", "curate.name=default")
    listed = run("curation", "list", "--root", root)
    assert "any_screen" in listed
    assert "default" in listed
    said = run("curation", "diff", "any_screen", "default", "--root", root)
    assert "both keep" in said
    assert "0 with this id or name" in run("curation", "diff", "any_screen", "lost", "--root", root, code=2)

    pack = next(path.parent for path in root.glob("packs/*/pack.json"))
    assert "every file as it was written" in run("pack", "verify", pack)
    copy = shutil.copytree(pack, root / "copy" / pack.name)
    shard = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert shard.name in run("pack", "verify", copy, code=1)


N_GENES, DIM = 24, 16


def rxrx3_core_files(folder: Path) -> tuple[Path, Path, Path, Path]:
    """A small RxRx3-core as it is published: metadata, embeddings, truth; and related pairs of its genes.

    Genes 2 i and 2 i + 1 share a direction; drug i of three acts on gene i at 1 uM and more.
    """
    rng = np.random.default_rng(0)
    pairs, own = rng.normal(size=(N_GENES // 2, DIM)), 0.5 * rng.normal(size=(N_GENES, DIM))
    of_gene = [pairs[i // 2] + own[i] for i in range(N_GENES)]
    rows: list[tuple[str, str, str, str, str, str]] = []
    vectors = []

    def add(experiment: str, gene: str, treatment: str, dose: str, kind: str, effect: np.ndarray | float) -> None:
        number = sum(row[0] == experiment for row in rows)
        rows.append((experiment, name_of_well(number // 48, number % 48), gene, treatment, dose, kind))
        vectors.append(effect + 0.3 * rng.normal(size=DIM))

    for experiment in ("gene-001", "gene-002"):
        for i in range(N_GENES):
            for guide in (1, 2):
                add(experiment, f"G{i:02d}", f"G{i:02d}_guide_{guide}", "", "CRISPR", of_gene[i])
        for _ in range(12):
            add(experiment, "EMPTY_control", "EMPTY_control", "", "CRISPR", 0.0)
    for i in range(3):
        for dose in ("0.25", "1.0", "10.0"):
            add("compound-001", "", f"drug{i}", dose, "COMPOUND", 2 * of_gene[i] if float(dose) >= 1 else 0.0)
    for _ in range(12):
        add("compound-001", "", "EMPTY_control", "", "COMPOUND", 0.0)

    ids = [f"{experiment}_1_{well}" for experiment, well, *_ in rows]
    lines = [
        f"{identity},{experiment},1,{well},{gene},{treatment},,{dose},{kind},HUVEC"
        for identity, (experiment, well, gene, treatment, dose, kind) in zip(ids, rows, strict=True)
    ]
    head = "well_id,experiment_name,plate,address,gene,treatment,SMILES,concentration,perturbation_type,cell_type"
    metadata, truth, relations = (folder / f"{name}.csv" for name in ("metadata", "truth", "relations"))
    metadata.write_text("\n".join([head, *lines]) + "\n")
    embeddings = folder / "embeddings.parquet"
    features = np.asarray(vectors, np.float32)
    pq.write_table(pa.table({"well_id": ids, **{f"feature_{d}": features[:, d] for d in range(DIM)}}), embeddings)
    targets = [f"G{i:02d},100,drug{i}" for i in range(3)] + [f"G{i:02d},5,elsewhere" for i in range(N_GENES)]
    truth.write_text("\n".join(["gene_symbol,nM_value,treatment", *targets]) + "\n")
    related = [f"G{i:02d},G{i + 1:02d}" for i in range(0, N_GENES, 2)]
    relations.write_text("\n".join(["entity1,entity2", *related]) + "\n")
    return metadata, embeddings, truth, relations


@pytest.mark.slow
def test_a_published_screen_is_imported_and_scored_without_an_image(tmp_path):
    metadata, embeddings, truth, relations = rxrx3_core_files(tmp_path)
    root = tmp_path / "lake"
    arguments = ["import", embeddings, "--name", "openphenom", "--rxrx3-core", metadata, "--root", root]
    said = run(*arguments)
    assert "141 wells without images came in, 0 were there" in said
    identity = said.split(" is representation ")[1].split()[0]
    assert "0 wells without images came in, 141 were there" in run(*arguments)
    assert "3" in run("tables", "--root", root)  # plates

    tasks = "relations,consistency,compound_gene,leakage,mechanism"
    settings = [
        "--set", f"tasks={tasks}", "--set", "draws=99", "--set", f"relation_files={relations}",
        "--set", f"compound_gene_truth={truth}", "--root", root,
    ]  # fmt: skip
    said = run("score", "openphenom", *settings, "--page", tmp_path / "page.html", "--parquet", tmp_path / "r.parquet")
    assert "not scored: mechanism, none: no treated well has a pathway" in said
    assert "relation_recall" in said
    rows = {
        (row["benchmark"], row["metric"], row["alignment"]): row
        for row in pq.read_table(tmp_path / "r.parquet").to_pylist()
    }
    assert {row["representation_id"] for row in rows.values()} == {identity}
    assert rows["relation_recall", "recall_05_95", "pca_cs"]["value"] > 0.5
    assert rows["compound_gene", "average_precision", "none"]["value"] > 0.5
    assert rows["compound_gene", "auroc", "pca_cs"]["value"] > 0.8
    assert rows["perturbation_consistency", "share_significant", "pca_cs"]["value"] > 0.8
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "openphenom" in page
    assert "Compound gene" in page
    (tmp_path / "unexpressed.txt").write_text("no gene\n")
    named = ["--null-perturbations", tmp_path / "unexpressed.txt", "--set", "tasks=consistency", "--root", root]
    assert "1 of 1 are no perturbation or gene of the screen (no gene)" in run("score", identity, *named)
    n_scores = cytolake.catalog.open(root).table("scores").num_rows
    assert f"{n_scores} scores" in run("score", identity, *settings)
    assert cytolake.catalog.open(root).table("scores").num_rows == n_scores


@pytest.mark.slow
def test_chromosome_arms_and_measured_features_are_options_of_score(tmp_path):
    """Two arms of 10 genes that share one vector each; a feature that the vectors hold."""
    random = np.random.default_rng(0)
    wells = [
        (f"P{plate}", name_of_well(i // 24, i % 24), f"G{i:02d}" if i < 20 else "", "" if i < 20 else "negative")
        for plate in (1, 2)
        for i in range(30)
    ]
    plates, names, genes, _ = zip(*wells, strict=True)
    lines = [f"{plate},{well},{gene},{gene},{control}" for plate, well, gene, control in wells]
    (tmp_path / "wells.csv").write_text("\n".join(["plate,well,perturbation,gene,control", *lines]) + "\n")
    (tmp_path / "arms.csv").write_text("\n".join(["gene,arm", *(f"G{i:02d},{i // 10 + 1}p" for i in range(20))]) + "\n")
    shared = 5 * random.normal(size=(2, 6))
    vectors = random.normal(size=(60, 6)) + np.stack(
        [shared[int(gene[1:]) // 10] if gene else np.zeros(6) for gene in genes]
    )
    place = {"Metadata_Plate": plates, "Metadata_Well": names}
    pq.write_table(pa.table(place | {f"f{d}": vectors[:, d] for d in range(6)}), tmp_path / "vectors.parquet")
    pq.write_table(pa.table(place | {"Cells_Intensity_Mean": vectors @ np.ones(6)}), tmp_path / "features.parquet")
    root = ["--root", tmp_path / "lake"]
    run(
        "import", tmp_path / "vectors.parquet", "--name", "x", "--wells", tmp_path / "wells.csv", "--screen", "s", *root
    )
    options = ["--features", tmp_path / "features.parquet", "--chromosome-arms", tmp_path / "arms.csv"]
    settings = ["--set", "tasks=feature_regression,percent_replicating", "--set", "draws=99", *root]
    few = run("score", "x", *options, *settings, code=2)
    assert "no chromosome arm has 21 genes among the 20 that were perturbed (1p has the most, 10)" in few
    page = tmp_path / "page.html"
    said = run("score", "x", *options, *settings, "--set", "min_arm_genes=10", "--page", page)
    assert "median r2 of Intensity, held out by plate, alignment none, chromosome_arms" in said
    assert "alignment pca_cs, chromosome_arms" in said
    assert "not scored" not in said
    assert "alignment none, chromosome_arms" in page.read_text(encoding="utf-8")
    assert "of perturbation, alignment none, 60 wells, chance " in run("score", "x", *settings)


def test_what_cannot_be_scored_is_refused_with_the_reason(root, tmp_path):
    assert "not in the table representations" in run("score", "missing", "--root", root, code=2)
    assert "has no field" in run("score", "missing", "--set", "speed=1", "--root", root, code=2)
    absent = tmp_path / "unexpressed.txt"
    assert "found no names" in run("score", "missing", "--null-perturbations", absent, "--root", root, code=2)
    metadata, embeddings, *_ = rxrx3_core_files(tmp_path)
    twice = ["--rxrx3-core", metadata, "--rxrx1", metadata]
    assert "expected one of --rxrx3-core" in run(
        "import", embeddings, "--name", "x", *twice, "--root", tmp_path / "lake", code=2
    )
    assert not (tmp_path / "lake").exists()


@pytest.mark.slow
def test_embeddings_of_any_plate_map_are_imported_and_several_are_scored_at_once(tmp_path, ray_in_process):
    wells = [
        f"P{plate},{name_of_well(0, i)},{'negative' if i < 10 else ''},drug{i % 3}"
        for plate in (1, 2)
        for i in range(20)
    ]
    (tmp_path / "wells.csv").write_text("\n".join(["plate,well,control,compound", *wells]) + "\n")
    plates, names, *_ = zip(*(each.split(",") for each in wells), strict=True)
    for seed, name in enumerate(("one", "two")):
        vectors = np.random.default_rng(seed).normal(size=(40, 4))
        columns = {"Metadata_Plate": plates, "Metadata_Well": names} | {f"feature_{d}": vectors[:, d] for d in range(4)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        arguments = ["--wells", tmp_path / "wells.csv", "--screen", "mine", "--root", tmp_path / "lake"]
        came = 40 if name == "one" else 0
        assert f"{came} wells without images" in run("import", tmp_path / f"{name}.parquet", "--name", name, *arguments)
    settings = ["--set", "tasks=leakage", "--set", "alignments=none", "--set", "draws=19"]
    run("score", "one", "two", *settings, "--parquet", tmp_path / "r.parquet", "--root", tmp_path / "lake")
    ranked = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert sorted((row["benchmark"], row["architecture"]) for row in ranked) == [
        ("batch_leakage", "one"),
        ("batch_leakage", "two"),
    ]


BIOLOGY = (
    ("nearest_neighbours", "top1"),
    ("linear_separability", "top1"),
    ("perturbation_signal", "distinct_share"),
    ("reconstruction", "pearson"),
)
QUICK = ["--few-rows", "--seed", 0, "--set", "signal_draws=39", "--set", "bootstrap_draws=20"]


def planted_wells(seed: int = 0) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Wells of 4 plates, 3 of each of 8 genes and 6 controls, and what is in each: genes 2 i and 2 i + 1 are alike."""
    random = np.random.default_rng(seed)
    programmes = random.normal(size=(4, 6))
    wells, latent = [], []
    for plate in ("P0", "P1", "P2", "P3"):
        shift = 0.3 * random.normal(size=6)
        for column, gene in enumerate([None] * 6 + [g for g in range(8) for _ in range(3)]):
            wells.append(
                {
                    "well_id": f"{plate}-{column:02d}", "plate_id": plate, "screen": "s", "plate": plate,
                    "batch": f"batch of {plate}", "well": f"A{column:02d}", "row": 0, "column": column,
                    "perturbation": "DMSO" if gene is None else f"gene{gene}", "has_images": True,
                    "is_negative_control": gene is None,
                }
            )  # fmt: skip
            latent.append(shift + (0 if gene is None else 2 * programmes[gene // 2]) + 0.4 * random.normal(size=6))
    return wells, np.asarray(latent)


@pytest.fixture(scope="module")
def relations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("relations") / "programmes.csv"
    path.write_text("entity1,entity2\n" + "".join(f"gene{2 * i},gene{2 * i + 1}\n" for i in range(4)))
    return path


def test_an_expression_screen_is_scored_and_ranked_in_one_command(relations, tmp_path):
    wells, latent = planted_wells()
    random = np.random.default_rng(1)
    obs = pd.DataFrame({"target": [well["perturbation"] for well in wells], "lane": [well["plate"] for well in wells]})
    expression = latent @ random.normal(size=(6, 30)) + 0.3 * random.normal(size=(len(wells), 30))
    data = anndata.AnnData(expression.astype(np.float32), obs.set_index(obs.index.astype(str)))
    data.obsm["model"] = latent.astype(np.float32)
    path, root = tmp_path / "screen.h5ad", tmp_path / "lake"
    data.write_h5ad(path)
    said = [path, "--perturbation", "target", "--control", "DMSO", "--batch", "lane", "--values", "features"]
    said += ["--root", root]
    settings = [*said, "--obsm", "model", "--relations", relations, *QUICK, "--set", "embedding.n_components=6"]
    printed = run("transcriptomics", *settings, "--parquet", tmp_path / "rankings.parquet")
    for benchmark in ("batch_mixing", "linear_separability", "nearest_neighbours", "known_relations"):
        assert benchmark in printed
    assert "r2 of target, held out by batch, screen screen" in printed
    assert "balanced top1 of target, held out by batch, screen screen" in printed
    assert "model, centred" in printed
    assert "chance 0.143, most frequent class 0.143" in printed  # 6 of 8 genes are seen, and the control
    assert "noise mixes as well" in printed
    page = (root / "report" / "transcriptomics" / "screen.html").read_text()
    assert "<svg" in page
    assert "first in" in page
    assert "screen_perturbations.csv" in page
    of_perturbations = pd.read_csv(root / "report" / "transcriptomics" / "screen_perturbations.csv")
    assert set(of_perturbations["perturbation"]) == {f"gene{i}" for i in range(8)}
    assert set(of_perturbations["test"]) == {"consistent", "distinct"}
    assert (of_perturbations["q_value"] >= of_perturbations["p_value"]).all()
    ranked = pq.read_table(tmp_path / "rankings.parquet").to_pylist()
    for ranking in BIOLOGY:
        names = [row["architecture"] for row in ranked if (row["benchmark"], row["metric"]) == ranking]
        assert set(names[:2]) == {"pca (n_components=6)", "model"}
        assert set(names[2:]) == {"scrambled_pca (n_components=6)", "random"}
    elsewhere = tmp_path / "elsewhere.parquet"
    again = run("transcriptomics", *settings, "--targets", elsewhere, "--page", tmp_path / "page.html")
    assert "0 new scores" in again
    assert str(elsewhere) in again
    assert pq.read_table(elsewhere).num_rows == len(of_perturbations)
    assert (tmp_path / "page.html").is_file()
    assert "expected a name that ends in .csv" in run("transcriptomics", *settings, "--targets", "a.txt", code=2)
    assert "r2 of target" in run("leaderboard", "--root", root)
    assert "embedding 'pcs' is unknown" in run("transcriptomics", *settings, "--embedding", "pcs", code=2)
    assert "no column 'gene'" in run("transcriptomics", *said, "--perturbation", "gene", code=2)
    assert "has no field 'perplexty'" in run("transcriptomics", *settings, "--set", "perplexty=3", code=2)


@pytest.mark.slow
def test_exported_image_embeddings_go_through_the_same_six_tasks(relations, tmp_path):
    wells, latent = planted_wells()
    random = np.random.default_rng(1)
    catalog = empty_catalog(tmp_path / "images")
    add_rows(catalog, "wells", *wells)
    plates = [{"plate_id": f"P{i}", "plate": f"P{i}", "screen": "s"} for i in range(4)]
    add_rows(catalog, "plates", *plates)
    units = 10.0 ** random.integers(-2, 6, 20)  # correlations, counts, squared counts
    vectors = {
        "trained": latent @ random.normal(size=(6, 12)),
        "pixels": units * (latent @ random.normal(size=(6, 20)) + 0.3 * random.normal(size=(len(wells), 20))),
    }
    for identity, each in vectors.items():
        is_block = identity == "trained"
        row = {
            "representation_id": identity, "kind": "trained" if is_block else "pixel_statistics", "model_id": identity,
            "architecture": "mae_vit" if is_block else "pixel_statistics", "block": 3 if is_block else -1,
            "pooling": "mean" if is_block else "all", "dim": each.shape[1], "pack_id": "pack",
            "created_at": datetime.now(UTC),
        }  # fmt: skip
        add_rows(catalog, "representations", row)
        profiles = [
            {"representation_id": identity, "well_id": well["well_id"], "plate_id": well["plate_id"], "n_crops": 1}
            | {"profile": vector.tolist()}
            for well, vector in zip(wells, each, strict=True)
        ]
        add_rows(catalog, "profiles", *profiles)
    place = ["--root", catalog.root]
    bare, both = tmp_path / "blocks.h5ad", tmp_path / "both.h5ad"
    run("export", bare, "--model", "trained", *place)
    assert "2 representations" in run("export", both, "--model", "trained", "--representation", "pixels", *place)
    said = ["--perturbation", "perturbation", "--control", "DMSO", "--batch", "batch", "--obsm", "block_3_mean"]
    said += ["--relations", relations, *QUICK, *place]

    printed = run("transcriptomics", both, "--values", "scaled", "--matrix-key", "pixel_statistics", *said)
    assert "left out" not in printed
    screen = catalog.sql("select distinct pack_id from representations where kind = 'expression'")["pack_id"][0].as_py()
    ranked = leaderboard(catalog, LeaderboardFilter(pack_id=screen)).to_pylist()
    assert {row["benchmark"] for row in ranked} == set(TASKS)
    for ranking in BIOLOGY:
        names = [row["architecture"] for row in ranked if (row["benchmark"], row["metric"]) == ranking]
        assert set(names[:2]) == {"pca", "block_3_mean"}

    tasks = ["--task", "linear_separability", "--task", "reconstruction"]
    printed = run("transcriptomics", bare, "--values", "features", *tasks, *said)
    assert "left out: linear_separability, reconstruction of pca, scrambled_pca" in printed
    assert "left out: reconstruction of random, block_3_mean" in printed
    assert "cytolake export --representation" in printed
    assert "balanced top1 standardised of perturbation" in printed
    assert "X is empty" in run("transcriptomics", bare, *said, code=2)


@pytest.mark.slow
def test_the_promoted_encoder_is_audited_and_augmentations_are_proposed(tmp_path):
    small = make_small_screen(tmp_path / "root", crops_per_well=4)
    baseline = Baseline(
        kind="untrained", representation_id="twin", block=1, pooling="mean", score=0.2, ci_low=0.1, ci_high=0.3
    )
    row = {
        "representation_id": "twin", "kind": "untrained", "model_id": "u", "architecture": "chada_vit", "block": 1,
        "pooling": "mean", "dim": 16, "pack_id": "small", "checkpoint": str(small.checkpoints["untrained"]),
        "created_at": datetime.now(UTC),
    }  # fmt: skip
    add_rows(small.catalog, "representations", row)
    card = ModelCard(
        representation_id="r", model_id="m", architecture="chada_vit", channels=("DNA", "ER"), crop_size=16, block=1,
        pooling="mean", dim=16, pack_id="small", curation_id="c", table_versions={}, run_id="",
        benchmark="linear_probe", label="perturbation", split="plate", metric="balanced_accuracy", score=0.5,
        ci_low=0.4, ci_high=0.6,
        baselines=(baseline,),
    )  # fmt: skip
    promote(TrackingConfig().at(tmp_path / "root"), card, small.checkpoints["trained"])
    quick = ("--set", "knobs=[blur_sigma_px, noise]", "--set", "strengths=[0.5]", "--set", "bootstrap_draws=20")
    said = run("audit", "--root", tmp_path / "root", "--parquet", tmp_path / "audit.parquet", *quick)
    assert "blur_sigma_px 0.5" in said
    assert "train with" in said or "leave" in said
    rows = pq.read_table(tmp_path / "audit.parquet").to_pylist()
    assert {row["encoder"] for row in rows} == {"trained", "untrained"}
    assert {row["knob"] for row in rows} == {"", "blur_sigma_px", "noise"}
    assert (tmp_path / "root" / "report" / "audit.html").is_file()
    said = run("audit", "--root", tmp_path / "root", "--keep", "plate", "--ignore", "plate", *quick, code=2)
    assert "plate is to be kept and to be ignored" in said
