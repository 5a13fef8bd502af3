"""From the chosen block to the model version that serving follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.profiles.tasks import ERRORS, WITHOUT_MERIT, is_guard_rail
from cytolake.catalog import Catalog
from cytolake.embed.alignment.kept import ALIGNED
from cytolake.models import POOLINGS, load_encoder
from cytolake.tracking import CHAMPION, ChampionCard, ModelCard, TrackingConfig, promote
from cytolake.tune.block_search import BASELINES, BlockChoice, baseline_of


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
                f"promote_by.benchmark is {self.benchmark} of {self.label}, a guard rail: a representation that holds "
                "nothing passes it best. Take a benchmark of biology."
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


def choose_by(catalog: Catalog, representation_ids: Sequence[str], by: PromoteBy) -> BlockChoice:
    """The trained representation that leads a ranking, and the best of its baselines there.

    Args:
        catalog: With scores of the ranking.
        representation_ids: To choose from: of one pack, with both baselines.
        by: The ranking.

    Raises:
        ValueError: No scores of the ranking for a trained encoder or a baseline.
    """
    wanted = LeaderboardFilter(
        benchmark=by.benchmark, label=by.label, metric=by.metric, alignment=by.alignment, all_blocks=True
    )
    ids = set(representation_ids)
    rows = [row for row in leaderboard(catalog, wanted).to_pylist() if row["representation_id"] in ids]
    best = {kind: next((row for row in rows if row["kind"] == kind), None) for kind in ("trained", *BASELINES)}
    ours, untrained, pixels = (best[kind] for kind in ("trained", *BASELINES))
    if ours is None or untrained is None or pixels is None:
        missing = ", ".join(kind for kind, row in best.items() if row is None)
        raise ValueError(
            f"no score of {by.benchmark}, {by.metric} of {by.label} with alignment {by.alignment} for: {missing}. "
            "Run jobs/benchmark.py with the same recipe first; `cytolake leaderboard` shows which rankings there are."
        )
    baselines = {"untrained": baseline_of(untrained, untrained), "pixel_statistics": baseline_of(pixels, pixels)}
    better = max(baselines.values(), key=lambda baseline: baseline.score)
    low, high = _ends(ours["ci_low"], ours["ci_high"])
    their_low, their_high = _ends(better.ci_low, better.ci_high)
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
        ci_low=low,
        ci_high=high,
        **baselines,
        margin=ours["value"] - better.score,
        # Without resamples shared by both: wider than it need be.
        margin_low=low - their_high,
        margin_high=high - their_low,
        dropped_classes=(),
        n_not_converged=0,
    )


def _ends(low: float | None, high: float | None) -> tuple[float, float]:
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def promote_choice(
    catalog: Catalog, choice: BlockChoice, tracking: TrackingConfig, alias: str = CHAMPION
) -> ChampionCard:
    """Register the chosen representation with everything needed to compute and judge it, and move the alias to it.

    The vector is served as the encoder gives it, also where the probe aligned vectors first.

    Raises:
        ValueError: The representation is not in the catalog, was aligned, or has a pooling that is not served.
        CheckpointError: Its checkpoint cannot be read.
    """
    condition = f"representation_id = '{choice.representation_id}'"
    rows = catalog.table("representations", where=condition).to_pylist()
    if not rows:
        raise ValueError(
            f"representation {choice.representation_id} is not in the representations table of {catalog.root}. "
            "Run jobs/embed.py and jobs/probe.py on this catalog first."
        )
    row = rows[0]
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
    encoder = load_encoder(row["checkpoint"])
    baselines = (choice.untrained, choice.pixel_statistics)
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
        baselines=baselines,
        reason=choice.reason,
    )
    return promote(tracking.at(catalog.root), card, row["checkpoint"], alias)


def untrained_twin(catalog: Catalog, card: ModelCard) -> dict[str, Path]:
    """The checkpoint of the encoder before training as `{"untrained": path}`; empty where it is not there any more."""
    for baseline in card.baselines:
        if baseline.kind == "untrained":
            where = f"representation_id = '{baseline.representation_id}'"
            for row in catalog.table("representations", columns=["checkpoint"], where=where).to_pylist():
                if row["checkpoint"] and Path(row["checkpoint"]).is_file():
                    return {"untrained": Path(row["checkpoint"])}
    return {}


_FROM_CHOICE = ("benchmark", "label", "split", "metric", "score", "ci_low", "ci_high")
