"""The whole line on a screen of a few wells: every stage, twice, and each stage alone."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.split import SPLITS, WITHIN_PLATES
from cytolake.cli.main import app
from cytolake.pipeline import stages
from cytolake.pipeline.config import Line
from cytolake.pipeline.overrides import apply_overrides
from cytolake.pipeline.steps import MissingInputError
from cytolake.pipeline.summaries import print_choice
from cytolake.recipes import build_recipe
from cytolake.reports import report
from cytolake.reports.leaderboard_page import PAGE_FILE as LEADERBOARD_FILE
from cytolake.tracking import AliasNotFoundError, resolve_alias
from cytolake.tune.promotion import NoGainError, PromoteBy

pytestmark = pytest.mark.usefixtures("local_ray")

SMALL = (
    "screens.simulate.n_plates=2",
    "screens.simulate.n_pathways=1",
    "screens.simulate.genes_per_pathway=2",
    "screens.simulate.guides_per_gene=1",
    "screens.simulate.n_compounds=0",
    "screens.simulate.n_negative_controls=4",
    "screens.simulate.n_positive_controls=0",
    "screens.simulate.sites_per_well=2",
    "screens.simulate.site_size_px=128",
    "screens.simulate.artefact_share=0",
    "pretrain.model.width=24",
    "pretrain.model.depth=2",
    "pretrain.objective.mae.decoder_width=24",
    "pretrain.steps=4",
    "pretrain.minibatch_size=16",
    "probe.regularisation=[0.1]",
    "promote_without_gain=four steps train nothing",
    "benchmark.profiles.draws=19",
    "benchmark.profiles.seeds=0",
    "label_curve.train.simulated_per_kind=2",
    "label_curve.curve.labels_per_class=1",
    "label_curve.curve.seeds=[0, 1]",
)


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Line:
    root = tmp_path_factory.mktemp("lake")
    return dataclasses.replace(apply_overrides(build_recipe("demo"), SMALL), root=str(root))


@pytest.fixture(scope="module")
def first(line, local_ray) -> tuple[stages.PipelineResult, str]:
    return _run(line)


def test_the_pipeline_promotes_what_it_chose_and_writes_a_page(line, first):
    result, _ = first
    assert "Artefact detector" in result.report.read_text(encoding="utf-8")
    catalog = cytolake.catalog.open(line.root)
    assert result.card.representation_id == result.choice.representation_id
    assert resolve_alias(line.tracking.at(line.root), "champion").version == result.card.version
    kinds = set(catalog.table("representations")["kind"].to_pylist())
    assert kinds == {"trained", "untrained", "pixel_statistics", "cell_count"}
    page = result.report.read_text()
    for heading in (
        "Block search",
        "Map of the chosen representation",
        "Sample crops",
        "Pretraining",
        "Quality control",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "the page must not load anything from elsewhere"


def test_the_page_and_the_printed_text_say_that_no_gain_is_shown_and_the_page_why_it_was_promoted(first):
    result, _ = first
    page = result.report.read_text(encoding="utf-8")
    assert result.choice.gain_low is None  # two plates
    text = io.StringIO()
    print_choice(Console(file=text, width=120), result.choice, result.others)
    for shown in (page, text.getvalue()):
        assert "2 plates are too few for an interval, so no gain is shown" in _unwrapped(shown)
    assert "four steps train nothing" in page
    assert result.card.forced == "four steps train nothing"
    assert [each.metric for each in result.others] == ["balanced_accuracy", "balanced_accuracy_wells"]
    assert result.others[-1].split == "batch"


def test_without_a_reason_it_is_not_promoted_and_the_page_is_written(line, first):
    result, _ = _run(dataclasses.replace(line, promote_without_gain="", alias="candidate"))
    assert result.card is None
    assert "--force" in result.refusal
    assert "not promoted, since no gain is shown" in result.report.read_text(encoding="utf-8")
    with pytest.raises(AliasNotFoundError):
        resolve_alias(line.tracking.at(line.root), "candidate")
    with pytest.raises(NoGainError, match="too few for an interval"):
        stages.promote(
            dataclasses.replace(line, promote_without_gain="", alias="candidate"), Console(file=io.StringIO())
        )


def test_report_writes_the_pages_again_from_the_tables_and_computes_no_score(line, first):
    folder = first[0].report.parent
    pages = ("index.html", "qc.html", LEADERBOARD_FILE)
    for page in pages:
        (folder / page).unlink(missing_ok=True)
    catalog = cytolake.catalog.open(line.root)
    before = catalog.versions()
    text = io.StringIO()
    stages.report(line, Console(file=text, width=500))
    assert all((folder / page).is_file() for page in pages)
    assert "alias champion" in (folder / "index.html").read_text(encoding="utf-8")
    assert catalog.versions() == before
    stages.report(dataclasses.replace(line, alias="candidate"), Console(file=text, width=500))
    assert "not promoted" in (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("split", SPLITS)
def test_the_page_claims_what_the_split_allows(line, first, split, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_umap", lambda *_: "")
    monkeypatch.setattr(report, "_sample_crops", lambda *_: "")
    result = first[0]
    inputs = report.ReportInputs(
        title="t", qc_id="", curation_id="", run_folder=result.run_folder,
        representation_ids=(result.choice.representation_id,), facts=(), commands=(),
        choice=dataclasses.replace(result.choice, split=split, unit=split),
    )  # fmt: skip
    page = report.write_report(cytolake.catalog.open(line.root), inputs, tmp_path / "page.html").read_text("utf-8")
    claims_new_plates = "plates that the probe never saw" in page.split("<h2>Pretraining")[0]
    assert claims_new_plates == (split == "plate")
    assert ("of plates that the probe saw" in page) == (split in WITHIN_PLATES)
    assert page.count("<svg") >= 2


def test_the_figure_shows_one_protocol_and_one_chosen_block(line, first, tmp_path, monkeypatch):
    """Scores of another split of the same label are in the table, and not in the figure."""
    shown = []
    monkeypatch.setattr(report, "block_curves", lambda rows, *_, **more: shown.append((rows, more)) or "<svg></svg>")
    result = first[0]
    inputs = report.ReportInputs(
        title="t", qc_id="", curation_id="", run_folder=result.run_folder, facts=(), commands=(), choice=result.choice,
        representation_ids=tuple(cytolake.catalog.open(line.root).table("representations")["representation_id"].to_pylist()),
    )  # fmt: skip
    report._block_search(cytolake.catalog.open(line.root), inputs)
    ((rows, more),) = shown
    assert len({row["representation_id"] for row in rows}) == len(rows)
    assert sum(row["kind"] == "pixel_statistics" for row in rows) == 1
    assert sum(row["representation_id"] == more["chosen_id"] for row in rows) == 1


def test_a_second_run_writes_nothing(line, first):
    before = cytolake.catalog.open(line.root).versions()
    again, printed = _run(line)
    assert cytolake.catalog.open(line.root).versions() == before
    assert again.card.version == first[0].card.version
    assert "trained before" in printed


def test_each_stage_runs_alone_after_the_one_before_it(line, first):
    before = cytolake.catalog.open(line.root).versions()
    for job in (stages.ingest, stages.curate, stages.pretrain, stages.embed, stages.probe, stages.promote):
        job(line, Console(file=io.StringIO()))
    assert cytolake.catalog.open(line.root).versions() == before


def test_anndata_of_the_champion_has_the_tables_vectors(line, first):
    catalog = cytolake.catalog.open(line.root)
    cells = catalog.to_anndata(first[0].card.representation_id, level="crop")
    rows = catalog.table("embeddings", where=f"representation_id = '{first[0].card.representation_id}'").to_pylist()
    vectors = {row["crop_id"]: row["embedding"] for row in rows}
    np.testing.assert_array_equal(cells.X, np.array([vectors[crop] for crop in cells.obs_names], dtype=np.float32))
    assert catalog.to_anndata("champion").obs_names.equals(cells.obs_names)
    assert {"perturbation", "plate", "pathway"} <= set(cells.obs.columns)


@pytest.mark.parametrize(
    ("job", "told"),
    [(stages.pretrain, "Run jobs/curate.py"), (stages.embed, "Run jobs/curate.py")],
)
def test_a_stage_without_its_input_names_the_job_to_run(job, told, line, tmp_path):
    cytolake.catalog.open(tmp_path, create=True)
    with pytest.raises(MissingInputError, match=told):
        job(dataclasses.replace(line, root=str(tmp_path)), Console(file=io.StringIO()))


def test_a_stage_of_another_recipe_names_the_training_that_is_missing(line, first):
    other = apply_overrides(line, ["pretrain.seed=9"])
    with pytest.raises(MissingInputError, match=r"Run jobs/pretrain\.py"):
        stages.probe(other, Console(file=io.StringIO()))


def test_a_stage_on_no_catalog_says_so(line, tmp_path):
    with pytest.raises(ValueError, match="no catalog there"):
        stages.curate(dataclasses.replace(line, root=str(tmp_path / "nowhere")), Console(file=io.StringIO()))


def _run(line: Line) -> tuple[stages.PipelineResult, str]:
    printed = io.StringIO()
    result = stages.run_pipeline(line, Console(file=printed, width=200))
    assert Path(result.report).is_file()
    return result, printed.getvalue()


def test_a_sweep_tries_settings_by_their_names_and_a_second_one_trains_nothing(line, first):
    asked = ["sweep.space=pretrain.objective.mae.mask_ratio=0.75", "sweep.searcher=grid", "sweep.confirm_seeds=[]"]
    swept = apply_overrides(line, [*asked, "sweep.stops_early=false", "study.split_seeds=[0]"])
    printed = io.StringIO()
    stages.sweep(swept, Console(file=printed, width=200))
    assert "objective.mae.mask_ratio" in printed.getvalue()
    assert "train with the best: --set pretrain.objective.mae.mask_ratio=0.75" in printed.getvalue()
    ledger = next(Path(line.root, "runs", "sweeps").glob("*/trials.jsonl"))
    known = ledger.read_text()
    assert known.count("ended") == 1
    stages.sweep(swept, Console(file=io.StringIO()))
    assert ledger.read_text() == known


def test_the_benchmark_scores_every_label_beside_the_baselines(line, first):
    printed = io.StringIO()
    tasks = (("perturbation", "plate"), ("plate", "well"))
    benchmark = dataclasses.replace(line.benchmark, tasks=tasks)
    stages.benchmark(dataclasses.replace(line, benchmark=benchmark), Console(file=printed, width=200))
    labels = (
        cytolake.catalog.open(line.root)
        .sql("select distinct label from scores where benchmark = 'linear_probe'")["label"]
        .to_pylist()
    )
    assert set(labels) == {"perturbation", "plate"}
    assert "pixel statistics" in printed.getvalue()
    page = Path(line.root, "report", "leaderboard.html").read_text(encoding="utf-8")
    assert "Replicate consistency" in page
    assert "expected 12 or more" in page  # two genes are too few for recall, and the page says so


def test_a_ranking_of_the_leaderboard_can_choose_what_is_promoted(line, first):
    by = PromoteBy(benchmark="activity_map", metric="mean_average_precision", label="perturbation", alignment="pca_cs")
    benchmark = dataclasses.replace(line.benchmark, tasks=(("perturbation", "plate"),))
    chosen = dataclasses.replace(line, promote_by=by, alias="by_activity", benchmark=benchmark)
    with pytest.raises(ValueError, match=r"no score of activity_map.*Run jobs/benchmark\.py"):
        stages.promote(dataclasses.replace(chosen, promote_by=dataclasses.replace(by, label="nothing")), Console())
    stages.benchmark(chosen, Console(file=io.StringIO()))
    stages.promote(chosen, Console(file=io.StringIO()))
    card = resolve_alias(line.tracking.at(line.root), "by_activity").card
    ranked = leaderboard(
        cytolake.catalog.open(line.root),
        LeaderboardFilter(benchmark="activity_map", metric=by.metric, alignment="pca_cs", all_blocks=True),
    ).to_pylist()
    best = next(row for row in ranked if row["kind"] == "trained")
    assert (card.representation_id, card.score) == (best["representation_id"], best["value"])
    assert "activity map, mean average precision, perturbation" in card.reason
    assert "alignment pca_cs" in card.reason


def test_what_is_exported_can_be_imported_and_is_ranked_beside_its_source(line, first, tmp_path):
    import anndata

    card = first[0].card
    (source,) = (  # profiles of cls vectors are not benchmarked
        cytolake.catalog.open(line.root)
        .table("representations", where=f"model_id = '{card.model_id}' and pooling = 'mean' and block = 1")
        .to_pylist()
    )
    profiles, crops, blocks = (tmp_path / name for name in ("profiles.parquet", "crops.parquet", "blocks.h5ad"))
    run_cli("export", profiles, "--representation", source["representation_id"], "--root", line.root)
    run_cli("export", blocks, "--model", card.model_id, "--root", line.root)
    assert set(anndata.read_h5ad(blocks).obsm) == {f"block_{b}_{p}" for b in (0, 1) for p in ("mean", "cls")}
    assert "is representation" in run_cli("import", profiles, "--name", "peer", "--root", line.root)
    of_source = ("--representation", source["representation_id"], "--root", line.root)
    run_cli("export", crops, "--level", "crop", *of_source)
    run_cli("import", crops, "--name", "peer of crops", "--pack-id", source["pack_id"], "--root", line.root)
    stages.benchmark(
        dataclasses.replace(line, benchmark=dataclasses.replace(line.benchmark, tasks=(("perturbation", "plate"),))),
        Console(file=io.StringIO()),
    )
    ranked = tmp_path / "leaderboard.parquet"
    printed = run_cli(
        "leaderboard", "--benchmark", "activity_map", "--all-blocks", "--parquet", ranked, "--root", line.root
    )
    assert "peer" in printed
    scores = {
        (row["architecture"], row["alignment"], row["metric"]): row["value"]
        for row in pq.read_table(ranked).to_pylist()
        if row["kind"] == "external" or row["representation_id"] == source["representation_id"]
    }
    for alignment in ("none", "pca_cs"):
        ours = scores[source["architecture"], alignment, "mean_average_precision"]
        for peer in ("peer", "peer of crops"):
            assert scores[peer, alignment, "mean_average_precision"] == pytest.approx(ours, abs=1e-6)
    run_cli("leaderboard", "--label", "perturbation", "--all-blocks", "--parquet", ranked, "--root", line.root)
    probed = {
        row["architecture"]: row["value"]
        for row in pq.read_table(ranked).to_pylist()
        if row["benchmark"].startswith("linear_probe")
        and row["metric"] == "balanced_accuracy"
        and (row["kind"] == "external" or row["representation_id"] == source["representation_id"])
    }
    assert set(probed) == {source["architecture"], "peer of crops"}  # single crops are probed, and `peer` has wells
    assert probed["peer of crops"] == probed[source["architecture"]]


def run_cli(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
