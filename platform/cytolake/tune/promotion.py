"""Promote a chosen block: register it as the model version that serving follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.merit import ERRORS, WITHOUT_MERIT, is_guard_rail
from cytolake.catalog import Catalog
from cytolake.catalog.representations import ALIGNED, find_representation, stored_representation
from cytolake.models import POOLINGS, load_encoder
from cytolake.tracking import CHAMPION, Baseline, ModelCard, ModelVersion, TrackingConfig, promote, record_promotion
from cytolake.tune.block_search import BASELINES, CELL_COUNT, BlockChoice, interval_text


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteBy:
    """A ranking of the leaderboard that chooses the block, instead of the probe."""

    benchmark: str = ""
    """Such as `relation_recall` or `activity_map`; empty means the recipe's probe."""
    metric: str = ""
    """Such as `recall_05_95` or `mean_average_precision`."""
    label: str = ""
    """Such as `perturbation`, or the source of relations."""
    alignment: str = "none"
    """Of the profiles that were scored."""

    def __post_init__(self) -> None:
        if is_guard_rail(self.benchmark, self.label):
            raise ValueError(
                f"promote_by.benchmark is {self.benchmark} of {self.label}, a guard rail: an empty representation "
                "passes it best. Take a benchmark of biology."
            )
        if self.benchmark in WITHOUT_MERIT:
            raise ValueError(
                f"promote_by.benchmark is {self.benchmark}: noise mixes batches as well as biology does, so nothing is "
                "chosen by it. Take a benchmark of biology."
            )
        if self.metric in ERRORS:
            raise ValueError(
                f"promote_by.metric is {self.metric}, an error: less is better. Take a metric of which more is better, "
                "such as r2."
            )
        if bool(self.benchmark) != bool(self.metric and self.label):
            raise ValueError(
                f"promote_by has benchmark {self.benchmark!r}, metric {self.metric!r} and label {self.label!r}, "
                "expected all three or none. `cytolake leaderboard` shows which there are."
            )


class NoGainError(ValueError):
    """The choice is not shown to be better than its baselines; the text says what to do."""


def choose_by(catalog: Catalog, representation_ids: Sequence[str], by: PromoteBy) -> BlockChoice:
    """The trained representation that leads a ranking, and the best of its baselines there.

    The ranking's scores are of the same wells that choose, so the score of the best of several blocks is biased
    upwards; the choice says so (`is_nested`), and its gain has the widest interval that the two scores allow.

    Args:
        representation_ids: To choose from: of one pack, with both baselines.

    Raises:
        ValueError: No scores of the ranking for a trained encoder or a baseline.
    """
    wanted = LeaderboardFilter(
        benchmark=by.benchmark, label=by.label, metric=by.metric, alignment=by.alignment, all_blocks=True
    )
    ids = set(representation_ids)
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for row in leaderboard(catalog, wanted).to_pylist():
        if row["representation_id"] in ids:
            by_protocol.setdefault(row["protocol"], []).append(row)
    of_kind: dict[str, list[dict[str, Any]]] = {}
    missing = ["trained", *BASELINES]
    for rows in by_protocol.values():  # the newest first
        of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("trained", *BASELINES, CELL_COUNT)}
        missing = [kind for kind in ("trained", *BASELINES) if not of_kind[kind]]
        if not missing:
            break
    if missing:
        raise ValueError(
            f"no score of {by.benchmark}, {by.metric} of {by.label} with alignment {by.alignment} for: "
            f"{', '.join(missing)}. Run `cytolake benchmark` with the same recipe first; `cytolake leaderboard` shows "
            "which rankings there are."
        )
    ours = of_kind["trained"][0]
    baselines = tuple(
        Baseline(
            kind=kind,
            representation_id=row["representation_id"],
            block=row["block"],
            pooling=row["pooling"],
            score=row["value"],
            ci_low=row["ci_low"],
            ci_high=row["ci_high"],
        )
        for kind in (*BASELINES, CELL_COUNT)
        for row in of_kind[kind][:1]
    )
    better = max(baselines, key=lambda baseline: baseline.score)
    # With too few plates the interval is over perturbations or genes, and does not hold for other plates.
    is_over_plates = "no_plate_interval" not in json.loads(ours["details"] or "{}")
    has_interval = is_over_plates and None not in (ours["ci_low"], ours["ci_high"], better.ci_low, better.ci_high)
    return BlockChoice(
        representation_id=ours["representation_id"],
        model_id=ours["model_id"],
        block=ours["block"],
        pooling=ours["pooling"],
        benchmark=by.benchmark,
        label=by.label,
        split=ours["split"],
        metric=by.metric,
        alignment=by.alignment,
        n_classes=ours["n_classes"],
        score=ours["value"],
        ci_low=ours["ci_low"],
        ci_high=ours["ci_high"],
        baselines=baselines,
        gain=ours["value"] - better.score,
        gain_low=ours["ci_low"] - better.ci_high if has_interval else None,
        gain_high=ours["ci_high"] - better.ci_low if has_interval else None,
        n_candidates=len(of_kind["trained"]),
        is_nested=len(of_kind["trained"]) == 1,
        protocol_id=ours["protocol"],
    )


def check_gain(choice: BlockChoice, forced: str) -> None:
    """Refuse a choice that is not shown to be better than its best baseline, unless a reason is given.

    Raises:
        NoGainError: The interval of the gain covers 0 or there is none, and `forced` is empty.
    """
    if choice.has_gain or forced.strip():
        return
    if choice.gain_low is None:
        why = (
            f"{len(choice.units) or 'too few'} {choice.unit or 'unit'}s were held out, too few for an interval. Hold "
            "out more (ingest more plates, or set probe.split=well)"
        )
    else:
        why = f"the 95 % interval covers 0. Train longer or otherwise, or take {choice.best_baseline.kind} itself"
    raise NoGainError(
        f"representation {choice.representation_id} (block {choice.block}, {choice.pooling}) is not promoted: its gain "
        f"by {choice.protocol} is {choice.gain:+.3f} {interval_text(choice.gain_low, choice.gain_high)} compared with "
        f"{choice.best_baseline.kind.replace('_', ' ')}, and {why}. To promote it all the same, give a reason, which "
        'is stored with the version: --force "REASON", or --set promote_without_gain="REASON".'
    )


def promote_choice(
    catalog: Catalog, choice: BlockChoice, tracking: TrackingConfig, alias: str = CHAMPION, *, forced: str = ""
) -> ModelVersion:
    """Register the chosen representation with everything needed to compute and judge it, and move the alias to it.
    Serving returns the encoder's own vectors, also where the probe aligned them first.

    Args:
        tracking: Which registry.
        forced: Why to promote it where no gain over its baselines is shown; kept with the version.

    Raises:
        NoGainError: No gain is shown, and no reason given.
        ValueError: The representation is not in the catalog, was aligned, or has a pooling that is not served.
        CheckpointError: Its checkpoint cannot be read.
    """
    row = find_representation(catalog, choice.representation_id)
    if row["kind"] == ALIGNED:
        raise ValueError(
            f"representation {choice.representation_id} was aligned ({row['alignment_variant']}), and serving gives "
            f"vectors as the encoder gives them. Promote the representation that it was made from, {row['parent_id']}."
        )
    if row["pooling"] not in POOLINGS:
        raise ValueError(
            f"representation {choice.representation_id} is pooled by {row['pooling']}; serving gives "
            f"{' and '.join(POOLINGS)}. Embed without embed.channel_mean, or promote by a ranking that these lead."
        )
    check_gain(choice, forced)
    encoder = load_encoder(row["checkpoint"])
    forced = "" if choice.has_gain else forced.strip()
    card = ModelCard(
        representation_id=row["representation_id"],
        model_id=row["model_id"],
        architecture=row["architecture"],
        channels=encoder.config.channels,
        crop_size=encoder.config.crop_size,
        block=row["block"],
        pooling=row["pooling"],
        dim=row["dim"],
        pack_id=row["pack_id"],
        curation_id=row["curation_id"],
        table_versions=catalog.versions(),
        run_id=row["run_id"],
        **{name: value for name, value in asdict(choice).items() if name in _FROM_CHOICE},
        baselines=choice.baselines,
        reason=choice.reason + (f". Promoted without a gain because: {forced}" if forced else ""),
        forced=forced,
    )
    version = promote(tracking.at(catalog.root), card, row["checkpoint"], alias)
    record_promotion(catalog.root, tracking, alias)
    return version


def untrained_twin(catalog: Catalog, card: ModelCard) -> dict[str, Path]:
    """The checkpoint of the encoder before training as `{"untrained": path}`; empty where the file was deleted."""
    for baseline in card.baselines:
        if baseline.kind == "untrained":
            row = stored_representation(catalog, baseline.representation_id)
            if row and row["checkpoint"] and Path(row["checkpoint"]).is_file():
                return {"untrained": Path(row["checkpoint"])}
    return {}


_FROM_CHOICE = (
    "benchmark", "label", "split", "metric", "score", "ci_low", "ci_high", "gain", "gain_low", "gain_high",
)  # fmt: skip
