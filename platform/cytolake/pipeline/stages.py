"""The stages of the line, each alone as a job, and all of them as the pipeline.

A stage finds its input by content: the newest curation of the recipe's name, the run of the recipe's own training
config. So a stage can be run again, alone or after a crash, and what is already there is not made twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.linear_probe import METRICS, ProbeConfig
from cytolake.benchmark.profiles.score import ProfileScores, score_profiles
from cytolake.catalog import Catalog
from cytolake.catalog.ingest.plates import IngestReport, ingest_screens
from cytolake.catalog.stale import check_curation, stale_artefacts
from cytolake.curation.curate import Curation, qc_of_curation
from cytolake.curation.curate import curate as choose_crops
from cytolake.embed.alignment.kept import ALIGNED
from cytolake.embed.extract import embed_pack
from cytolake.exchange.external import EXTERNAL
from cytolake.packs.build import build_pack, find_built_pack
from cytolake.packs.pack import Pack
from cytolake.pipeline.code_revision import code_revision
from cytolake.pipeline.config import Line
from cytolake.pipeline.label_curve import has_label_curve, measure_label_curve
from cytolake.pipeline.overrides import apply_overrides
from cytolake.pipeline.performance import PAGE_FILE as PERFORMANCE_FILE
from cytolake.pipeline.performance import performance_text, predict_prompts, predict_queries, write_performance
from cytolake.pipeline.progress import Report, stage_progress
from cytolake.pipeline.session import ray_session
from cytolake.pipeline.training_probe import pin_training_probe
from cytolake.qc.verdicts import Progress, judge_sites
from cytolake.reports.choice_text import choice_table, headline, how_measured, objective_text
from cytolake.reports.leaderboard_page import PAGE_FILE as LEADERBOARD_FILE
from cytolake.reports.leaderboard_page import leaderboard_text, write_leaderboard
from cytolake.reports.qc_page import write_qc_page
from cytolake.reports.report import ReportInputs, write_report
from cytolake.reports.study_page import PAGE_FILE as STUDY_FILE
from cytolake.reports.study_page import study_text, write_study
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.sources import ScreenSource
from cytolake.storage.files import is_uri
from cytolake.tracking import ChampionCard, resolve_alias
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import PretrainResult, finished_run
from cytolake.train.pretrain import pretrain as train_encoder
from cytolake.tune.block_search import CELL_COUNT, BlockChoice, search_blocks
from cytolake.tune.promotion import NoGainError, choose_by, promote_choice
from cytolake.tune.study import run_study
from cytolake.tune.sweep import SweepResult, run_sweep

REPORT_FOLDER = "report"
REPORT_FILE = f"{REPORT_FOLDER}/index.html"
MAX_PROBLEMS_PRINTED = 8
EXIT_REFUSED = 1
"""Of an ingest that refused a plate, or found not one readable site in it."""


class MissingInputError(LookupError):
    """A stage was run alone before the stage that makes its input; the text names the job to run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineResult:
    """What a pipeline run made."""

    choice: BlockChoice
    others: tuple[BlockChoice, ...]
    """The same by single crops, and held out otherwise, such as by batch."""
    card: ChampionCard | None
    """None where the choice was not promoted, since no gain was shown."""
    refusal: str
    """Why it was not promoted; empty where it was."""
    report: Path
    run_folder: Path
    """Of the training run: checkpoints, evaluations, pictures."""
    seconds: dict[str, float]
    """Wall time of each stage."""


def ingest(line: Line, console: Console) -> None:
    """Read plates into the catalog: images, plate map, QC metrics, crop grid."""
    with _session(line, console, create=True) as session:
        session.simulate()
        report = session.ingest()
    if report.refused or report.without_sites:
        raise typer.Exit(EXIT_REFUSED)


def curate(line: Line, console: Console) -> None:
    """Judge every site, choose crops, and write them into a pack."""
    with _session(line, console) as session:
        session.curate()


def pretrain(line: Line, console: Console) -> None:
    """Train an encoder on the newest pack of the recipe's curation."""
    with _session(line, console) as session:
        session.pretrain(session.training_pack(session.newest_pack()))


def embed(line: Line, console: Console) -> None:
    """Embed every crop of the pack with every block of the encoder, and of its untrained twin."""
    with _session(line, console) as session:
        pack = session.newest_pack()
        session.embed(pack, session.finished_run(pack))


def probe(line: Line, console: Console) -> None:
    """Probe every block of every pooling, and choose the best."""
    with _session(line, console) as session:
        pack = session.newest_pack()
        ids = session.representation_ids(pack, session.finished_run(pack))
        choice = session.probe(ids)
        print_choice(console, choice, session.compare(ids, choice))


def promote(line: Line, console: Console) -> None:
    """Register the chosen representation in MLflow and give it the alias that serving follows."""
    with _session(line, console) as session:
        pack = session.newest_pack()
        session.promote(session.choose(session.representation_ids(pack, session.finished_run(pack))))
        console.print(f"serve it     {escape(serve_command(line))}")


def benchmark(line: Line, console: Console) -> None:
    """Score every representation on every label and benchmark of the recipe, guard rails included; the leaderboard."""
    with _session(line, console) as session:
        pack = session.newest_pack()
        console.print(session.benchmark(pack, session.representation_ids(pack, session.finished_run(pack))))


def report(line: Line, console: Console) -> None:
    """Write the pages of QC, report and leaderboard again, from what the tables hold."""
    with _session(line, console) as session:
        pack = session.newest_pack()
        trained = session.finished_run(pack)
        ids = session.representation_ids(pack, trained)
        choice = session.choose(ids)
        card: ChampionCard | None
        try:
            card = resolve_alias(line.tracking.at(line.root_path), line.alias)
        except LookupError:  # nothing was promoted yet
            card = None
        if card is not None and card.representation_id != choice.representation_id:
            console.print(
                f"[yellow]{escape(line.alias)} is the representation {card.representation_id}, not the one that the "
                f"report shows[/], {choice.representation_id}. `cytolake promote` moves it."
            )
            card = None
        qc_id = session.judge()
        write_qc_page(session.catalog, qc_id, session.catalog.root / REPORT_FOLDER)
        session.report(pack.curation_id, qc_id, trained, ids, choice, session.compare(ids, choice), card)
        session.leaderboard_page(pack)


def sweep(line: Line, console: Console) -> None:
    """Search for the best settings of the training: Optuna proposes, trials that fall behind are stopped early."""
    with _session(line, console) as session:
        pack = session.newest_pack()

        def vary(settings: Mapping[str, Any]) -> PretrainConfig:
            return apply_overrides(line, [f"{name}={value}" for name, value in settings.items()]).pretrain

        with _stage("sweep", console) as told:
            found = run_sweep(
                session.catalog, pack, line.sweep, line.study, line.pretrain, vary, line.tracking, told.report
            )
            share = found.steps_spent / (len(found.trials) * found.steps)
            told.outcome = (
                f"{len(found.trials)} trials, {len(found.trials) - found.n_ran} of them there before; {share:.0%} of "
                "the steps that all to their end would take"
            )
    console.print(_sweep_table(found, line))
    for text in _sweep_outcome(found, line):
        console.print(text)


def study(line: Line, console: Console) -> None:
    """Train with one augmentation at a time, at several strengths: which classes does it help, and which harm?"""
    with _session(line, console) as session:
        pack = session.newest_pack()
        with _stage("study", console) as told:
            found = run_study(session.catalog, pack, line.study, line.pretrain, line.tracking, told.report)
            told.outcome = f"{found.n_trials} trainings, {found.n_trials - found.n_trained} of them there before"
        page = write_study(line.root_path / REPORT_FOLDER / STUDY_FILE, f"Study: {line.name}", found, line.study)
    console.print(study_text(found))
    for name, why in found.skipped.items():
        console.print(f"  [dim]not tried: {escape(name)}: {escape(why)}[/]")
    console.print(f"page {escape(str(page))}")


def predict_performance(line: Line, console: Console) -> None:
    """Predict how well queries of the promoted representation, or prompts of a table, will do before they are used."""
    config = line.performance
    tracking = line.tracking.at(line.root_path)
    sections = []
    if config.prompts.path:
        line.root_path.mkdir(parents=True, exist_ok=True)
        with _stage("prompts", console) as told:
            sections.append(predict_prompts(config, tracking, told.report))
            told.outcome = sections[-1].model
    else:
        catalog = cytolake.catalog.open(line.root_path, tables=line.tables)
        chosen = config.queries.representation_id or resolve_alias(tracking, line.alias).representation_id
        for before, measure in itertools.product(config.queries.before, config.queries.measures):
            with _stage(before, console) as told:
                sections.append(predict_queries(catalog, chosen, before, measure, config, tracking, told.report))
                told.outcome = sections[-1].model
    page = write_performance(line.root_path / REPORT_FOLDER / PERFORMANCE_FILE, f"Performance: {line.name}", sections)
    for section in sections:
        console.print(f"\n[bold]{escape(section.name)}[/]")
        console.print(performance_text(section))
        console.print(escape(section.verdict.reason))
        for note in section.notes:
            console.print(f"  [dim]{escape(note)}[/]")
    console.print(f"\npage {escape(str(page))}")


def pipeline(line: Line, console: Console) -> None:
    """Run the whole line: simulate or find plates, ingest, curate, pretrain, embed, probe, promote, report."""
    result = run_pipeline(line, console)
    console.print()
    print_choice(console, result.choice, result.others)
    console.print()
    places = [
        ("report", str(result.report)),
        ("catalog", f"{line.root_path} (Delta tables in {line.tables or 'tables/'})"),
        ("MLflow", _mlflow_command(line)),
    ]
    if result.card is None:
        console.print(f"[bold yellow]not promoted[/] {escape(result.refusal)}")
    else:
        places += [
            ("model", f"{result.card.name} version {result.card.version}, alias {result.card.alias}"),
            ("serve it", serve_command(line)),
            ("look", "http://localhost:8000/explore/ while it is served"),
        ]
    for name, place in places:
        console.print(f"[bold]{name:<9}[/]{escape(place)}")


JOBS = (
    *(ingest, curate, pretrain, embed, probe, sweep, study, benchmark, promote, report, predict_performance),
    pipeline,
)


def run_pipeline(line: Line, console: Console) -> PipelineResult:
    """The whole line. Stages whose result is there are skipped; each prints one line."""
    with _session(line, console, create=True) as session:
        session.simulate()
        session.ingest()
        curation, pack, qc_id = session.curate()
        trained = session.pretrain(session.training_pack(pack))
        embedded = session.embed(pack, trained)
        if line.promote_by.benchmark:
            console.print(session.benchmark(pack, embedded))
        choice = session.choose(embedded)
        others = session.compare(embedded, choice)
        card, refusal = None, ""
        try:
            card = session.promote(choice)
        except NoGainError as error:  # the report is what shows why
            refusal = str(error)
        session.label_curve()
        page = session.report(curation.curation_id, qc_id, trained, embedded, choice, others, card)
    return PipelineResult(
        choice=choice,
        others=others,
        card=card,
        refusal=refusal,
        report=page,
        run_folder=trained.run_folder,
        seconds=session.seconds,
    )


def print_caveats(console: Console, scores: ProfileScores) -> None:
    """What to beware of in scores of profiles, and what has none and why."""
    for warning in scores.warnings:
        console.print(f"  [yellow]beware[/] {escape(warning)}")
    for name, why in scores.left_out.items():
        console.print(f"  [dim]not scored: {escape(name)}: {escape(why)}[/]")


def serve_command(line: Line) -> str:
    """The command that serves the champion of this root, on this machine, without a key."""
    return f"CYTOLAKE_ROOT={shlex.quote(str(line.root_path))} CYTOLAKE_NO_AUTH=1 {_program('serve')} run serve.app:app"


def _mlflow_command(line: Line) -> str:
    return f"{_program('mlflow')} ui --backend-store-uri {line.tracking.at(line.root_path).uri}"


def _program(name: str) -> str:
    """How this person starts a program of this environment: by name, or by its path where it is not on theirs."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


@contextmanager
def _session(line: Line, console: Console, *, create: bool = False) -> Iterator[Session]:
    if create:
        line.root_path.mkdir(parents=True, exist_ok=True)
    catalog = cytolake.catalog.open(line.root_path, tables=line.tables, create=create)
    with ray_session(line.ray):
        yield Session(line, console, catalog)


class StageLine:
    """What a stage says of itself: `report` while it runs, `outcome` at its end."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.outcome = ""


@contextmanager
def _stage(name: str, console: Console) -> Iterator[StageLine]:
    """Show progress while the stage runs, and one line when it is done."""
    started = time.monotonic()
    with stage_progress(name, console) as report:
        told = StageLine(report)
        yield told
    console.print(f"[bold]{name:<9}[/][dim]{time.monotonic() - started:7.1f} s[/]   {escape(told.outcome)}")


def built_pack(line: Line, catalog: Catalog, *, for_training: bool = False) -> Pack:
    """The pack of the newest curation that has the recipe's name. Builds none: a pack may be terabytes.

    Args:
        line: The recipe.
        catalog: Opened.
        for_training: The pack that `pretrain` takes: without the plates that are held out of pretraining.

    Raises:
        MissingInputError: No such curation, or its pack was not built, or not with these settings.
        CatalogError: Labels or pixels of its plates were corrected since.
    """
    name = line.curate.name
    found = catalog.sql(
        "select curation_id from curations where curation = '" + name.replace("'", "''") + "' "
        "group by curation_id order by max(curated_at) desc limit 1"
    ).to_pylist()
    if not found:
        raise MissingInputError(
            f"{line.root_path}: no curation named {name!r}. Run jobs/curate.py with the same recipe and root first."
        )
    curation_id = found[0]["curation_id"]
    check_curation(catalog, curation_id)
    config = dataclasses.replace(line.pack, exclude_plates=line.hold_out_plates) if for_training else line.pack
    pack = find_built_pack(catalog, curation_id, config)
    if pack is None:
        job = "pretrain" if config.exclude_plates else "curate"
        raise MissingInputError(
            f"{line.root_path}: no pack of curation {name!r} ({curation_id[:12]}) with pixels {config.pixels}, shuffle "
            f"{config.shuffle_seed}{' and without the held-out plates' if config.exclude_plates else ''}. Run "
            f"jobs/{job}.py with the same recipe, root and --set first: it builds the pack."
        )
    return pack


@dataclass(slots=True)
class Session:
    """One run of one or more stages: the config, where it prints, the open catalog, what each stage took."""

    line: Line
    console: Console
    catalog: Catalog
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def _stage(self, name: str) -> Iterator[StageLine]:
        """Show progress while the stage runs, one line when it is done, and keep what it took."""
        started = time.monotonic()
        with _stage(name, self.console) as told:
            yield told
        self.seconds[name] = time.monotonic() - started

    def simulate(self) -> None:
        """Write the simulated screen, where the recipe has one."""
        config = self.line.screens.simulate
        if config is None:
            return
        with self._stage("simulate") as told:
            plates = simulate_screen(config, self.line.screens_path, told.report)
            told.outcome = (
                f"{len(plates)} plates of {config.n_wells} wells in {config.n_batches} batches: {plates[0].parent}"
            )

    def ingest(self) -> IngestReport:
        """Read every plate that is not in the catalog yet."""
        line = self.line
        sources = [
            source if is_uri(source.path) else dataclasses.replace(source, path=str(line.screens_path / source.path))
            for source in line.screens.sources
        ]
        if line.screens.simulate is not None:
            name = line.screens.simulate.screen
            sources.append(ScreenSource(screen=name, path=str(line.screens_path / name), layout="ome-zarr"))
        if not sources:
            raise MissingInputError(
                f"recipe {line.name}: it names no screen. `cytolake init FOLDER` writes a recipe for the screen in "
                "that folder; or set screens.sources."
            )
        with self._stage("ingest") as told:
            report = ingest_screens(self.catalog, sources, line.ingest, told.report)
            told.outcome = (
                f"{len(report.ingested)} plates in, {len(report.skipped)} there already, "
                f"{len(report.refused)} refused; {report.n_sites:,} sites, "
                f"{report.n_crops:,} crops, {report.n_quarantined} rows in quarantine"
            )
        for problem in report.refused[:MAX_PROBLEMS_PRINTED]:
            self.console.print(f"  [yellow]refused[/] {escape(str(problem))}")
        for name in report.without_sites:
            self.console.print(f"  [yellow]0 sites[/] {escape(name)}: not one image could be read; see quarantine")
        for problem in report.left_out:
            self.console.print(f"  [dim]left out {escape(str(problem))}[/]")
        if report.n_quarantined:
            self.console.print(
                f"  [yellow]quarantine[/] {_program('cytolake')} sql "
                "'select plate, well, problem, found, next_step from quarantine' "
                f"--root {escape(str(line.root_path))}"
            )
        return report

    def judge(self, progress: Progress | None = None) -> str:
        """Judge the sites by what the recipe's curation excludes them by; returns the qc_id."""
        qc = qc_of_curation(self.line.curate, self.line.qc)
        return qc if isinstance(qc, str) else judge_sites(self.catalog, qc, progress)

    def curate(self) -> tuple[Curation, Pack, str]:
        """Verdicts and their page, chosen crops, the pack of their pixels; returns curation, pack and qc_id."""
        with self._stage("qc") as told:
            qc_id = self.judge(told.report)
            page = write_qc_page(self.catalog, qc_id, self.catalog.root / REPORT_FOLDER)
            failed = self.catalog.sql(
                "select count(distinct site_id) filter (not is_pass) failed, count(distinct site_id) judged "
                f"from qc_verdicts where qc_id = '{qc_id}' and site_id <> ''"
            ).to_pylist()[0]
            told.outcome = f"{failed['failed']:,} of {failed['judged']:,} sites fail a rule: {page}"
        with self._stage("curate") as told:
            modalities = self.line.qc.modalities
            curation = choose_crops(self.catalog, self.line.curate, told.report, modalities=modalities)
            pack = build_pack(self.catalog, curation.curation_id, self.line.pack, told.report)
            told.outcome = f"kept {curation.n_kept:,} of {curation.n_considered:,} crops: pack {pack.pack_id[:12]}"
        for step in curation.steps:
            self.console.print(f"  [dim]{step.rule:<20} removed {step.n_removed:,} of {step.n_considered:,}[/]")
        return curation, pack, qc_id

    def label_curve(self) -> None:
        """Measure how many labels the artefact detector needs, where the recipe asks for it."""
        config = self.line.label_curve
        if config is None:
            return
        with self._stage("detector") as told:
            if has_label_curve(self.catalog, config):
                told.outcome = "curve of the labels it needs: measured before"
                return
            found, _ = measure_label_curve(self.catalog, config, told.report)
            most = found.curve("auroc")[-1]
            simulated = ", artefacts simulated" if config.train.simulated_per_kind else ""
            told.outcome = f"AUROC {most.value:.3f} with {most.n_labels} labels of each class{simulated}"

    def newest_pack(self) -> Pack:
        """The pack of the newest curation that has the recipe's name.

        Raises:
            MissingInputError: The catalog has none.
            CatalogError: Labels or pixels of its plates were corrected since.
        """
        return built_pack(self.line, self.catalog)

    def training_pack(self, pack: Pack) -> Pack:
        """The pack to train on: without the plates that are held out of pretraining too. Built where it is missing."""
        excluded = self.line.hold_out_plates
        if not excluded:
            return pack
        return build_pack(self.catalog, pack.curation_id, dataclasses.replace(self.line.pack, exclude_plates=excluded))

    @property
    def probe_config(self) -> ProbeConfig:
        """The recipe's probe; of plates that were held out of pretraining, where there are such."""
        return dataclasses.replace(self.line.probe, only=self.line.hold_out_plates or self.line.probe.only)

    def pretrain(self, pack: Pack) -> PretrainResult:
        """Train, or read back the finished run of the same pack and config."""
        with self._stage("pretrain") as told:
            probe = self.line.training_probe
            result = train_encoder(
                pack.path,
                self.line.pretrain,
                self.catalog.root / "runs",
                self.line.tracking,
                told.report,
                evaluate=pin_training_probe(self.catalog, pack, probe) if probe is not None else None,
                tags={"recipe": self.line.name, **code_revision()},
            )
            told.outcome = (
                f"{self.line.pretrain.model.architecture}, {result.steps:,} steps, loss {result.final_loss:.3f}, "
                f"{result.crops_per_s:,.0f} crops/s, {result.data_wait_share:.1%} waiting for data"
                + (" (trained before)" if result.is_reused else "")
            )
        return result

    def finished_run(self, pack: Pack) -> PretrainResult:
        """The finished run of the recipe's training config on the pack.

        Raises:
            MissingInputError: There is none.
        """
        trained_on = built_pack(self.line, self.catalog, for_training=True) if self.line.hold_out_plates else pack
        result = finished_run(trained_on.pack_id, self.line.pretrain, self.catalog.root / "runs")
        if result is None:
            raise MissingInputError(
                f"{self.line.root_path}: no finished pretraining run of this recipe on pack {trained_on.pack_id}. Run "
                "jobs/pretrain.py with the same recipe, root and --set first."
            )
        return result

    def embed(self, pack: Pack, trained: PretrainResult) -> list[str]:
        """Embeddings of every block; returns the ids of their representations."""
        with self._stage("embed") as told:
            checkpoints = {"trained": trained.checkpoint, "untrained": trained.untrained_checkpoint}
            rows = embed_pack(self.catalog, pack, checkpoints, self.line.embed, told.report, run_id=trained.run_id)
            told.outcome = f"{pack.n_crops:,} crops x {len(rows)} representations"
        return [row["representation_id"] for row in rows]

    def representation_ids(self, pack: Pack, trained: PretrainResult) -> list[str]:
        """Representations of the pack that belong to one run and its baselines.

        Raises:
            MissingInputError: They were not embedded.
        """
        rows = self.catalog.table(
            "representations", columns=["representation_id", "model_id", "kind"], where=f"pack_id = '{pack.pack_id}'"
        ).to_pylist()
        models = {trained.model_id, trained.untrained_model_id}
        ids = [
            row["representation_id"]
            for row in rows
            if row["model_id"] in models or row["kind"] in ("pixel_statistics", CELL_COUNT)
        ]
        if not any(row["model_id"] == trained.model_id for row in rows):
            raise MissingInputError(
                f"{self.line.root_path}: the run {trained.run_key} has no embeddings of pack {pack.pack_id}. Run "
                "jobs/embed.py with the same recipe, root and --set first."
            )
        return ids

    def probe(self, representation_ids: list[str]) -> BlockChoice:
        """Linear probes of all representations; the best trained block."""
        with self._stage("probe") as told:
            choice = search_blocks(self.catalog, representation_ids, self.probe_config, told.report)
            told.outcome = f"block {choice.block}, {choice.pooling} pooling: {choice.score:.3f} by {choice.protocol}"
        return choice

    def compare(self, representation_ids: list[str], choice: BlockChoice) -> tuple[BlockChoice, ...]:
        """The same search by single crops instead of wells (or the reverse), and with other things held out.

        A split that the screen does not allow is left out with its reason.
        """
        config = self.probe_config
        if (choice.benchmark, choice.label) != (config.benchmark, config.label):
            return ()  # chosen by a ranking of profiles
        level: Literal["wells", "crops"] = "crops" if config.choose_by == "wells" else "wells"
        found = [search_blocks(self.catalog, representation_ids, dataclasses.replace(config, choose_by=level))]
        for split in self.line.also_held_out_by:
            if split == config.split or config.only:  # a batch has plates that the encoder was trained on
                continue
            with self._stage(f"probe {split}") as told:
                try:
                    held_out = dataclasses.replace(config, split=split)
                    other = search_blocks(self.catalog, representation_ids, held_out, told.report)
                except ValueError as error:
                    told.outcome = f"not held out by {split}: {error}"
                    continue
                found.append(other)
                told.outcome = f"{other.score:.3f} by {other.protocol}"
        return tuple(found)

    def promote(self, choice: BlockChoice) -> ChampionCard:
        """Register the choice and move the alias."""
        with self._stage("promote") as told:
            forced = self.line.promote_without_gain
            card = promote_choice(self.catalog, choice, self.line.tracking, self.line.alias, forced=forced)
            told.outcome = f"{card.name} version {card.version} is {card.alias}"
        return card

    def choose(self, representation_ids: list[str]) -> BlockChoice:
        """The representation to promote: the best by the probe, or by the ranking that the recipe names."""
        if not self.line.promote_by.benchmark:
            return self.probe(representation_ids)
        return choose_by(self.catalog, representation_ids, self.line.promote_by)

    def benchmark(self, pack: Pack, representation_ids: list[str]) -> Group:
        """Probe every label of `line.benchmark`, score all profiles, write the leaderboard page, and return its text.

        External representations and aligned ones are scored beside the recipe's own: by probes the external ones of the
        pack's crops, by profiles the external ones of the same wells and the aligned ones of the pack.
        """
        external = self.catalog.table(
            "representations", columns=["representation_id", "pack_id"], where=f"kind = '{EXTERNAL}'"
        ).to_pylist()
        of_crops = [row["representation_id"] for row in external if row["pack_id"] == pack.pack_id]
        for label, split in self.line.benchmark.tasks:
            config: ProbeConfig = dataclasses.replace(self.line.probe, label=label, split=split)
            with self._stage(f"probe {label}") as told:
                search_blocks(self.catalog, [*representation_ids, *of_crops], config, told.report)
                told.outcome = f"{', '.join(METRICS)} in the scores table"
        warnings: tuple[str, ...] = ()
        left_out: dict[str, str] = {}
        if self.line.benchmark.profiles is not None:
            where = f"kind = '{ALIGNED}' AND pack_id = '{pack.pack_id}'"
            aligned = self.catalog.table("representations", columns=["representation_id"], where=where)
            stale = {each.identity for each in stale_artefacts(self.catalog) if each.kind == "representation"}
            fresh = [each for each in aligned["representation_id"].to_pylist() if each not in stale]
            ids = [*representation_ids, *(row["representation_id"] for row in external), *fresh]
            with self._stage("profiles") as told:
                found = score_profiles(self.catalog, ids, self.line.benchmark.profiles, told.report)
                warnings, left_out = found.warnings, dict(found.left_out)
                for each in set(aligned["representation_id"].to_pylist()) & stale:
                    left_out[f"aligned {each}"] = "stale, labels or pixels were corrected since: align it again"
                told.outcome = f"{len(found.rows):,} scores of well profiles in the scores table"
            print_caveats(self.console, dataclasses.replace(found, left_out=left_out))
        self.leaderboard_page(pack, warnings, left_out)
        return leaderboard_text(leaderboard(self.catalog, LeaderboardFilter(pack_id=pack.pack_id)))

    def leaderboard_page(
        self, pack: Pack, warnings: tuple[str, ...] = (), left_out: Mapping[str, str] | None = None
    ) -> None:
        """Write the page of all rankings that the pack's representations are in."""
        page = write_leaderboard(
            self.catalog,
            self.catalog.root / REPORT_FOLDER / LEADERBOARD_FILE,
            title=f"Leaderboard: {self.line.name}",
            pack_id=pack.pack_id,
            warnings=warnings,
            left_out=left_out or {},
        )
        self.console.print(f"leaderboard {escape(str(page))}")

    def report(
        self,
        curation_id: str,
        qc_id: str,
        trained: PretrainResult,
        embedded: list[str],
        choice: BlockChoice,
        others: tuple[BlockChoice, ...],
        card: ChampionCard | None,
    ) -> Path:
        """Write the report page."""
        with self._stage("report") as told:
            told.report("page", 0, 1)
            inputs = ReportInputs(
                title=f"cytolake: {self.line.name}",
                qc_id=qc_id,
                curation_id=curation_id,
                run_folder=trained.run_folder,
                representation_ids=tuple(embedded),
                choice=choice,
                others=others,
                facts=_choice_facts(choice, card),
                objective=objective_text(self.line.pretrain),
                commands=(
                    ("serve it", serve_command(self.line)),
                    ("query it", "curl -s localhost:8000/v1/models/champion"),
                    ("query the tables", f"{_program('cytolake')} tables --root {self.line.root_path}"),
                    ("see the runs", _mlflow_command(self.line)),
                ),
            )
            page = write_report(self.catalog, inputs, self.catalog.root / REPORT_FILE)
            told.outcome = str(page)
        return page


def _sweep_table(found: SweepResult, line: Line, most: int = 10) -> Table:
    names = list(found.best.settings)
    shown = Table(
        *(name.removeprefix("pretrain.") for name in names), "step", line.study.label, box=None, header_style="dim"
    )
    for trial in found.trials[:most]:
        values = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in (trial.settings[name] for name in names)]
        shown.add_row(
            *values, f"{trial.step:,} of {found.steps:,}", "failed" if trial.failure else f"{trial.score:.3f}"
        )
    return shown


def _sweep_outcome(found: SweepResult, line: Line) -> list[str]:
    texts = [f"chance {found.chance:.3f}; what was trained furthest first, {len(found.trials)} trials in all"]
    failures = [trial.failure for trial in found.trials if trial.failure]
    if failures:
        texts.append(f"[yellow]{len(failures)} failed[/], the first: {escape(failures[0])}")
    if found.confirmed:
        ours, recipe = np.mean(found.confirmed), np.mean(found.of_recipe)
        texts.append(
            f"trained again with seeds {', '.join(map(str, line.sweep.confirm_seeds))}: [bold]{ours:.3f}[/] with the "
            f"best settings, {recipe:.3f} with the recipe's own; {escape(found.verdict)}"
        )
    texts.append("train with the best: " + escape(" ".join(f"--set {shlex.quote(each)}" for each in found.changes)))
    return texts


def print_choice(console: Console, choice: BlockChoice, others: Sequence[BlockChoice]) -> None:
    """The result in a sentence, and the scores next to those of the baselines."""
    console.print(f"[bold]{escape(headline(choice))}[/]")
    console.print(choice_table([choice, *others]))
    console.print(f"[dim]{escape(how_measured(choice))}[/]")


def _choice_facts(choice: BlockChoice, card: ChampionCard | None) -> tuple[tuple[str, str], ...]:
    model = "not promoted, since no gain is shown"
    if card is not None:
        model = f"{card.name} version {card.version} ({card.architecture}), alias {card.alias}"
    facts = [("model", model), ("block", f"{choice.block} (0 = first), {choice.pooling} pooling")]
    if card is not None and card.forced:
        facts.append(("promoted without a gain", card.forced))
    for each in choice.baselines:
        if each.block >= 0:
            facts.append((f"best {each.kind} block", f"{each.block}, {each.pooling} pooling"))
    return tuple(facts)
