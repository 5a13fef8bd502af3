"""From the chosen block to the model version that serving follows."""

from __future__ import annotations

from dataclasses import asdict

from cytolake.catalog import Catalog
from cytolake.models import load_encoder
from cytolake.tracking import CHAMPION, ChampionCard, ModelCard, TrackingConfig, promote
from cytolake.tune.block_search import BlockChoice


def promote_choice(
    catalog: Catalog, choice: BlockChoice, tracking: TrackingConfig, alias: str = CHAMPION
) -> ChampionCard:
    """Register the chosen representation with everything needed to compute and judge it, and move the alias to it.

    The vector is served as the encoder gives it, also where the probe aligned vectors first.

    Raises:
        ValueError: The representation is not in the catalog.
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
    )
    return promote(tracking.at(catalog.root), card, row["checkpoint"], alias)


_FROM_CHOICE = ("benchmark", "label", "split", "metric", "score", "ci_low", "ci_high")
