"""Tasks of the transcriptomics benchmark and their settings.

    batch_mixing          T1  number of batches among the neighbours of a row
    linear_separability   T2  prediction of perturbations by a linear map, in unseen batches
    nearest_neighbours    T3  prediction of perturbations by the neighbours, in unseen batches
    known_relations       T4  related perturbations among the most similar or most opposite pairs
    perturbation_signal   T5  perturbations with similar rows, and with rows that differ from the controls
    reconstruction        T6  decoded features, for unseen perturbations in unseen batches

Source: Bendidi et al. 2024, "Benchmarking Transcriptomics Foundation Models for Perturbation Analysis: one PCA still
rules them all", arXiv 2410.13956. DIFFERENCES.md in this folder lists the differences from its code, with reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from cytolake.benchmark.transcriptomics.batch_mixing import PERPLEXITY
from cytolake.benchmark.transcriptomics.decoder import DecoderConfig
from cytolake.benchmark.transcriptomics.embeddings import EmbeddingConfig
from cytolake.benchmark.transcriptomics.perturbation_split import TRAIN_SHARE
from cytolake.benchmark.transcriptomics.separability import NEIGHBOURS, Distance

MixingRows = Literal["test1", "all"]
TASKS = (
    "batch_mixing",
    "linear_separability",
    "nearest_neighbours",
    "known_relations",
    "perturbation_signal",
    "reconstruction",
)
FITTED = frozenset({"linear_separability", "nearest_neighbours", "reconstruction"})
"""Tasks that are fitted on some batches and scored on others."""
WITHOUT_SPLIT = frozenset({"known_relations", "perturbation_signal"})
SETTINGS_OF = {
    "batch_mixing": ("perplexity", "mixing_rows", "max_mixing_rows", "train_share", "bootstrap_draws"),
    "linear_separability": ("regularisation", "train_share", "bootstrap_draws"),
    "nearest_neighbours": ("n_neighbours", "distance", "max_knn_rows", "train_share", "bootstrap_draws"),
    "known_relations": ("bootstrap_draws",),
    "perturbation_signal": ("signal_draws", "significant", "null_perturbations", "bootstrap_draws"),
    "reconstruction": ("decoder", "train_share", "bootstrap_draws"),
}
"""Fields of `TranscriptomicsConfig` that a task reads; scores that agree in these are comparable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscriptomicsConfig:
    """Settings of the tasks; the defaults are the published ones, with exceptions under each field."""

    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    train_share: float = TRAIN_SHARE
    """Share of the batches, and of the perturbations, in the train part."""
    perplexity: float = PERPLEXITY
    """Effective number of neighbours of batch_mixing."""
    mixing_rows: MixingRows = "test1"
    """Rows whose mixing is measured; `all` for screens with so few batches that test1 has one."""
    max_mixing_rows: int = 300_000
    """Most rows of batch_mixing; more are downsampled by batch."""
    max_knn_rows: int = 100_000
    """Most training rows of nearest_neighbours; more are downsampled by batch."""
    n_neighbours: int | None = NEIGHBOURS
    """Neighbours of nearest_neighbours; the square root of the number of training rows where None."""
    distance: Distance = "euclidean"
    """Distance of nearest_neighbours."""
    regularisation: float = 1.0
    """Inverse strength of the linear probe's L2 penalty. Published: AdamW, 250 epochs."""
    signal_draws: int = 200
    """Permutations of perturbation_signal. The published task has none: it compares with unexpressed genes."""
    significant: float = 0.05
    """A perturbation is significant with a p-value of this or less."""
    null_perturbations: tuple[str, ...] = ()
    """Perturbations without an effect; where given, perturbation_signal also compares with them."""
    bootstrap_draws: int = 1000
    """Resamples behind the intervals."""

    def __post_init__(self) -> None:
        if self.mixing_rows not in get_args(MixingRows):
            raise ValueError(f"config.mixing_rows is {self.mixing_rows!r}, expected one of {get_args(MixingRows)}.")
        if self.distance not in get_args(Distance):
            raise ValueError(f"config.distance is {self.distance!r}, expected one of {get_args(Distance)}.")
        if not 0 < self.significant < 1:
            raise ValueError(f"config.significant is {self.significant}, expected between 0 and 1.")
        if (self.signal_draws + 1) * self.significant < 1:
            raise ValueError(
                f"config.signal_draws is {self.signal_draws}: no p-value can be {self.significant}. Expected "
                f"{round(1 / self.significant) - 1} or more."
            )
        for name in ("max_mixing_rows", "max_knn_rows", "regularisation", "bootstrap_draws"):
            if getattr(self, name) <= 0:
                raise ValueError(f"config.{name} is {getattr(self, name)}, expected above 0.")


def few_rows() -> TranscriptomicsConfig:
    """Settings for some hundred rows, such as wells: the published ones are for tens of thousands of cells.

    Mixing is measured for all rows, there are fewer neighbours, and the decoder takes more steps: on 120 simulated
    wells it explains 0.5 of the variance of unseen perturbations, and with the published settings none.
    """
    return TranscriptomicsConfig(
        decoder=DecoderConfig(epochs=100, minibatch_size=32, learning_rate=3e-3),
        perplexity=15,
        mixing_rows="all",
        n_neighbours=None,
    )
