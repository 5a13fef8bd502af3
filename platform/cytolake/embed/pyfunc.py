"""Lets `mlflow.pyfunc.load_model("models:/cytolake-encoder@champion")` run a promoted encoder, without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.models import collate, load_encoder
from cytolake.tracking import CARD_FILE, ENCODER_FILE, read_card


class ServedVectors:
    """Crops in, one vector each out: the block and pooling of the model's card."""

    def __init__(self, folder: Path) -> None:
        self.card = read_card(folder / CARD_FILE)
        self.encoder = load_encoder(folder / ENCODER_FILE).trim(self.card.block + 1)

    def predict(self, crops: NDArray[Any], params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """(B, D) vectors of (B, C, S, S) raw crops; fractions in [0, 1] where the encoder scales by the pixel type's
        range (`input_scaling` is `unit_range`), since MLflow's signature has no integers: others are refused.

        Channels are the card's, in its order. A channel-adaptive encoder takes any number of channels; where it is not
        the card's number their stains are not known here, and they count as unknown.
        """
        names = self.card.channels if crops.shape[1] == len(self.card.channels) else ("",) * crops.shape[1]
        batch = collate(list(crops), [self.encoder.config.channel_indices(names)] * len(crops))
        vectors = self.encoder.pooled_blocks(batch, (self.card.pooling,))[self.card.pooling][self.card.block]
        return np.asarray(vectors.float().numpy(), dtype=np.float32)


def _load_pyfunc(path: str) -> ServedVectors:
    """The name that MLflow calls."""
    return ServedVectors(Path(path))
