"""The jobs of `cytolake.cli.jobs`: each stage alone, and all of them as the pipeline."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

import cytolake.catalog
from cytolake.catalog import CatalogError
from cytolake.catalog.representations import find_representation
from cytolake.catalog.tables import make_root
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.counts import count
from cytolake.pipeline.inputs import check_sources
from cytolake.pipeline.overrides import apply_overrides
from cytolake.pipeline.performance import predict_prompts, predict_queries
from cytolake.pipeline.session import ray_session
from cytolake.pipeline.steps import Steps, stage_report
from cytolake.pipeline.summaries import mlflow_command, print_choice, serve_command, sweep_outcome, sweep_table
from cytolake.reports.page import REPORT_FOLDER
from cytolake.reports.performance_page import PAGE_FILE as PERFORMANCE_FILE
from cytolake.reports.performance_page import performance_text, write_performance
from cytolake.reports.qc_page import write_qc_page
from cytolake.reports.study_page import PAGE_FILE as STUDY_FILE
from cytolake.reports.study_page import study_text, write_study
from cytolake.tracking import ModelVersion, resolve_alias
from cytolake.train.config import PretrainConfig
from cytolake.tune.block_search import BlockChoice
from cytolake.tune.promotion import NoGainError
from cytolake.tune.study import run_study
from cytolake.tune.sweep import run_sweep

EXIT_REFUSED = 1
"""Of an ingest that refused a plate, or found not one readable site, or not one crop, in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineResult:
    """What a pipeline run made."""

    choice: BlockChoice
    others: tuple[BlockChoice, ...]
    """The same by single crops, and held out otherwise, such as by batch."""
    card: ModelVersion | None
    """None where the choice was not promoted, since no gain was shown."""
    refusal: str
    """Why it was not promoted; empty where it was."""
    report: Path
    run_folder: Path
    """Of the training run: checkpoints, evaluations, pictures."""
    seconds: dict[str, float]
    """Wall time of each stage."""


def ingest(config: PipelineConfig, console: Console) -> None:
    """Read plates into the catalog: images, plate map, QC metrics, crop grid."""
    with _steps(config, console, create=True) as steps:
        steps.simulate()
        report = steps.ingest()
    if report.refused or report.without_sites or report.without_crops:
        raise typer.Exit(EXIT_REFUSED)


def curate(config: PipelineConfig, console: Console) -> None:
    """Judge every site, choose crops, and write them into a pack."""
    with _steps(config, console) as steps:
        steps.curate()


def pretrain(config: PipelineConfig, console: Console) -> None:
    """Train an encoder on the newest pack of the recipe's curation."""
    with _steps(config, console) as steps:
        steps.pretrain(steps.training_pack(steps.newest_pack()))


def embed(config: PipelineConfig, console: Console) -> None:
    """Embed every crop of the pack with every block of the encoder, and of its untrained twin."""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()
        steps.embed(pack, steps.finished_run(pack))


def probe(config: PipelineConfig, console: Console) -> None:
    """Probe every block of every pooling, and choose the best."""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()
        ids = steps.representation_ids(pack, steps.finished_run(pack))
        choice = steps.probe(ids)
        print_choice(console, choice, steps.compare(ids, choice))


def promote(config: PipelineConfig, console: Console) -> None:
    """Register the chosen representation in MLflow and give it the alias that serving follows."""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()
        steps.promote(steps.choose(steps.representation_ids(pack, steps.finished_run(pack))))
        console.print(f"serve it     {escape(serve_command(config))}")


def benchmark(config: PipelineConfig, console: Console) -> None:
    """Score every representation on every label and benchmark of the recipe, guard rails included; the leaderboard."""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()
        console.print(steps.benchmark(pack, steps.representation_ids(pack, steps.finished_run(pack))))


def report(config: PipelineConfig, console: Console) -> None:
    """Write the pages of QC, report and leaderboard again, from what the tables hold; writes no table."""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()
        trained = steps.finished_run(pack)
        ids = steps.representation_ids(pack, trained)
        choice = steps.choose(ids)
        card: ModelVersion | None
        try:
            card = resolve_alias(config.tracking.at(config.root_path), config.alias)
        except LookupError:  # nothing was promoted yet
            card = None
        if card is not None and card.representation_id != choice.representation_id:
            console.print(
                f"[yellow]{escape(config.alias)} is the representation {card.representation_id}, not the one that the "
                f"report shows[/], {choice.representation_id}. `cytolake promote` moves it."
            )
            card = None
        qc_id = steps.qc_of_curation()
        write_qc_page(steps.catalog, qc_id, steps.catalog.root / REPORT_FOLDER)
        steps.report(pack.curation_id, qc_id, trained, ids, choice, steps.compare(ids, choice), card)
        steps.leaderboard_page(pack)


def sweep(config: PipelineConfig, console: Console) -> None:
    """Search for the best settings of the training: Optuna proposes, trials that fall behind are stopped early."""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()

        def vary(settings: Mapping[str, Any]) -> PretrainConfig:
            return apply_overrides(config, [f"{name}={value}" for name, value in settings.items()]).pretrain

        with stage_report("sweep", console) as stage:
            found = run_sweep(
                steps.catalog, pack, config.sweep, config.study, config.pretrain, vary, config.tracking, stage.report
            )
            share = found.steps_spent / (len(found.trials) * found.steps)
            stage.outcome = (
                f"{count(len(found.trials), 'trial')}, {len(found.trials) - found.n_ran} of them there before; "
                f"{share:.0%} of the steps that all to their end would take"
            )
    console.print(sweep_table(found, config))
    for text in sweep_outcome(found, config):
        console.print(text)


def study(config: PipelineConfig, console: Console) -> None:
    """Train with one augmentation at a time, at several strengths: which classes does it help, and which harm?"""
    with _steps(config, console) as steps:
        pack = steps.newest_pack()
        with stage_report("study", console) as stage:
            found = run_study(steps.catalog, pack, config.study, config.pretrain, config.tracking, stage.report)
            stage.outcome = (
                f"{count(found.n_trials, 'training')}, {found.n_trials - found.n_trained} of them there before"
            )
        page = write_study(config.root_path / REPORT_FOLDER / STUDY_FILE, f"Study: {config.name}", found, config.study)
    console.print(study_text(found))
    for name, why in found.skipped.items():
        console.print(f"  [dim]not tried: {escape(name)}: {escape(why)}[/]")
    console.print(f"page {escape(str(page))}")


def predict_performance(config: PipelineConfig, console: Console) -> None:
    """Predict how well queries of the promoted representation, or prompts of a table, will do before they are used."""
    performance = config.performance
    tracking = config.tracking.at(config.root_path)
    sections = []
    if performance.prompts.path:
        make_root(config.root_path)
        with stage_report("prompts", console) as stage:
            sections.append(predict_prompts(performance, tracking, stage.report))
            stage.outcome = sections[-1].model
    else:
        catalog = cytolake.catalog.open(config.root_path, tables=config.tables)
        named = performance.queries.representation_id or resolve_alias(tracking, config.alias).representation_id
        chosen = str(find_representation(catalog, named)["representation_id"])
        for before, measure in itertools.product(performance.queries.before, performance.queries.measures):
            with stage_report(before, console) as stage:
                sections.append(predict_queries(catalog, chosen, before, measure, performance, tracking, stage.report))
                stage.outcome = sections[-1].model
    page = write_performance(
        config.root_path / REPORT_FOLDER / PERFORMANCE_FILE, f"Performance: {config.name}", sections
    )
    for section in sections:
        console.print(f"\n[bold]{escape(section.name)}[/]")
        console.print(performance_text(section))
        console.print(escape(section.verdict.reason))
        for note in section.notes:
            console.print(f"  [dim]{escape(note)}[/]")
    console.print(f"\npage {escape(str(page))}")


def pipeline(config: PipelineConfig, console: Console) -> None:
    """Run all stages: simulate or find plates, ingest, curate, pretrain, embed, probe, promote, report."""
    result = run_pipeline(config, console)
    console.print()
    print_choice(console, result.choice, result.others)
    console.print()
    places = [
        ("report", str(result.report)),
        ("catalog", f"{config.root_path} (Delta tables in {config.tables or 'tables/'})"),
        ("MLflow", mlflow_command(config)),
    ]
    if result.card is None:
        console.print(f"[bold yellow]not promoted[/] {escape(result.refusal)}")
    else:
        places += [
            ("model", f"{result.card.name} version {result.card.version}, alias {result.card.alias}"),
            ("serve it", serve_command(config)),
            ("look", "http://localhost:8000/explore/ while it is served"),
        ]
    for name, place in places:
        console.print(f"[bold]{name:<9}[/]{escape(place)}")


JOBS = {
    job.__name__: job
    for job in (
        *(ingest, curate, pretrain, embed, probe, sweep, study, benchmark, promote, report, predict_performance),
        pipeline,
    )
}
"""By the name that `cytolake.cli.jobs` gives it."""


def run_pipeline(config: PipelineConfig, console: Console) -> PipelineResult:
    """Run all stages; those whose result is there are skipped. Each prints one line."""
    with _steps(config, console, create=True) as steps:
        steps.simulate()
        steps.ingest()
        curation, pack, qc_id = steps.curate()
        trained = steps.pretrain(steps.training_pack(pack))
        embedded = steps.embed(pack, trained)
        if config.promote_by.benchmark:
            console.print(steps.benchmark(pack, embedded))
        choice = steps.choose(embedded)
        others = steps.compare(embedded, choice)
        card, refusal = None, ""
        try:
            card = steps.promote(choice)
        except NoGainError as error:  # the report is what shows why
            refusal = str(error)
        steps.label_curve()
        page = steps.report(curation.curation_id, qc_id, trained, embedded, choice, others, card)
    return PipelineResult(
        choice=choice,
        others=others,
        card=card,
        refusal=refusal,
        report=page,
        run_folder=trained.run_folder,
        seconds=steps.seconds,
    )


def _is_there(config: PipelineConfig) -> bool:
    try:
        cytolake.catalog.open(config.root_path, tables=config.tables)
    except CatalogError:
        return False
    return True


@contextmanager
def _steps(config: PipelineConfig, console: Console, *, create: bool = False) -> Iterator[Steps]:
    if create and not _is_there(config):
        check_sources(config)
    catalog = cytolake.catalog.open(config.root_path, tables=config.tables, create=create)
    started = time.monotonic()
    with ray_session(config.ray):
        console.print(f"[bold]{'start':<9}[/][dim]{time.monotonic() - started:7.1f} s[/]   Ray")
        yield Steps(config, console, catalog)
