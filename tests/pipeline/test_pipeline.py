"""The whole pipeline on a screen of a few wells: its result, a second run, each stage alone, and the same on Ray."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tests.golden_lake import copy_golden_lake, golden_config
from tests.ray_in_process import ray_in_process
from typer.testing import CliRunner

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.catalog.declared import declared_path
from cytolake.cli.main import app
from cytolake.pipeline import stages
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.inputs import MissingInputError
from cytolake.pipeline.overrides import apply_overrides
from cytolake.pipeline.steps import Steps
from cytolake.reports import report, report_figures
from cytolake.reports.leaderboard_page import PAGE_FILE as LEADERBOARD_FILE
from cytolake.reports.report_figures import block_search_figure
from cytolake.reports.report_inputs import ReportInputs
from cytolake.tracking import AliasNotFoundError, resolve_alias
from cytolake.tune.block_search import BlockChoice
from cytolake.tune.promotion import NoGainError, PromoteBy
from cytolake.tune.sweep import SweepResult
from cytolake.tune.sweep_ledger import SweepTrial


@pytest.fixture(scope="module")
def copied(golden_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """The recipe of a copy of the golden lake, which the tests of this file write to."""
    root = copy_golden_lake(golden_lake, tmp_path_factory.mktemp("pipeline") / "lake")
    return golden_config(root, screens=golden_lake / "screens")


@pytest.fixture
def without_maps(monkeypatch):
    """Pages without the UMAP, which takes longer than all else of a page; the golden lake's has it."""
    monkeypatch.setattr(report, "umap_figure", lambda *_: "")


def run(job, config: PipelineConfig) -> str:
    text = io.StringIO()
    job(config, Console(file=text, width=500))
    return text.getvalue()


def pages_of(root: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (root / "report").glob("*.html")}


def chosen(config: PipelineConfig) -> BlockChoice:
    """What the pipeline chose, from the tables."""
    with ray_in_process(), stages._steps(config, Console(file=io.StringIO())) as steps:
        pack = steps.newest_pack()
        return steps.choose(steps.representation_ids(pack, steps.finished_run(pack)))


def test_the_pipeline_promotes_what_it_chose_and_writes_pages(golden_lake):
    config = golden_config(golden_lake)
    catalog = cytolake.catalog.open(golden_lake)
    kinds = set(catalog.table("representations")["kind"].to_pylist())
    assert kinds == {"trained", "untrained", "pixel_statistics", "cell_count"}
    card = resolve_alias(config.tracking.at(config.root), "champion").card
    assert card.representation_id == chosen(config).representation_id
    assert card.forced == "four steps train nothing"
    pages = pages_of(golden_lake)
    assert {"index.html", "qc.html", LEADERBOARD_FILE} <= pages.keys()
    page = pages["index.html"]
    headings = ("Block search", "Map of the chosen representation", "Sample crops", "Pretraining", "Quality control")
    assert [heading for heading in headings if f"<h2>{heading}</h2>" not in page] == []
    assert "Artefact detector" in page
    assert "alias champion" in page
    elsewhere = ("http://www.w3.org", "http://purl.org", "http://creativecommons.org", "https://matplotlib.org")
    for namespace in elsewhere:
        page = page.replace(namespace, "")
    assert "http" not in page, "the page must not load anything from elsewhere"


def test_page_and_terminal_say_that_no_gain_is_shown_and_why_it_was_promoted(golden_lake):
    printed = (golden_lake.parent / "golden.txt").read_text(encoding="utf-8")
    page = pages_of(golden_lake)["index.html"]
    assert "No gain shown" in printed
    assert "No gain shown" in page
    assert "four steps train nothing" in page
    assert "by batch" in printed  # held out in another way too


def test_the_benchmark_scores_every_label_next_to_the_baselines(golden_lake):
    labels = cytolake.catalog.open(golden_lake).sql(
        "select distinct label from scores where benchmark = 'linear_probe'"
    )
    assert {"perturbation", "plate"} <= set(labels["label"].to_pylist())
    page = pages_of(golden_lake)[LEADERBOARD_FILE]
    assert "pixel statistics" in page
    assert "Replicate consistency" in page
    assert "expected 12 or more" in page  # too few genes for recall, and the page says so


@pytest.mark.parametrize(("split", "is_of_new_plates"), [("plate", True), ("well", False)])
def test_the_page_claims_what_the_split_allows(
    golden_lake, split, is_of_new_plates, tmp_path, monkeypatch, without_maps
):
    monkeypatch.setattr(report, "sample_crops_figure", lambda *_: "")
    choice = chosen(golden_config(golden_lake))
    (folder,) = {path.parent for path in golden_lake.glob("runs/*/result.json")}
    inputs = ReportInputs(
        title="t", qc_id="", curation_id="", run_folder=folder, representation_ids=(choice.representation_id,),
        facts=(), commands=(), choice=dataclasses.replace(choice, split=split, unit=split),
    )  # fmt: skip
    page = report.write_report(cytolake.catalog.open(golden_lake), inputs, tmp_path / "page.html").read_text("utf-8")
    claims_new_plates = "plates that the probe never saw" in page.split("<h2>Pretraining")[0]
    assert claims_new_plates == is_of_new_plates
    assert ("of plates that the probe saw" in page) == (not is_of_new_plates)
    assert page.count("<svg") >= 2


def test_the_figure_shows_one_protocol_and_one_chosen_block(golden_lake, monkeypatch):
    """Scores of another split of the same label are in the table, and not in the figure."""
    shown = []
    monkeypatch.setattr(
        report_figures, "block_curves", lambda rows, *_, **more: shown.append((rows, more)) or "<svg></svg>"
    )
    catalog = cytolake.catalog.open(golden_lake)
    inputs = ReportInputs(
        title="t", qc_id="", curation_id="", run_folder=golden_lake, facts=(), commands=(),
        choice=chosen(golden_config(golden_lake)),
        representation_ids=tuple(catalog.table("representations")["representation_id"].to_pylist()),
    )  # fmt: skip
    block_search_figure(catalog, inputs)
    ((rows, more),) = shown
    assert len({row["representation_id"] for row in rows}) == len(rows)
    assert sum(row["kind"] == "pixel_statistics" for row in rows) == 1
    assert sum(row["representation_id"] == more["chosen_id"] for row in rows) == 1


def test_anndata_of_the_champion_has_the_tables_vectors(golden_lake):
    catalog = cytolake.catalog.open(golden_lake)
    champion = resolve_alias(golden_config(golden_lake).tracking.at(golden_lake), "champion").card.representation_id
    cells = catalog.to_anndata("champion", level="crop")
    rows = catalog.table("embeddings", where=f"representation_id = '{champion}'").to_pylist()
    vectors = {row["crop_id"]: row["embedding"] for row in rows}
    np.testing.assert_array_equal(cells.X, np.array([vectors[crop] for crop in cells.obs_names], dtype=np.float32))
    assert {"perturbation", "plate", "pathway"} <= set(cells.obs.columns)


def test_a_second_run_writes_nothing_to_the_tables(copied, ray_in_process, without_maps):
    catalog = cytolake.catalog.open(copied.root)
    before, version = catalog.versions(), resolve_alias(copied.tracking.at(copied.root), "champion").version
    assert "trained before" in run(stages.pipeline, copied)
    assert catalog.versions() == before
    assert resolve_alias(copied.tracking.at(copied.root), "champion").version == version


@pytest.mark.slow
def test_each_stage_alone_writes_nothing_to_finished_tables(copied, ray_in_process, without_maps):
    catalog = cytolake.catalog.open(copied.root)
    before, version = catalog.versions(), resolve_alias(copied.tracking.at(copied.root), "champion").version
    for job in (stages.ingest, stages.curate, stages.pretrain, stages.embed, stages.probe, stages.promote):
        run(job, copied)
    pages = pages_of(Path(copied.root))
    for name in pages:
        Path(copied.root, "report", name).unlink()
    run(stages.report, copied)
    assert pages_of(Path(copied.root)).keys() == pages.keys()
    assert catalog.versions() == before
    assert resolve_alias(copied.tracking.at(copied.root), "champion").version == version


def test_a_report_shows_the_verdicts_that_excluded_crops_and_judges_nothing(
    golden_copy, tmp_path, ray_in_process, monkeypatch
):
    config = golden_config(golden_copy)
    (tmp_path / "default.yaml").write_text(declared_path("curation/default.yaml").read_text())
    text = (tmp_path / "default.yaml").read_text()
    assert "profile: default" in text
    (tmp_path / "default.yaml").write_text(text.replace("profile: default", "profile: gross"))
    config = dataclasses.replace(config, curate=dataclasses.replace(config.curate, folder=str(tmp_path)))
    shown = []
    monkeypatch.setattr(stages, "write_qc_page", lambda catalog, qc_id, folder: shown.append(qc_id))
    monkeypatch.setattr(Steps, "report", lambda _, curation_id, qc_id, *__: shown.append(qc_id))
    monkeypatch.setattr(Steps, "leaderboard_page", lambda *_: None)
    before = cytolake.catalog.open(golden_copy).versions()
    printed = run(stages.report, config)
    catalog = cytolake.catalog.open(golden_copy)
    assert catalog.versions() == before
    (spec,) = catalog.table("curation_runs")["spec"].to_pylist()
    assert shown == 2 * [json.loads(spec)["steps"][0]["qc_id"]]
    assert "its rules were changed since its newest run" in printed


@pytest.mark.slow
def test_without_a_reason_it_is_not_promoted_and_the_page_says_so(copied, ray_in_process, without_maps):
    candidate = dataclasses.replace(copied, promote_without_gain="", alias="candidate")
    result = stages.run_pipeline(candidate, Console(file=io.StringIO()))
    assert result.card is None
    assert "--force" in result.refusal
    assert "not promoted, since no gain is shown" in result.report.read_text(encoding="utf-8")
    with pytest.raises(AliasNotFoundError):
        resolve_alias(copied.tracking.at(copied.root), "candidate")
    with pytest.raises(NoGainError):
        run(stages.promote, candidate)


@pytest.mark.parametrize("job", [stages.pretrain, stages.embed])
def test_a_stage_without_its_input_names_the_job_to_run(job, tmp_path, ray_in_process):
    cytolake.catalog.open(tmp_path, create=True)
    with pytest.raises(MissingInputError, match=r"Run `cytolake curate`"):
        run(job, golden_config(tmp_path))


def test_a_stage_of_another_recipe_names_the_training_that_is_missing(golden_lake, ray_in_process):
    with pytest.raises(MissingInputError, match=r"Run `cytolake pretrain`"):
        run(stages.probe, golden_config(golden_lake, "pretrain.seed=9"))


def test_a_stage_on_no_catalog_says_so(tmp_path):
    with pytest.raises(ValueError, match="no catalog there"):
        run(stages.curate, golden_config(tmp_path / "nowhere"))


def test_a_sweep_prints_the_settings_by_their_names_and_how_to_train_with_the_best(
    golden_lake, ray_in_process, monkeypatch
):
    name = "pretrain.objective.mae.mask_ratio"

    def run_sweep(catalog, pack, sweep, questions, base, vary, *_):
        assert vary({name: 0.75}) == apply_overrides(config, [f"{name}=0.75"]).pretrain != base
        trials = [SweepTrial({name: value}, {4: value}) for value in (0.75, 0.5)]
        return SweepResult(
            trials=trials, steps=4, n_ran=1, changes=(f"{name}=0.75",), confirmed=(), of_recipe=(), chance=0.2,
            is_nested=False,
        )  # fmt: skip

    config = golden_config(golden_lake)
    monkeypatch.setattr(stages, "run_sweep", run_sweep)
    printed = run(stages.sweep, config)
    assert "2 trials, 1 of them there before" in printed
    assert "objective.mae.mask_ratio" in printed
    assert f"train with the best: --set {name}=0.75" in printed


def test_a_ranking_of_the_leaderboard_can_choose_what_is_promoted(copied, ray_in_process):
    by = PromoteBy(benchmark="activity_map", metric="mean_average_precision", label="perturbation", alignment="pca_cs")
    config = dataclasses.replace(copied, promote_by=by, alias="by_activity")
    with pytest.raises(ValueError, match=r"no score of activity_map.*Run `cytolake benchmark`"):
        run(stages.promote, dataclasses.replace(config, promote_by=dataclasses.replace(by, label="nothing")))
    run(stages.promote, config)
    card = resolve_alias(config.tracking.at(config.root), "by_activity").card
    ranked = leaderboard(
        cytolake.catalog.open(config.root),
        LeaderboardFilter(benchmark="activity_map", metric=by.metric, alignment="pca_cs", all_blocks=True),
    ).to_pylist()
    best = next(row for row in ranked if row["kind"] == "trained")
    assert (card.representation_id, card.score) == (best["representation_id"], best["value"])
    assert "activity map, mean average precision, perturbation" in card.reason
    assert "alignment pca_cs" in card.reason


@pytest.mark.slow
def test_what_is_exported_can_be_imported_and_is_ranked_next_to_its_source(copied, ray_in_process, tmp_path):
    import anndata

    catalog = cytolake.catalog.open(copied.root)
    card = resolve_alias(copied.tracking.at(copied.root), "champion").card
    (source,) = (  # profiles of cls vectors are not benchmarked
        catalog.table("representations", where=f"model_id = '{card.model_id}' and pooling = 'mean' and block = 1")
        .to_pylist()
    )  # fmt: skip
    profiles, crops, blocks = (tmp_path / name for name in ("profiles.parquet", "crops.parquet", "blocks.h5ad"))
    of_source = ("--representation", source["representation_id"], "--root", copied.root)
    cytolake_cli("export", profiles, *of_source)
    cytolake_cli("export", blocks, "--model", card.model_id, "--root", copied.root)
    assert set(anndata.read_h5ad(blocks).obsm) == {f"block_{b}_{p}" for b in (0, 1) for p in ("mean", "cls")}
    assert "is representation" in cytolake_cli("import", profiles, "--name", "peer", "--root", copied.root)
    cytolake_cli("export", crops, "--level", "crop", *of_source)
    cytolake_cli("import", crops, "--name", "peer of crops", "--pack-id", source["pack_id"], "--root", copied.root)
    few = apply_overrides(copied, ["benchmark.profiles.tasks=activity", "benchmark.tasks=[[perturbation, plate]]"])
    run(stages.benchmark, few)
    ranked = tmp_path / "leaderboard.parquet"
    options = ("--all-blocks", "--parquet", ranked, "--root", copied.root)
    assert "peer" in cytolake_cli("leaderboard", "--benchmark", "activity_map", *options)
    rows = rows_of(ranked, source)
    scores = {(row["architecture"], row["alignment"]): row["value"] for row in rows
              if row["metric"] == "mean_average_precision"}  # fmt: skip
    for alignment in ("none", "pca_cs"):
        ours = scores[source["architecture"], alignment]
        for peer in ("peer", "peer of crops"):
            assert scores[peer, alignment] == pytest.approx(ours, abs=1e-6)
    cytolake_cli("leaderboard", "--label", "perturbation", *options)
    probed = {
        row["architecture"]: row["value"]
        for row in rows_of(ranked, source)
        if row["benchmark"].startswith("linear_probe") and row["metric"] == "balanced_accuracy"
    }
    assert set(probed) == {source["architecture"], "peer of crops"}  # single crops are probed, and `peer` has wells
    assert probed["peer of crops"] == probed[source["architecture"]]


def test_stages_on_ray_give_the_tables_that_one_process_gives(golden_lake, local_ray, tmp_path):
    """Ingest, curation, pack, embedding and probes, in Ray's tasks and actors, from the same encoder."""
    root = tmp_path / "lake"
    shutil.copytree(golden_lake / "runs", root / "runs", ignore=shutil.ignore_patterns("tune"))
    # Another split would be the same trials again, in new processes.
    config = golden_config(root, "also_held_out_by=[]", screens=golden_lake / "screens")
    for job in (stages.ingest, stages.curate, stages.embed, stages.probe):
        run(job, config)
    ours, golden = cytolake.catalog.open(root), cytolake.catalog.open(golden_lake)
    for table in ("wells", "sites", "crops", "qc_metrics", "qc_verdicts", "curations", "embeddings", "scores"):
        key = cytolake.catalog.table_contract(table).key
        columns = [name for name in ours.table(table).schema.names if not name.endswith("_at")]
        found = ours.table(table).select(columns).sort_by([(name, "ascending") for name in key])
        there = golden.table(table).select(columns)
        if table == "scores":  # the golden lake has those of benchmarks too
            there = there.filter(_is_in(there[key[0]], found[key[0]]))
        assert found.num_rows > 0
        assert found.equals(there.sort_by([(name, "ascending") for name in key])), table


def _is_in(column, values):
    import pyarrow.compute as pc

    return pc.is_in(column, value_set=values.combine_chunks())


def rows_of(file: Path, source: dict[str, object]) -> list[dict[str, object]]:
    """Rows of external representations and of one other."""
    rows = pq.read_table(file).to_pylist()
    return [row for row in rows if row["kind"] == "external" or row["representation_id"] == source["representation_id"]]


def cytolake_cli(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output
