"""What each stage does to a catalog: `Steps` has a method for each, which prints one line about its outcome.

A stage finds its input by content: the newest curation of the recipe's name, the run of the recipe's own training
config. So a stage can be run again, alone or after a crash, and what is already there is not made twice.

It is one file because the stages read top to bottom in the order in which they run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console, Group
from rich.markup import escape

from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.linear_probe import PROBE_METRICS, ProbeConfig
from cytolake.benchmark.pinned_probe import pin_training_probe
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.catalog import Catalog
from cytolake.catalog.ingest.plates import IngestReport, ingest_screens
from cytolake.catalog.representations import ALIGNED, EXTERNAL
from cytolake.catalog.stale import stale_artefacts
from cytolake.curation.curate import Curation, qc_of_curation
from cytolake.curation.curate import curate as choose_crops
from cytolake.curation.runs import qc_of_run
from cytolake.embed.extract import embed_pack
from cytolake.packs.build import build_pack
from cytolake.packs.pack import Pack
from cytolake.pipeline.code_revision import code_revision
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.counts import count
from cytolake.pipeline.inputs import MissingInputError, built_pack, pack_of_run, recipe_run, screen_sources
from cytolake.pipeline.label_curve import has_label_curve, measure_label_curve
from cytolake.pipeline.progress import Report, stage_progress
from cytolake.pipeline.summaries import choice_facts, mlflow_command, print_caveats, program, serve_command
from cytolake.qc.verdicts import Progress, judge_sites, qc_profile
from cytolake.reports.choice_text import objective_text
from cytolake.reports.leaderboard_page import PAGE_FILE as LEADERBOARD_FILE
from cytolake.reports.leaderboard_page import leaderboard_text, write_leaderboard
from cytolake.reports.page import REPORT_FILE, REPORT_FOLDER
from cytolake.reports.qc_page import write_qc_page
from cytolake.reports.report import write_report
from cytolake.reports.report_inputs import ReportInputs
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.tracking import ModelVersion
from cytolake.train.pretrain import PretrainResult, finished_run
from cytolake.train.pretrain import pretrain as train_encoder
from cytolake.tune.block_search import CELL_COUNT, BlockChoice, search_blocks
from cytolake.tune.promotion import choose_by, promote_choice

MAX_PROBLEMS_PRINTED = 8


class StageReport:
    """What a stage says of itself: `report` while it runs, `outcome` at its end."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.outcome = ""


@contextmanager
def stage_report(name: str, console: Console) -> Iterator[StageReport]:
    """Show progress while the stage runs, and one line when it is done."""
    started = time.monotonic()
    with stage_progress(name, console) as report:
        stage = StageReport(report)
        yield stage
    console.print(f"[bold]{name:<9}[/][dim]{time.monotonic() - started:7.1f} s[/]   {escape(stage.outcome)}")


@dataclass(slots=True)
class Steps:
    """One run of one or more stages: the config, where it prints, the open catalog, what each stage took."""

    config: PipelineConfig
    console: Console
    catalog: Catalog
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def _stage(self, name: str) -> Iterator[StageReport]:
        """Show progress while the stage runs, one line when it is done, and keep what it took."""
        started = time.monotonic()
        with stage_report(name, self.console) as stage:
            yield stage
        self.seconds[name] = time.monotonic() - started

    def simulate(self) -> None:
        """Write the simulated screen, where the recipe has one."""
        screen = self.config.screens.simulate
        if screen is None:
            return
        with self._stage("simulate") as stage:
            plates = simulate_screen(screen, self.config.screens_path, stage.report)
            stage.outcome = (
                f"{count(len(plates), 'plate')} of {count(screen.n_wells, 'well')} in "
                f"{screen.n_batches} batch{'' if screen.n_batches == 1 else 'es'}: {plates[0].parent}"
            )

    def ingest(self) -> IngestReport:
        """Read every plate that is not in the catalog yet."""
        config = self.config
        sources = screen_sources(config)
        with self._stage("ingest") as stage:
            report = ingest_screens(self.catalog, sources, config.ingest, stage.report)
            stage.outcome = (
                f"{count(len(report.ingested), 'plate')} in, {len(report.skipped)} there already, "
                f"{len(report.refused)} refused; {count(report.n_sites, 'site')}, "
                f"{count(report.n_crops, 'crop')}, {count(report.n_quarantined, 'row')} in quarantine"
            )
        for problem in report.refused[:MAX_PROBLEMS_PRINTED]:
            self.console.print(f"  [yellow]refused[/] {escape(str(problem))}")
        for name in report.without_sites:
            self.console.print(f"  [yellow]0 sites[/] {escape(name)}: not one image could be read; see quarantine")
        for name in report.without_crops:
            self.console.print(
                f"  [yellow]0 crops[/] {escape(name)}: no crop of {config.ingest.crop_size} px fits; see quarantine, "
                "or set ingest.crop_size"
            )
        for problem in report.left_out:
            self.console.print(f"  [dim]left out {escape(str(problem))}[/]")
        if report.n_quarantined:
            self.console.print(
                f"  [yellow]quarantine[/] {program('cytolake')} sql "
                "'select plate, well, problem, found, next_step from quarantine' "
                f"--root {escape(str(config.root_path))}"
            )
        return report

    def judge(self, progress: Progress | None = None) -> str:
        """Judge the sites by what the recipe's curation excludes them by; returns the qc_id."""
        qc = qc_of_curation(self.config.curate, self.config.qc)
        return qc if isinstance(qc, str) else judge_sites(self.catalog, qc, progress)

    def curate(self) -> tuple[Curation, Pack, str]:
        """Verdicts and their page, chosen crops, the pack of their pixels; returns curation, pack and qc_id."""
        with self._stage("qc") as stage:
            qc_id = self.judge(stage.report)
            page = write_qc_page(self.catalog, qc_id, self.catalog.root / REPORT_FOLDER)
            failed = self.catalog.sql(
                "select count(distinct site_id) filter (not is_pass) failed, count(distinct site_id) judged "
                "from qc_verdicts where qc_id = $qc_id and site_id <> ''",
                parameters={"qc_id": qc_id},
            ).to_pylist()[0]
            stage.outcome = f"{failed['failed']:,} of {failed['judged']:,} sites fail a rule: {page}"
        with self._stage("curate") as stage:
            modalities = self.config.qc.modalities
            curation = choose_crops(self.catalog, self.config.curate, stage.report, modalities=modalities)
            pack = build_pack(self.catalog, curation.curation_id, self.config.pack, stage.report)
            stage.outcome = f"kept {curation.n_kept:,} of {curation.n_considered:,} crops: pack {pack.pack_id[:12]}"
        for step in curation.steps:
            removed = f"{step.rule:<20} removed {step.n_removed:,} of {step.n_considered:,}"
            self.console.print(f"  [dim]{escape(removed)}[/]")
        return curation, pack, qc_id

    def label_curve(self) -> None:
        """Measure how many labels the artefact detector needs, where the recipe has a label curve."""
        curve = self.config.label_curve
        if curve is None:
            return
        with self._stage("detector") as stage:
            if has_label_curve(self.catalog, curve):
                stage.outcome = "curve of the labels it needs: measured before"
                return
            found, _ = measure_label_curve(self.catalog, curve, stage.report)
            most = found.curve("auroc")[-1]
            simulated = ", artefacts simulated" if curve.train.simulated_per_kind else ""
            stage.outcome = f"AUROC {most.value:.3f} with {count(most.n_labels, 'label')} of each class{simulated}"

    def newest_pack(self) -> Pack:
        """The pack of the recipe's curation, see `newest_run`; prints where the curation has other rules by now.

        Raises:
            MissingInputError: The catalog has none.
            CatalogError: Labels or pixels of its plates were corrected since.
        """
        run, is_current = recipe_run(self.config, self.catalog)
        if not is_current:
            self.console.print(
                f"[yellow]curation {escape(self.config.curate.name)}: its rules were changed since its newest run[/], "
                f"{run['curation_id'][:12]}, which is used here. `cytolake curate` applies them."
            )
        return pack_of_run(self.config, self.catalog, run)

    def qc_of_curation(self) -> str:
        """The qc_id of the verdicts that the recipe's curation excluded by; without such a rule, of the recipe's QC.

        Raises:
            MissingInputError: There is no such curation, or no site was judged so.
        """
        config = self.config
        run, _ = recipe_run(config, self.catalog)
        qc_id = qc_of_run(run) or qc_profile(config.qc.profile, config.qc.modalities).qc_id
        judged = "select 1 from qc_verdicts where qc_id = $qc_id limit 1"
        if not self.catalog.sql(judged, parameters={"qc_id": qc_id}).num_rows:
            raise MissingInputError(f"{config.root_path}: no verdicts of the recipe's QC. Run `cytolake curate` first.")
        return qc_id

    def training_pack(self, pack: Pack) -> Pack:
        """The pack to train on: without the plates that are held out of pretraining too. Built where it is missing."""
        excluded = self.config.hold_out_plates
        if not excluded:
            return pack
        return build_pack(
            self.catalog, pack.curation_id, dataclasses.replace(self.config.pack, exclude_plates=excluded)
        )

    @property
    def probe_config(self) -> ProbeConfig:
        """The recipe's probe; of plates that were held out of pretraining, where there are such."""
        return dataclasses.replace(self.config.probe, only=self.config.hold_out_plates or self.config.probe.only)

    def pretrain(self, pack: Pack) -> PretrainResult:
        """Train, or read back the finished run of the same pack and config."""
        with self._stage("pretrain") as stage:
            probe = self.config.training_probe
            result = train_encoder(
                pack.path,
                self.config.pretrain,
                self.catalog.root / "runs",
                self.config.tracking,
                stage.report,
                evaluate=pin_training_probe(self.catalog, pack, probe) if probe is not None else None,
                tags={"recipe": self.config.name, **code_revision()},
            )
            stage.outcome = (
                f"{self.config.pretrain.model.architecture}, {result.steps:,} steps, loss {result.final_loss:.3f}, "
                f"{result.crops_per_s:,.0f} crops/s, {result.data_wait_share:.1%} waiting for data"
                + (" (trained before)" if result.is_reused else "")
            )
        return result

    def finished_run(self, pack: Pack) -> PretrainResult:
        """The finished run of the recipe's training config on the pack.

        Raises:
            MissingInputError: There is none.
        """
        trained_on = built_pack(self.config, self.catalog, for_training=True) if self.config.hold_out_plates else pack
        result = finished_run(trained_on.pack_id, self.config.pretrain, self.catalog.root / "runs")
        if result is None:
            raise MissingInputError(
                f"{self.config.root_path}: no finished pretraining run of this recipe on pack {trained_on.pack_id}. "
                "Run `cytolake pretrain` with the same recipe, root and --set first."
            )
        return result

    def embed(self, pack: Pack, trained: PretrainResult) -> list[str]:
        """Embeddings of every block; returns the ids of their representations."""
        with self._stage("embed") as stage:
            checkpoints = {"trained": trained.checkpoint, "untrained": trained.untrained_checkpoint}
            rows = embed_pack(self.catalog, pack, checkpoints, self.config.embed, stage.report, run_id=trained.run_id)
            stage.outcome = f"{count(pack.n_crops, 'crop')} x {count(len(rows), 'representation')}"
        return [row["representation_id"] for row in rows]

    def representation_ids(self, pack: Pack, trained: PretrainResult) -> list[str]:
        """Representations of the pack that belong to one run and its baselines.

        Raises:
            MissingInputError: They were not embedded.
        """
        rows = self.catalog.table(
            "representations",
            columns=["representation_id", "model_id", "kind"],
            where="pack_id = ?",
            parameters=[pack.pack_id],
        ).to_pylist()
        models = {trained.model_id, trained.untrained_model_id}
        ids = [
            row["representation_id"]
            for row in rows
            if row["model_id"] in models or row["kind"] in ("pixel_statistics", CELL_COUNT)
        ]
        if not any(row["model_id"] == trained.model_id for row in rows):
            raise MissingInputError(
                f"{self.config.root_path}: the run {trained.run_key} has no embeddings of pack {pack.pack_id}. Run "
                "`cytolake embed` with the same recipe, root and --set first."
            )
        return ids

    def probe(self, representation_ids: list[str]) -> BlockChoice:
        """Linear probes of all representations; the best trained block."""
        with self._stage("probe") as stage:
            choice = search_blocks(self.catalog, representation_ids, self.probe_config, stage.report)
            stage.outcome = f"block {choice.block}, {choice.pooling} pooling: {choice.score:.3f} by {choice.protocol}"
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
        for split in self.config.also_held_out_by:
            if split == config.split or config.only:  # a batch has plates that the encoder was trained on
                continue
            with self._stage(f"probe {split}") as stage:
                try:
                    held_out = dataclasses.replace(config, split=split)
                    other = search_blocks(self.catalog, representation_ids, held_out, stage.report)
                except ValueError as error:
                    stage.outcome = f"not held out by {split}: {error}"
                    continue
                found.append(other)
                stage.outcome = f"{other.score:.3f} by {other.protocol}"
        return tuple(found)

    def promote(self, choice: BlockChoice) -> ModelVersion:
        """Register the choice and move the alias."""
        with self._stage("promote") as stage:
            forced = self.config.promote_without_gain
            card = promote_choice(self.catalog, choice, self.config.tracking, self.config.alias, forced=forced)
            stage.outcome = f"{card.name} version {card.version} is {card.alias}"
        return card

    def choose(self, representation_ids: list[str]) -> BlockChoice:
        """The representation to promote: the best by the probe, or by the ranking that the recipe names."""
        if not self.config.promote_by.benchmark:
            return self.probe(representation_ids)
        return choose_by(self.catalog, representation_ids, self.config.promote_by)

    def benchmark(self, pack: Pack, representation_ids: list[str]) -> Group:
        """Probe every label of `config.benchmark`, score all profiles, write the leaderboard page, and return its text.

        External representations and aligned ones are scored with the recipe's own: by probes the external ones of the
        pack's crops, by profiles the external ones of the same wells and the aligned ones of the pack.
        """
        external = self.catalog.table(
            "representations", columns=["representation_id", "pack_id"], where="kind = ?", parameters=[EXTERNAL]
        ).to_pylist()
        of_crops = [row["representation_id"] for row in external if row["pack_id"] == pack.pack_id]
        for label, split in self.config.benchmark.tasks:
            probe: ProbeConfig = dataclasses.replace(self.config.probe, label=label, split=split)
            with self._stage(f"probe {label}") as stage:
                search_blocks(self.catalog, [*representation_ids, *of_crops], probe, stage.report)
                stage.outcome = f"{', '.join(PROBE_METRICS)} in the scores table"
        warnings: tuple[str, ...] = ()
        left_out: dict[str, str] = {}
        if self.config.benchmark.profiles is not None:
            aligned = self.catalog.table(
                "representations",
                columns=["representation_id"],
                where="kind = ? AND pack_id = ?",
                parameters=[ALIGNED, pack.pack_id],
            )
            stale = {each.identity for each in stale_artefacts(self.catalog) if each.kind == "representation"}
            fresh = [each for each in aligned["representation_id"].to_pylist() if each not in stale]
            ids = [*representation_ids, *(row["representation_id"] for row in external), *fresh]
            with self._stage("profiles") as stage:
                found = score_profiles(self.catalog, ids, self.config.benchmark.profiles, stage.report)
                warnings, left_out = found.warnings, dict(found.left_out)
                for each in set(aligned["representation_id"].to_pylist()) & stale:
                    left_out[f"aligned {each}"] = "stale, labels or pixels were corrected since: align it again"
                stage.outcome = f"{count(len(found.rows), 'score')} of well profiles in the scores table"
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
            title=f"Leaderboard: {self.config.name}",
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
        card: ModelVersion | None,
    ) -> Path:
        """Write the report page."""
        with self._stage("report") as stage:
            stage.report("page", 0, 1)
            inputs = ReportInputs(
                title=f"cytolake: {self.config.name}",
                qc_id=qc_id,
                curation_id=curation_id,
                run_folder=trained.run_folder,
                representation_ids=tuple(embedded),
                choice=choice,
                others=others,
                facts=choice_facts(choice, card),
                objective=objective_text(self.config.pretrain),
                commands=(
                    ("serve it", serve_command(self.config)),
                    ("query it", "curl -s localhost:8000/v1/models/champion"),
                    ("query the tables", f"{program('cytolake')} tables --root {self.config.root_path}"),
                    ("see the runs", mlflow_command(self.config)),
                ),
            )
            page = write_report(self.catalog, inputs, self.catalog.root / REPORT_FILE)
            stage.outcome = str(page)
        return page
