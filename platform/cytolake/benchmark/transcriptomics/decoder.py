"""Decoder of features from an embedding: a small network and its training.

Shapes: N rows, G features, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cytolake.benchmark.transcriptomics.screen import Codes, Screen

Vectors = NDArray[np.float32]
Predict = Callable[[Codes, slice], Vectors]
"""Rows and a slice of the features -> (n, g) predictions."""
START_FACTOR = 0.03  # warm-up starts at this share of the learning rate


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Training of the decoder; the defaults are the published settings, with exceptions under each field."""

    epochs: int = 30
    minibatch_size: int = 512
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW; linear warm-up, then a cosine to 0, changed at each step."""
    weight_decay: float = 1e-6
    warm_up_epochs: int = 10
    standardise: bool = True
    """Whether dimensions are standardised by the training rows, so that an embedding's scale has no effect. Not
    published."""
    device: str = "cpu"
    """Device of torch."""
    block_bytes: int = 256 * 2**20
    """Most memory for truth and predictions of a block of features for all test rows, for rank correlations."""

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatch_size", "learning_rate", "block_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"decoder.{name} is {getattr(self, name)}, expected above 0.")
        if not 0 <= self.warm_up_epochs < self.epochs:
            raise ValueError(f"decoder.warm_up_epochs is {self.warm_up_epochs}, expected 0 to {self.epochs - 1}.")


def train_decoder(screen: Screen, vectors: Vectors, rows: Codes, config: DecoderConfig, seed: int) -> Predict:
    """Fit the decoder on some rows. Every epoch reads every row; the last minibatch may be smaller.

    Three hidden layers with widths between D and G, linearly interpolated. The output's bias starts at the mean of the
    training rows, so an embedding without information predicts it from the first step.

    Returns:
        A function that predicts features of any rows.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random state does not change
        torch.manual_seed(seed)
        n_features = len(screen.feature_names)
        decoder = make_decoder(vectors.shape[1], n_features)
    last = decoder[-1]
    assert isinstance(last, nn.Linear)
    mean_G = np.asarray(screen.features[rows].mean(axis=0), np.float32).ravel()
    with torch.no_grad():
        last.bias.copy_(torch.from_numpy(mean_G))
    decoder.to(config.device).train()
    mean_D, scale_D = np.zeros(vectors.shape[1], np.float32), np.ones(vectors.shape[1], np.float32)
    if config.standardise:
        mean_D, sd_D = vectors[rows].mean(axis=0, dtype=np.float64), vectors[rows].std(axis=0, dtype=np.float64)
        scale_D = np.where(sd_D > 1e-6 * np.abs(mean_D) + 1e-30, sd_D, np.inf)
    inputs = torch.from_numpy(((vectors - mean_D) / scale_D).astype(np.float32))
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps_each = math.ceil(len(rows) / config.minibatch_size)
    warm_up, steps = config.warm_up_epochs * steps_each, config.epochs * steps_each
    rng = np.random.default_rng((seed, 5))
    step = 0
    for _ in range(config.epochs):
        for minibatch in minibatches(rng.permutation(rows), config.minibatch_size):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, warm_up, steps)
            truth = torch.from_numpy(screen.dense_rows(minibatch)).to(config.device)
            loss = nn.functional.mse_loss(decoder(inputs[minibatch].to(config.device)), truth)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
    decoder.eval()

    def predict(some: Codes, features: slice) -> Vectors:
        with torch.no_grad():
            hidden = decoder[:-1](inputs[some].to(config.device))
            out: Tensor = nn.functional.linear(hidden, last.weight[features], last.bias[features])
        return out.cpu().numpy()

    return predict


def make_decoder(n_dimensions: int, n_features: int) -> nn.Sequential:
    """D -> G through three hidden layers of D + (G - D) i / 4, ReLU between them."""
    widths = [round(n_dimensions + (n_features - n_dimensions) * i / 4) for i in range(5)]
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def learning_rate_factor(step: int, warm_up: int, steps: int) -> float:
    """Linear from 0.03 to 1 over the warm-up, then half a cosine that reaches 0 at `steps`."""
    if step < warm_up:
        return START_FACTOR + (1 - START_FACTOR) * step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def minibatches(rows: Codes, size: int) -> Iterator[Codes]:
    """The rows in blocks of `size`; the last may be smaller."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
