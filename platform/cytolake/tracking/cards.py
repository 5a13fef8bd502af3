"""Model cards: what a caller must know to compute and to judge a served vector."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A baseline that the promoted representation was compared with."""

    kind: str
    """`untrained`, `pixel_statistics` or `cell_count`."""
    representation_id: str
    block: int
    """Best block of that kind; -1 where there is none."""
    pooling: str
    score: float
    ci_low: float | None
    """95 % interval; None where too few plates were held out for one."""
    ci_high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What a caller must know to compute and to judge one served vector."""

    representation_id: str
    model_id: str
    architecture: str
    channels: tuple[str, ...]
    """Stains the encoder reads, in this order (`mae_vit`), or the stains it knows (`chada_vit`)."""
    crop_size: int
    """Edge of a crop, pixels."""
    block: int
    """Transformer block whose output is served, 0 = first."""
    pooling: str
    """`mean` over patch tokens, or `cls`."""
    dim: int
    alignment: str = "none"
    """Transformation of the vector after pooling; `none` means that the encoder's output is served unchanged."""
    pack_id: str
    curation_id: str
    table_versions: dict[str, int]
    """Delta version of every table at the time of the choice."""
    run_id: str
    """MLflow run that trained the encoder; empty where unknown."""
    benchmark: str
    """Benchmark that chose the block, such as `linear_probe`."""
    label: str
    """Column of `wells` that the benchmark predicted."""
    split: str
    """Unit that the benchmark held out: plate, batch or well."""
    metric: str
    score: float
    ci_low: float | None
    """95 % interval; None where too few plates were held out for one."""
    ci_high: float | None
    baselines: tuple[Baseline, ...] = ()
    gain: float | None = None
    """Score minus the score of the best baseline, each chosen on other plates than it was scored on; None on cards of
    earlier versions."""
    gain_low: float | None = None
    gain_high: float | None = None
    reason: str = ""
    """Why this representation was chosen; empty on cards of earlier versions."""
    forced: str = ""
    """Reason given for a promotion without a shown gain over the baselines; empty where a gain was shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion(ModelCard):
    """A registered model version: its card, and where its files are on this machine."""

    name: str
    """Registered model."""
    alias: str
    version: int
    """Version of the registered model."""
    folder: Path
    """Local folder of the version's files."""
    encoder_path: Path
    """Local safetensors file of the whole encoder. Serving loads blocks 0 to `block` of it."""

    @property
    def card(self) -> ModelCard:
        """The part that is stored with the model, without local paths."""
        return ModelCard(**{field.name: getattr(self, field.name) for field in fields(ModelCard)})


def read_card(path: str | Path) -> ModelCard:
    """Read a `card.json`.

    Raises:
        ValueError: A field is missing or unknown.
    """
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        baselines = tuple(Baseline(**baseline) for baseline in values.pop("baselines", ()))
        channels = tuple(values.pop("channels"))
        return ModelCard(**values, channels=channels, baselines=baselines)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a model card of this version of cytolake ({error}). Promote the representation again."
        ) from error
