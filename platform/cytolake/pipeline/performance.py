"""Predictors of performance: fitted, judged and registered in MLflow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from cytolake.catalog import Catalog
from cytolake.performance_prediction.catalog_queries import crop_queries, well_queries
from cytolake.performance_prediction.correlations import Estimate
from cytolake.performance_prediction.prompt_predictor import PromptReport, fit_prompt_predictor
from cytolake.performance_prediction.prompt_table import FEWEST_TO_SPLIT, read_prompts
from cytolake.performance_prediction.queries import Measure
from cytolake.performance_prediction.query_predictor import Before, QueryReport, fit_query_predictor
from cytolake.performance_prediction.registered import PROMPT_MODEL, query_model, register_query_predictor
from cytolake.pipeline.config import PerformanceConfig
from cytolake.pipeline.progress import Report
from cytolake.reports.performance_page import PerformanceSection
from cytolake.tracking import Run, TrackingConfig, register_folder, start_run

REGISTERED_TAG = "registered"
ABOUT: Mapping[tuple[Before, Measure], str] = {
    ("search", "average_precision"): "Crops that search each other: how well a crop finds the other crops of its "
    "perturbation, predicted from its vector before the search runs. The search endpoint returns it with every answer.",
    (
        "search",
        "replicate_consistency",
    ): "The mean cosine of a crop with the other crops of its perturbation, predicted from its vector.",
    ("screen", "average_precision"): "Wells of treatments: how well a well would find its replicates, predicted "
    "from the plate map alone (compound, gene, pathway, dose), before anything is imaged.",
    (
        "screen",
        "replicate_consistency",
    ): "The mean cosine of a well with its replicates, predicted from the plate map alone.",
}
HELD_OUT = "Compounds and genes are held out whole: every figure is of some that the fit has not seen."


def predict_prompts(config: PerformanceConfig, tracking: TrackingConfig, report: Report) -> PerformanceSection:
    """Fit and judge a predictor of prompts, and register it.

    Raises:
        PromptTableError: A table that cannot be learnt from.
    """
    table = config.prompts
    prompts = read_prompts(table)
    predictor, found = fit_prompt_predictor(prompts, config.prompt_predictor, report)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor.save(folder)
        with _logged(tracking, PROMPT_MODEL, folder, found) as run:
            tags = {"table": Path(table.path).name, "score": table.score, REGISTERED_TAG: found.chosen}
            version = register_folder(tracking, PROMPT_MODEL, folder, run, tags)
    notes = list(found.notes)
    if found.ceiling is not None:
        notes.append(
            f"Reliability of the scores themselves {found.ceiling.reliability} ({found.ceiling.n_prompts:,} prompts "
            "with repeated scores): a perfect predictor would reach a Pearson correlation of "
            f"{found.ceiling.ceiling:.3f}"
        )
    return PerformanceSection(
        name=f"Prompts: {table.score}",
        about=f"{Path(table.path).name}: {_held_out(found)}. Used: "
        f"{'the stack of all' if found.chosen == 'stack' else found.chosen}.",
        scores=found.scores,
        truth=found.truth,
        predicted=found.predicted,
        coverage=found.coverage,
        wanted_coverage=config.prompt_predictor.coverage,
        width=found.width,
        members=predictor.stack.members,
        notes=notes,
        model=f"{PROMPT_MODEL} version {version}",
        axis=table.score,
        verdict=found.verdict,
    )


def predict_queries(
    catalog: Catalog,
    representation_id: str,
    before: Before,
    measure: Measure,
    config: PerformanceConfig,
    tracking: TrackingConfig,
    report: Report,
) -> PerformanceSection:
    """Fit and judge a predictor of one representation's queries, and register it.

    Raises:
        ValueError: Too few controls, replicates, compounds or genes.
    """
    read = crop_queries if before == "search" else well_queries
    queries = read(catalog, representation_id, config.queries, measure)
    # The search index keeps vectors at unit length.
    settings = replace(config.queries.predictor, by_direction=before == "search")
    predictor, found = fit_query_predictor(queries, before, settings, report)
    predictor.representation_id = representation_id
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor.save(folder)
        with _logged(tracking, query_model(before, measure), folder, found) as run:
            version = register_query_predictor(tracking, predictor, folder, run)
    return PerformanceSection(
        name=f"{measure.replace('_', ' ').capitalize()} before the {before}",
        about=f"{ABOUT[before, measure]} {HELD_OUT} {len(queries):,} queries of {len(set(queries.family)):,} compounds "
        "and genes.",
        scores=found.scores,
        truth=queries.performance,
        predicted=found.predicted,
        coverage=found.coverage,
        wanted_coverage=config.queries.predictor.coverage,
        width=found.width,
        members=predictor.stack.members,
        notes=found.notes,
        model=f"{query_model(before, measure)} version {version}",
        axis=measure,
        verdict=found.verdict,
        of_perturbations=found.of_perturbations,
    )


def _held_out(found: PromptReport) -> str:
    """How many prompts were fitted on and judged, in words."""
    if found.n_folds:
        return (
            f"{found.n_test:,} prompts, each predicted by a fit without its group of near-duplicates ({found.n_folds} "
            f"folds, settings chosen within each; tables of {FEWEST_TO_SPLIT:,} prompts or more are split once)"
        )
    return f"{found.n_train:,} prompts fitted on, {found.n_test:,} tested, on which no setting was chosen"


@contextmanager
def _logged(tracking: TrackingConfig, name: str, folder: Path, found: PromptReport | QueryReport) -> Iterator[Run]:
    """A run with the figures of what is registered; all of them lie with its files."""
    verdict = found.verdict
    card = {**_plain(found.scores), "registered": verdict.registered, "reason": verdict.reason}
    (folder / "scores.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    with start_run(tracking, name) as run:
        own = {metric: each.value for metric, each in found.scores[verdict.registered].items()}
        figures = {**own, "coverage": found.coverage, "gain_over_best_baseline": verdict.gain.value}
        run.log_metrics({metric: value for metric, value in figures.items() if np.isfinite(value)})
        yield run


def _plain(scores: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, list[float | None]]]:
    def number(value: float) -> float | None:
        return value if np.isfinite(value) else None

    return {
        name: {metric: [number(v) for v in (e.value, e.low, e.high)] for metric, e in of_metric.items()}
        for name, of_metric in scores.items()
    }
