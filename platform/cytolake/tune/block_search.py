"""Block search: from which transformer block, under which pooling, labels of held-out plates are predicted best.

Ray Tune trials read tables and fit probes; no trial runs an encoder. The block that is promoted is the best over all
plates; its score is not read off the plates that chose it: on every plate, the block counts that the other plates
choose (`benchmark/unit_scores.py`), and baselines are chosen in the same way. Source: "ViTally Consistent" (Kraus et
al. 2024, arXiv 2411.02572), where the best block of a masked autoencoder is not the last one.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

import cytolake.catalog
from cytolake.benchmark.cross_validation import ProbeResult, check_units, probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, PROBE_METRICS, WELL_METRIC, ProbeConfig, probe_key, score_id
from cytolake.benchmark.probe_data import ProbeData, read_probe_data, read_vectors
from cytolake.benchmark.unit_scores import Candidate, chosen_elsewhere, chosen_score, gain
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.statistics.intervals import Interval
from cytolake.tracking import Baseline

Progress = Callable[[str, int, int], None]
BASELINES = ("untrained", "pixel_statistics")
"""Without these a score means nothing."""
CELL_COUNT = "cell_count"
"""Kind of the baseline that knows how many cells there are and nothing else, where QC has counted them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockChoice:
    """The trained block that scored best, and what it was compared with."""

    representation_id: str
    """The best over all units: what is promoted."""
    model_id: str
    block: int
    pooling: str
    benchmark: str
    label: str
    split: str
    metric: str
    """What `score` is: of a probe, balanced accuracy of wells or of single crops, mean over what was held out."""
    alignment: str = "none"
    """What was done to profiles before they were scored."""
    n_classes: int | None
    """Classes of the label, where the benchmark has such."""
    score: float
    """Of the block that the other units chose, mean over units."""
    ci_low: float | None
    """Lower end of the 95 % interval over units; None for fewer than three."""
    ci_high: float | None
    baselines: tuple[Baseline, ...]
    """Each the best of its kind, chosen in the same way."""
    gain: float
    """Score minus that of the best baseline."""
    gain_low: float | None
    gain_high: float | None
    unit: str = ""
    """What was held out whole and is counted by the interval: plate, batch, ..."""
    units: tuple[str, ...] = ()
    unit_scores: tuple[float, ...] = ()
    """Score on each unit."""
    baseline_unit_scores: tuple[tuple[float, ...], ...] = ()
    """The same of each baseline."""
    protocol_id: str = ""
    """Of the rows of `scores` behind the choice."""
    n_candidates: int = 1
    """Trained blocks and poolings that there were to choose from."""
    encoder_saw_units: bool = True
    """Whether the encoder was trained, without labels, on what is held out of the probes."""
    is_nested: bool = True
    """False where the score was read off what chose the block, and so reads high."""
    dropped_classes: tuple[str, ...] = ()
    """Classes that some split could not score, for it had no wells of them in its train or in its test part."""

    @property
    def chance(self) -> float | None:
        """What guessing scores, where that is known."""
        return 1 / self.n_classes if self.n_classes and self.metric in PROBE_METRICS else None

    @property
    def has_gain(self) -> bool:
        """Whether the interval of the gain lies above 0."""
        return self.gain_low is not None and self.gain_low > 0

    @property
    def best_baseline(self) -> Baseline:
        """The one with the highest score."""
        return max(self.baselines, key=lambda baseline: baseline.score)

    def baseline(self, kind: str) -> Baseline | None:
        """The one of a kind, or None."""
        return next((each for each in self.baselines if each.kind == kind), None)

    @property
    def protocol(self) -> str:
        """How it was measured, in words."""
        of = {WELL_METRIC: "balanced accuracy of wells", CROP_METRIC: "balanced accuracy of crops"}
        name = of.get(self.metric, self.metric.replace("_", " "))
        text = f"{self.benchmark.replace('_', ' ')}, {name}, {self.label}"
        text += f", {held_out_text(self.split)}" if self.split else ""
        return text + (f", alignment {self.alignment}" if self.alignment != "none" else "")

    @property
    def gain_text(self) -> str:
        """The gain over the best baseline and what its interval allows to say."""
        name = self.best_baseline.kind.replace("_", " ")
        text = f"{self.gain:+.3f} {interval_text(self.gain_low, self.gain_high)} compared with {name}"
        if self.has_gain:
            return text
        return text + (": no gain shown" if self.gain_low is not None else ": too few to show a gain")

    @property
    def reason(self) -> str:
        """Why this block and pooling, in one sentence."""
        others = ", ".join(f"{each.kind.replace('_', ' ')} {each.score:.3f}" for each in self.baselines)
        return (
            f"best trained block and pooling by {self.protocol}: {self.score:.3f} "
            f"{interval_text(self.ci_low, self.ci_high)} against {others}; gain {self.gain_text}"
        )


def interval_text(low: float | None, high: float | None) -> str:
    """`[0.120, 0.310]`, or that there is none."""
    return "[no interval]" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def held_out_text(split: str) -> str:
    """What a probe never saw, in words."""
    return {
        "plate": "on plates that the probe never saw",
        "batch": "on batches that the probe never saw",
        "well": "on held-out wells of plates that the probe saw",
        "leave_one_well_out": "on wells left out one by one, of plates that the probe saw",
        "row": "on held-out rows of plates that the probe saw",
        "column": "on held-out columns of plates that the probe saw",
        "column_block": "on held-out blocks of columns of plates that the probe saw",
    }.get(split, f"held out by {split}")


def search_blocks(
    catalog: Catalog, representation_ids: Sequence[str], config: ProbeConfig, progress: Progress | None = None
) -> BlockChoice:
    """Probe every representation that has no scores yet, write the `scores` table, choose the best trained one.

    Args:
        catalog: The tables.
        representation_ids: Representations of one pack: at least one trained, one untrained, and pixel statistics.
        config: The probe. Scores of wells and of crops come from the same fits, so another `choose_by` fits nothing.
        progress: Receives the representations done and to do.

    Raises:
        ValueError: A kind is missing, or the label or split cannot be scored; see `linear_probe`.
    """
    rows = _representations(catalog, representation_ids)
    data = read_probe_data(
        catalog, rows[0]["representation_id"], config.label, include_controls=config.include_controls
    )
    check_units(data, config)  # a label or split that cannot work stops here, not in a trial
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
    return _choose(rows, known, data, config)


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
    """Summary rows of each metric by representation, of those whose summary rows are all there."""
    wanted = {
        score_id(row["representation_id"], metric, key, -1): (row["representation_id"], metric)
        for row in rows
        for metric in PROBE_METRICS
    }
    found: dict[str, dict[str, Any]] = {}
    for score in catalog.table("scores", where="seed = -1").to_pylist():
        if score["score_id"] in wanted:
            representation, metric = wanted[score["score_id"]]
            found.setdefault(representation, {})[metric] = score
    return {each: of for each, of in found.items() if len(of) == len(PROBE_METRICS)}


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
    best = max(results, key=lambda result: result.summary[config.metric].value)
    rows = [{**row, "scored_at": row["scored_at"].isoformat()} for result in results for row in result.rows]
    tune.report(
        {
            config.metric: best.summary[config.metric].value,
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
    rows: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    data: ProbeData,
    config: ProbeConfig,
) -> BlockChoice:
    scores = {each: of[config.metric] for each, of in known.items()}
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    candidates = {kind: [_candidate(scores[row["representation_id"]]) for row in of] for kind, of in by_kind.items()}
    best = {kind: max(of, key=lambda row: scores[row["representation_id"]]["value"]) for kind, of in by_kind.items()}
    kinds = [kind for kind in (*BASELINES, CELL_COUNT) if kind in by_kind]
    chosen, ours = best["trained"], chosen_elsewhere(candidates["trained"])
    score = chosen_score(candidates["trained"])
    # The highest of the baselines, read off the same units: what luck there is in that makes the gain smaller.
    highest = max(kinds, key=lambda kind: chosen_elsewhere(candidates[kind]).value)
    over = gain(candidates["trained"], candidates[highest])
    tested = _classes_of_all(scores[chosen["representation_id"]])
    return BlockChoice(
        representation_id=chosen["representation_id"],
        model_id=chosen["model_id"],
        block=chosen["block"],
        pooling=chosen["pooling"],
        benchmark=config.benchmark,
        label=config.label,
        split=config.split,
        metric=config.metric,
        n_classes=scores[chosen["representation_id"]]["n_classes"],
        score=score.value,
        ci_low=_end(score.low),
        ci_high=_end(score.high),
        baselines=tuple(_baseline(best[kind], chosen_score(candidates[kind])) for kind in kinds),
        gain=over.value,
        gain_low=_end(over.low),
        gain_high=_end(over.high),
        unit=ours.unit,
        units=ours.names,
        unit_scores=tuple(ours.score.tolist()),
        baseline_unit_scores=tuple(tuple(chosen_elsewhere(candidates[kind]).score.tolist()) for kind in kinds),
        protocol_id=scores[chosen["representation_id"]]["protocol"],
        n_candidates=len(candidates["trained"]),
        encoder_saw_units=not config.only,
        dropped_classes=tuple(name for name in data.classes if name not in tested),
    )


def _candidate(score: Mapping[str, Any]) -> Candidate:
    found = Candidate.of_details(json.loads(score["details"]))
    if found is None:  # the key of such scores is another
        raise ValueError(f"score {score['score_id']} has no scores of single units. Run jobs/probe.py again.")
    return found


def _classes_of_all(score: Mapping[str, Any]) -> set[str]:
    """Classes that every fold scored."""
    details = json.loads(score["details"])
    return set(details["classes_of_all_folds"])


def _baseline(row: Mapping[str, Any], score: Interval) -> Baseline:
    return Baseline(
        kind=row["kind"],
        representation_id=row["representation_id"],
        block=row["block"],
        pooling=row["pooling"],
        score=score.value,
        ci_low=_end(score.low),
        ci_high=_end(score.high),
    )


def _end(value: float) -> float | None:
    return value if math.isfinite(value) else None
