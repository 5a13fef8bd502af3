"""Block search: which transformer block, under which pooling, tells the labels of unseen plates best.

Ray Tune trials read tables and fit probes; no trial runs an encoder. Source: "ViTally Consistent" (Kraus et al. 2024,
arXiv 2411.02572), where the best block of a masked autoencoder is not the last one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

import cytolake.catalog
from cytolake.benchmark.linear_probe import (
    CROP_METRIC,
    METRICS,
    ProbeConfig,
    ProbeResult,
    make_splits,
    probe_key,
    probe_representation,
    score_id,
)
from cytolake.benchmark.probe_data import ProbeData, read_probe_data, read_vectors
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.tracking import Baseline

Progress = Callable[[str, int, int], None]
BASELINES = ("untrained", "pixel_statistics")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockChoice:
    """The trained block that scored best, and what it was compared with."""

    representation_id: str
    model_id: str
    block: int
    pooling: str
    benchmark: str
    label: str
    split: str
    metric: str
    """What `score` is: of a probe, balanced accuracy of single crops, mean over seeds."""
    alignment: str = "none"
    """What was done to profiles before they were scored."""
    n_classes: int | None
    """Classes of the label, where the benchmark has such."""
    score: float
    ci_low: float
    """Lower end of the 95 % interval over wells."""
    ci_high: float
    untrained: Baseline
    """Best block and pooling of the encoder before training."""
    pixel_statistics: Baseline
    margin: float
    """Score minus the better baseline's."""
    margin_low: float
    """Lower end of the margin's 95 % interval, from the same resamples of wells for both."""
    margin_high: float
    dropped_classes: tuple[str, ...]
    """Classes that some split could not score, for it had no wells of them in its train or in its test part."""
    n_not_converged: int
    """Fits of the chosen representation and the better baseline that reached the limit of iterations."""

    @property
    def chance(self) -> float | None:
        """What guessing scores, where that is known."""
        return 1 / self.n_classes if self.n_classes and self.metric in METRICS else None

    @property
    def reason(self) -> str:
        """Why this block and pooling, in one sentence."""
        how = f"{self.benchmark}, {self.metric} of {self.label}"
        how += f", held out by {self.split}" if self.split else ""
        how += f", alignment {self.alignment}" if self.alignment != "none" else ""
        others = ", ".join(
            f"{each.kind.replace('_', ' ')} {each.score:.3f}" for each in (self.untrained, self.pixel_statistics)
        )
        return (
            f"best trained block and pooling by {how}: {self.score:.3f} "
            f"[{self.ci_low:.3f}, {self.ci_high:.3f}] against {others}"
        )

    @property
    def best_baseline(self) -> Baseline:
        """The better of the two."""
        return max(self.untrained, self.pixel_statistics, key=lambda baseline: baseline.score)


def search_blocks(
    catalog: Catalog, representation_ids: Sequence[str], config: ProbeConfig, progress: Progress | None = None
) -> BlockChoice:
    """Probe every representation that has no scores yet, write the `scores` table, choose the best trained one.

    The chosen block's score is the best of several on the same held-out plates, and so reads a little high; the best
    untrained block is chosen the same way, so their difference is fair.

    Args:
        catalog: The tables.
        representation_ids: Representations of one pack: at least one trained, one untrained, and pixel statistics.
        config: The probe.
        progress: Told the representations done and to do.

    Raises:
        ValueError: A kind is missing, or the label or split cannot be scored; see `linear_probe`.
    """
    rows = _representations(catalog, representation_ids)
    data = read_probe_data(
        catalog, rows[0]["representation_id"], config.label, include_controls=config.include_controls
    )
    make_splits(data, config)  # a label or split that cannot work stops here, not in a trial
    key = probe_key(data, config)
    known = _known_scores(catalog, rows, key)
    todo = [row for row in rows if row["representation_id"] not in known]
    if progress is not None:
        progress("representations", len(rows) - len(todo), len(rows))
    if todo:
        scores = _run_trials(catalog, todo, config, key, (len(rows) - len(todo), len(rows)), progress)
        table = pa.Table.from_pylist(scores, schema=catalog.table("scores", where="false").schema)
        ids = [row["representation_id"] for row in todo]
        catalog.append("scores", table, transaction=f"scores/{content_id(key, *ids)}")
        known = _known_scores(catalog, rows, key)
    return _choose(catalog, rows, known, data, config, key)


def _representations(catalog: Catalog, representation_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Their rows, in the order given."""
    found = catalog.table("representations").to_pylist()
    by_id = {row["representation_id"]: row for row in found}
    missing = [each for each in representation_ids if each not in by_id]
    if missing or not representation_ids:
        raise ValueError(
            f"{len(missing)} of {len(representation_ids)} representations to probe are not in the representations "
            f"table{' (' + missing[0] + ')' if missing else ''}. Run jobs/embed.py first."
        )
    rows = [by_id[each] for each in dict.fromkeys(representation_ids)]
    packs = sorted({row["pack_id"] for row in rows})
    if len(packs) > 1:
        raise ValueError(
            f"representations of {len(packs)} packs ({', '.join(packs)}) cannot be compared: their crops differ. "
            "Embed one pack with every encoder."
        )
    kinds = {row["kind"] for row in rows}
    lacking = [kind for kind in ("trained", *BASELINES) if kind not in kinds]
    if lacking:
        raise ValueError(
            f"no {' and no '.join(lacking)} representation among the {len(rows)} to probe: a score means nothing "
            "without its baselines. Embed the pack with the trained and the untrained checkpoint."
        )
    return rows


def _known_scores(catalog: Catalog, rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Summary rows of the crop metric by representation, of those whose summary rows are all there."""
    wanted = {
        score_id(row["representation_id"], metric, key, -1): (row["representation_id"], metric)
        for row in rows
        for metric in METRICS
    }
    found = {
        wanted[score["score_id"]]: score
        for score in catalog.table("scores", where="seed = -1").to_pylist()
        if score["score_id"] in wanted
    }
    ids = [row["representation_id"] for row in rows]
    return {each: found[each, CROP_METRIC] for each in ids if all((each, metric) in found for metric in METRICS)}


def _run_trials(
    catalog: Catalog,
    todo: Sequence[Mapping[str, Any]],
    config: ProbeConfig,
    key: str,
    done: tuple[int, int],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Score rows of all representations; one trial holds the blocks of one encoder and pooling.

    A trial for each representation would spend more time on starting processes than on fitting.
    """
    from ray import tune

    groups: dict[str, list[str]] = {}
    for row in todo:
        groups.setdefault(f"{row['kind']} {row['pooling']} {row['model_id'][:8]}", []).append(row["representation_id"])
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = tune.with_parameters(_trial, root=str(catalog.root), groups=groups, config=config, key=key)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"group": tune.grid_search(list(groups))},
        # Reused: starting a process and importing takes as long as the fits of a trial.
        tune_config=tune.TuneConfig(max_concurrent_trials=config.concurrent_trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"block_search_{key[:12]}",
            storage_path=str(catalog.root / "runs" / "tune"),
            verbose=0,
            callbacks=[_count_trials(groups, done, progress)] if progress is not None else None,
        ),
    )
    results = tuner.fit()
    rows: list[dict[str, Any]] = []
    for i in range(len(results)):
        result = results[i]
        if result.error is not None:
            raise result.error
        rows += json.loads((result.metrics or {})["score_rows"])
    return [{**row, "scored_at": datetime.fromisoformat(row["scored_at"])} for row in rows]


def _trial(
    settings: dict[str, Any], *, root: str, groups: Mapping[str, Sequence[str]], config: ProbeConfig, key: str
) -> None:
    """One Ray Tune trial: the probes of one group of representations."""
    from ray import tune

    catalog = cytolake.catalog.open(root)
    ids = groups[settings["group"]]
    data = read_probe_data(catalog, ids[0], config.label, include_controls=config.include_controls)
    results = [_probe(catalog, each, data, config, key) for each in ids]
    best = max(results, key=lambda result: result.summary[CROP_METRIC].value)
    rows = [{**row, "scored_at": row["scored_at"].isoformat()} for result in results for row in result.rows]
    tune.report(
        {
            CROP_METRIC: best.summary[CROP_METRIC].value,
            "representation_id": best.representation_id,
            "n_not_converged": sum(result.n_not_converged for result in results),
            "score_rows": json.dumps(rows),
        }
    )


def _probe(catalog: Catalog, representation_id: str, data: ProbeData, config: ProbeConfig, key: str) -> ProbeResult:
    vectors = read_vectors(catalog, representation_id, data.crop_ids)
    return probe_representation(vectors, representation_id, data, config, key)


def _count_trials(groups: Mapping[str, Sequence[str]], done: tuple[int, int], progress: Progress) -> Any:
    """A Tune callback that reports the representations whose trials ended."""
    from ray import tune

    class CountTrials(tune.Callback):
        def __init__(self) -> None:
            self.n_done, self.n_all = done

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.n_done += len(groups[trial.config["group"]])
            progress("representations", self.n_done, self.n_all)

    return CountTrials()


def _choose(
    catalog: Catalog,
    rows: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    data: ProbeData,
    config: ProbeConfig,
    key: str,
) -> BlockChoice:
    best = {
        kind: max(
            (row for row in rows if row["kind"] == kind), key=lambda row: known[row["representation_id"]]["value"]
        )
        for kind in ("trained", *BASELINES)
    }
    chosen = best["trained"]
    score = known[chosen["representation_id"]]
    baselines = {kind: baseline_of(best[kind], known[best[kind]["representation_id"]]) for kind in BASELINES}
    better = max(baselines.values(), key=lambda baseline: baseline.score)
    # Fitted again, for their resamples: seconds, and the table need not hold them.
    ours, theirs = (
        _probe(catalog, each, data, config, key) for each in (chosen["representation_id"], better.representation_id)
    )
    difference = ours.summary[CROP_METRIC].draws - theirs.summary[CROP_METRIC].draws
    low, high = np.nanpercentile(difference, [2.5, 97.5])
    return BlockChoice(
        representation_id=chosen["representation_id"],
        model_id=chosen["model_id"],
        block=chosen["block"],
        pooling=chosen["pooling"],
        benchmark=config.benchmark,
        label=config.label,
        split=config.split,
        metric=CROP_METRIC,
        n_classes=score["n_classes"],
        score=score["value"],
        ci_low=score["ci_low"],
        ci_high=score["ci_high"],
        untrained=baselines["untrained"],
        pixel_statistics=baselines["pixel_statistics"],
        margin=score["value"] - better.score,
        margin_low=float(low),
        margin_high=float(high),
        dropped_classes=ours.dropped_classes,
        n_not_converged=ours.n_not_converged + theirs.n_not_converged,
    )


def baseline_of(row: Mapping[str, Any], score: Mapping[str, Any]) -> Baseline:
    """One row of `representations` with its score."""
    return Baseline(
        kind=row["kind"],
        representation_id=row["representation_id"],
        block=row["block"],
        pooling=row["pooling"],
        score=score["value"],
        ci_low=score["ci_low"],
        ci_high=score["ci_high"],
    )
