"""Lets `mlflow.pyfunc.load_model("models:/cytolake-encoder@champion")` run a promoted encoder, without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.embed.extract import embed_crops
from cytolake.models import POOLINGS, load_encoder
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
        vectors = embed_crops(self.encoder, list(crops), [names] * len(crops))
        place = POOLINGS.index(self.card.pooling) * self.encoder.n_blocks + self.card.block
        return np.ascontiguousarray(vectors[:, place])


def _load_pyfunc(path: str) -> ServedVectors:
    """The name that MLflow calls."""
    return ServedVectors(Path(path))
