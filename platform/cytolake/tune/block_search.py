"""Block search: the transformer block and pooling from which a probe predicts labels of held-out plates best.

Trials read tables and fit probes; no trial runs an encoder. The block that is promoted is the best over all
plates; its score is not computed on the plates that chose it: every plate is scored with the block that the other
plates choose (`benchmark/unit_scores.py`), and baselines are chosen in the same way. Source: "ViTally Consistent"
(Kraus et al. 2024, arXiv 2411.02572), where the best block of a masked autoencoder is not the last one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

import cytolake.catalog
from cytolake.benchmark.cross_validation import check_units, probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, PROBE_METRICS, WELL_METRIC, ProbeConfig, probe_key, score_id
from cytolake.benchmark.probe_data import ProbeData, read_probe_data
from cytolake.benchmark.unit_scores import Candidate, chosen_elsewhere, chosen_score, gain
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.catalog.representations import read_vectors
from cytolake.statistics.intervals import Interval
from cytolake.tracking import Baseline
from cytolake.tune.trials import run_calls

Progress = Callable[[str, int, int], None]
BASELINES = ("untrained", "pixel_statistics")
"""Kinds that every search needs: a score without a baseline cannot be judged."""
CELL_COUNT = "cell_count"
"""Kind of the baseline of cell counts alone, where QC has counted cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockChoice:
    """The trained block that scored best, and the baselines that it is compared with."""

    representation_id: str
    """The best over all units: what is promoted."""
    model_id: str
    block: int
    pooling: str
    benchmark: str
    label: str
    split: str
    metric: str
    """Name of `score`; of a probe, balanced accuracy of wells or of single crops, mean over the held-out units."""
    alignment: str = "none"
    """Alignment of profiles before they were scored."""
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
    """Unit that was held out whole and that the interval resamples: plate, batch, ..."""
    units: tuple[str, ...] = ()
    unit_scores: tuple[float, ...] = ()
    """Score on each unit."""
    baseline_unit_scores: tuple[tuple[float, ...], ...] = ()
    """The same of each baseline."""
    protocol_id: str = ""
    """Protocol of the rows of `scores` that the choice is made from."""
    n_candidates: int = 1
    """Trained blocks and poolings to choose from."""
    encoder_saw_units: bool = True
    """Whether the encoder was trained, without labels, on the units that probes hold out."""
    is_nested: bool = True
    """False where the score was computed on the data that chose the block, and so is biased upwards."""
    dropped_classes: tuple[str, ...] = ()
    """Classes that some split could not score, because its train or its test part had no wells of them."""

    @property
    def chance(self) -> float | None:
        """Score of guessing, where it is known."""
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
        """Benchmark, metric, label and split, in words."""
        of = {WELL_METRIC: "balanced accuracy of wells", CROP_METRIC: "balanced accuracy of crops"}
        name = of.get(self.metric, self.metric.replace("_", " "))
        text = f"{self.benchmark.replace('_', ' ')}, {name}, {self.label}"
        text += f", {held_out_text(self.split)}" if self.split else ""
        return text + (f", alignment {self.alignment}" if self.alignment != "none" else "")

    @property
    def gain_text(self) -> str:
        """The gain over the best baseline, and the conclusion that its interval allows."""
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
    """`[0.120, 0.310]`, or `[no interval]`."""
    return "[no interval]" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def held_out_text(split: str) -> str:
    """The held-out units of a split, in words."""
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
    check_units(data, config)  # an impossible label or split stops here, not in a trial
    key = probe_key(data, config)
    known = _known_scores(catalog, rows, key)
    todo = [row for row in rows if row["representation_id"] not in known]
    if progress is not None:
        progress("representations", len(rows) - len(todo), len(rows))
    if todo:
        scores = _score_rows(catalog, todo, config, key, (len(rows) - len(todo), len(rows)), progress)
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
            f"table{' (' + missing[0] + ')' if missing else ''}. Run `cytolake embed` first."
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
            f"no {' and no '.join(lacking)} representation among the {len(rows)} to probe: a score "
            "cannot be judged without its baselines. Embed the pack with the trained and the untrained checkpoint."
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


def _score_rows(
    catalog: Catalog,
    todo: Sequence[Mapping[str, Any]],
    config: ProbeConfig,
    key: str,
    done: tuple[int, int],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Rows of `scores` of all representations; one trial scores the blocks of one encoder and pooling.

    A trial for each representation would spend more time on starting processes than on fitting.
    """
    groups: dict[str, list[str]] = {}
    for row in todo:
        groups.setdefault(f"{row['kind']} {row['pooling']} {row['model_id'][:8]}", []).append(row["representation_id"])
    of_trial = list(groups.values())
    n_done, n_all = done

    def count(number: int) -> None:
        nonlocal n_done
        n_done += len(of_trial[number])
        if progress is not None:
            progress("representations", n_done, n_all)

    texts = run_calls(
        [(_probe_group, (str(catalog.root), ids, config, key)) for ids in of_trial],
        name=f"block_search_{key[:12]}",
        storage=catalog.root / "runs" / "tune",
        resources={"cpu": 1},
        concurrent=config.concurrent_trials,
        on_done=count,
    )
    rows = [row for text in texts for row in json.loads(text)]
    return [{**row, "scored_at": datetime.fromisoformat(row["scored_at"])} for row in rows]


def _probe_group(root: str, representation_ids: Sequence[str], config: ProbeConfig, key: str) -> str:
    """Score rows of some representations of one pack, as JSON."""
    catalog = cytolake.catalog.open(root)
    data = read_probe_data(catalog, representation_ids[0], config.label, include_controls=config.include_controls)
    rows = []
    for each in representation_ids:
        vectors = read_vectors(catalog, each, data.crop_ids)
        rows += probe_representation(vectors, each, data, config, key).rows
    return json.dumps([{**row, "scored_at": row["scored_at"].isoformat()} for row in rows])


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
    # The highest of the baselines on the same units: the luck in this choice makes the gain smaller.
    highest = max(kinds, key=lambda kind: chosen_elsewhere(candidates[kind]).value)
    over = gain(candidates["trained"], candidates[highest])
    scored_by_all = _classes_of_all(scores[chosen["representation_id"]])
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
        dropped_classes=tuple(name for name in data.classes if name not in scored_by_all),
    )


def _candidate(score: Mapping[str, Any]) -> Candidate:
    found = Candidate.of_details(json.loads(score["details"]))
    if found is None:  # scores of other versions have another key
        raise ValueError(f"score {score['score_id']} has no scores of single units. Run `cytolake probe` again.")
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
