"""Encoders of a comparison, resolved from names: models of timm, our checkpoints, encoders of a catalog."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cytolake.catalog.ids import whole_id
from cytolake.catalog.tables import Catalog
from cytolake.qc.detector.encoders import UNTRAINED, FeatureConfig, FeatureError, TimmFeatures
from cytolake.qc.detector.initial_weights import initial_constants, is_untrained
from cytolake.tracking import resolve_promoted

STATISTICS = "statistics"
"""Pixel statistics, the baseline of every comparison."""
Training = Literal["none", "untrained", "weights of a file", "self-supervised"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedEncoder:
    """One encoder of a comparison."""

    name: str
    training: Training
    """`none`: pixel statistics. `untrained`: random weights, also from a file, the baseline without learning."""
    features: FeatureConfig
    """Features of a detector with this encoder only."""

    @property
    def label(self) -> str:
        """The name in tables and figures, which marks untrained encoders."""
        if self.training != "untrained":
            return self.name
        return f"{self.name[:-1]}, untrained)" if self.name.endswith(")") else f"{self.name} (untrained)"


def compared_encoders(catalog: Catalog, names: Sequence[str], features: FeatureConfig) -> list[ComparedEncoder]:
    """Pixel statistics, and the named encoders.

    Args:
        catalog: Its registry and table `representations` are searched; untrained counterparts are stored there.
        names: Each is one of
            - `resnet18`: a model of timm with random weights; nothing is downloaded;
            - `resnet18=FILE`: with the weights of a file; untrained where the file holds weights as initialised;
            - `FILE` or `NAME=FILE`: an encoder.safetensors of a pretraining run, and the same encoder untrained;
            - a representation_id or model_id of the catalog, or an alias of its registry, such as `champion`: that
              encoder at that block, and the same encoder untrained.
        features: Windows and reference sites; the encoder is replaced.

    Raises:
        FeatureError: An unknown name, no name, a repeated name, or a file of another model.
        CheckpointError: A checkpoint that cannot be used.
    """
    found = [
        ComparedEncoder(name=STATISTICS, training="none", features=_only(features, statistics=True)),
        *(encoder for text in names if text != STATISTICS for encoder in _named(catalog, text, features)),
    ]
    labels = [encoder.label for encoder in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if len(found) == 1 or twice:
        raise FeatureError(
            f"encoders to compare: found {', '.join(twice) + ' twice' if twice else 'pixel statistics alone'}. Name "
            "one or more, each once, such as resnet18=weights.safetensors or champion; NAME=FILE gives a name."
        )
    return found


def check_channels(catalog: Catalog, encoders: Sequence[ComparedEncoder], plate_ids: Collection[str]) -> None:
    """Check that every encoder accepts the stains of every plate, before anything is measured.

    Raises:
        FeatureError: An encoder does not accept the stains of a plate.
        CheckpointError: A checkpoint that cannot be used.
    """
    from cytolake.models import load_encoder

    plates = catalog.table("plates", columns=["plate_id", "plate", "channels"]).to_pylist()
    for encoder in encoders:
        if not encoder.features.checkpoint:
            continue
        config = load_encoder(encoder.features.checkpoint).config
        for plate in plates:
            if plate["plate_id"] not in plate_ids:
                continue
            try:
                config.channel_indices(plate["channels"])
            except ValueError as error:
                stains = (
                    f"exactly {', '.join(config.channels)}" if config.is_fused else f"{config.max_channels} or fewer"
                )
                raise FeatureError(
                    f"encoder {encoder.label}: plate {plate['plate']} has the channels "
                    f"{', '.join(plate['channels']) or 'none'}, expected {stains}. Leave the encoder out, or give one "
                    "that takes any channels (chada_vit)."
                ) from error


def _named(catalog: Catalog, text: str, windows: FeatureConfig) -> list[ComparedEncoder]:
    import timm

    name, _, file = text.partition("=")
    if timm.is_model(name):
        if not file:
            return [
                ComparedEncoder(
                    name=name, training="untrained", features=_only(windows, timm_model=name, timm_weights=UNTRAINED)
                )
            ]
        is_random = TimmFeatures(name, file).is_untrained  # also refuses a wrong file before anything is measured
        return [
            ComparedEncoder(
                name=f"{name} ({Path(file).stem})",
                training="untrained" if is_random else "weights of a file",
                features=_only(windows, timm_model=name, timm_weights=file),
            )
        ]
    if file or Path(text).is_file():
        return _ours(catalog, name if file else _name_of(Path(text)), Path(file or text), -1, windows)
    with_weights = [row for row in catalog.table("representations").to_pylist() if row["checkpoint"]]
    ids = [each for row in with_weights for each in (row["representation_id"], row["model_id"])]
    if identity := whole_id(text, ids, "representation or model"):
        rows = [row for row in with_weights if identity in (row["representation_id"], row["model_id"])]
        row = max(rows, key=lambda each: each["block"])
        ours = _ours(catalog, f"{row['architecture']} {identity[:8]}", Path(row["checkpoint"]), row["block"], windows)
        return [replace(ours[0], training="untrained")] if row["kind"] == "untrained" else ours
    try:
        card = resolve_promoted(catalog.root, text)
    except LookupError as error:
        near = ", ".join(timm.list_models(f"*{text.split('.')[0][:6]}*")[:5]) or "none"
        raise FeatureError(
            f"encoder {text!r}: found no model of timm (near to it: {near}), no file, no representation or model of "
            f"{catalog.place}, and no alias of its registry ({error}). Expected one of these, or NAME=FILE."
        ) from error
    return _ours(catalog, text, card.encoder_path, card.block, windows)


def _only(features: FeatureConfig, **looked_at: Any) -> FeatureConfig:
    """The same windows and reference sites with these features only."""
    nothing: dict[str, Any] = {"statistics": False, "checkpoint": "", "block": -1, "timm_model": "", "timm_weights": ""}
    return replace(features, **(nothing | looked_at))


def _name_of(path: Path) -> str:
    return path.parent.name if path.stem == "encoder" and path.parent.name else path.stem


def _ours(catalog: Catalog, name: str, path: Path, block: int, windows: FeatureConfig) -> list[ComparedEncoder]:
    from cytolake.models import build_encoder, load_encoder, save_encoder

    encoder = load_encoder(path)
    counterpart = build_encoder(encoder.config, seed=0)
    if is_untrained(encoder, initial_constants(counterpart)):
        return [
            ComparedEncoder(name=name, training="untrained", features=_only(windows, checkpoint=str(path), block=block))
        ]
    place = catalog.root / "qc" / "encoders" / f"{name}-untrained.safetensors"
    save_encoder(counterpart, place)
    return [
        ComparedEncoder(
            name=name, training="self-supervised", features=_only(windows, checkpoint=str(path), block=block)
        ),
        ComparedEncoder(name=name, training="untrained", features=_only(windows, checkpoint=str(place), block=block)),
    ]
