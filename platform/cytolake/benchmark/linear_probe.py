"""Linear probe: multinomial logistic regression from frozen vectors to labels, scored on held-out plates.

Source: the block search of Kraus et al. 2024 ("ViTally Consistent", arXiv 2411.02572): logistic regression, balanced
accuracy. Nested cross-validation over plates (or batches, rows, ...) is ours: `cross_validation`.

Shapes: N training crops, M test crops, D features, K classes, W wells, U units, F folds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.probe_data import ProbeData, check_label
from cytolake.benchmark.split import SPLITS, Split, SplitBy, classes_in_both, hold_out_groups, hold_out_wells
from cytolake.benchmark.units import group_names
from cytolake.catalog.ids import content_id

Numbers = NDArray[np.float64]
Align = Literal["none", "plate_controls"]
ChooseBy = Literal["wells", "crops"]
CROP_METRIC = "balanced_accuracy"
WELL_METRIC = "balanced_accuracy_wells"
PROBE_METRICS = (CROP_METRIC, WELL_METRIC)
VERSION = "units/1"
"""Version of the protocol; scores of other versions are not comparable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Label, split and settings of a linear probe."""

    label: str = "perturbation"
    """Column of `wells` to predict."""
    split: SplitBy = "plate"
    """Unit that is held out whole. All but `plate` and `batch` test wells of plates that the probe was fitted on, so
    their scores are higher: `well` is for screens with too few plates; `row`, `column` and `column_block` show the
    contribution of positions."""
    seeds: tuple[int, ...] = (0,)
    """One assignment of the units to folds for each; where every fold is one plate, all are the same."""
    held_out_share: float = 0.25
    """Share of the plates, batches or wells that are held out together; at least one."""
    only: tuple[str, ...] = ()
    """Plates or batches (as `plate`, or `screen/plate`) that are scored; probes are fitted on the others as well. Empty
    scores all."""
    choose_by: ChooseBy = "wells"
    """Score that chooses a block: of wells (mean over a well's crops), as users rank them, or of single crops."""
    include_controls: bool = False
    """Whether negative-control wells are a class."""
    align: Align = "none"
    """`plate_controls`: every representation is first standardised by the negative controls of each plate."""
    regularisation: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Inverse strengths C of the L2 penalty, chosen on held-out groups of the training part; one value is fixed."""
    max_iterations: int = 500
    """Limit of L-BFGS; fits that reach it are counted in `ProbeResult.n_not_converged`."""
    concurrent_trials: int = 2
    """Ray Tune trials at the same time, one CPU each."""

    def __post_init__(self) -> None:
        check_label(self.label)
        if self.split not in SPLITS:
            raise ValueError(f"probe.split is {self.split!r}, expected one of {', '.join(SPLITS)}.")
        if self.align not in get_args(Align):
            raise ValueError(f"probe.align is {self.align!r}, expected one of {', '.join(get_args(Align))}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"probe.seeds is {self.seeds}, expected different numbers from 0 up, such as (0, 1, 2).")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"probe.held_out_share is {self.held_out_share}, expected between 0 and 1.")
        if not self.regularisation or min(self.regularisation) <= 0:
            raise ValueError(f"probe.regularisation is {self.regularisation}, expected one or more numbers above 0.")
        if self.choose_by not in get_args(ChooseBy):
            raise ValueError(f"probe.choose_by is {self.choose_by!r}, expected {' or '.join(get_args(ChooseBy))}.")
        for name in ("max_iterations", "concurrent_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe.{name} is {getattr(self, name)}, expected 1 or more.")

    @property
    def metric(self) -> str:
        """The score that chooses."""
        return WELL_METRIC if self.choose_by == "wells" else CROP_METRIC

    @property
    def benchmark(self) -> str:
        """Name in the `scores` table, which includes the alignment."""
        return "linear_probe" if self.align == "none" else f"linear_probe_{self.align}"


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """Logistic regression on standardised features."""

    classes: NDArray[np.intp]
    """(K,)"""
    weight: NDArray[np.float32]
    """(K, D)"""
    bias: NDArray[np.float32]
    """(K,)"""
    mean: NDArray[np.float32]
    """(D,) of the training crops."""
    scale: NDArray[np.float32]
    """(D,) standard deviation of the training crops; infinite for a constant feature, which then has no effect."""
    converged: bool
    """False when the optimiser reached its limit of iterations."""

    def logits(self, vectors_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M, K) log odds up to a constant for each crop."""
        standardised = (vectors_MD - self.mean) / self.scale
        return np.asarray(standardised @ self.weight.T + self.bias)


def linear_probe(
    train_ND: NDArray[np.float32],
    labels_N: NDArray[np.intp],
    *,
    regularisation: float,
    max_iterations: int = 500,
) -> FittedProbe:
    """Fit multinomial logistic regression, features standardised by the training crops, classes weighted equally.

    Args:
        train_ND: (N, D) vectors.
        labels_N: (N,) at least two classes.
        regularisation: Inverse strength C of the L2 penalty.
        max_iterations: Limit of L-BFGS.

    Raises:
        ValueError: A vector that is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not np.isfinite(train_ND).all():
        crop = int(np.argwhere(~np.isfinite(train_ND))[0, 0])
        raise ValueError(
            f"training vector {crop} of {len(train_ND)} is not finite. Expected finite embeddings: check the encoder's "
            "loss curve, train again and embed again."
        )
    mean_D = train_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    sd_D = train_ND.std(axis=0, dtype=np.float64).astype(np.float32)
    # A feature that is constant but for rounding must not become noise of size 1.
    scale_D = np.where(sd_D > 1e-6 * np.abs(mean_D) + 1e-30, sd_D, np.float32(np.inf))
    model = LogisticRegression(C=regularisation, max_iter=max_iterations, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted below
        model.fit((train_ND - mean_D) / scale_D, labels_N)
    weight, bias = np.asarray(model.coef_, np.float32), np.asarray(model.intercept_, np.float32)
    if len(weight) == 1:  # two classes: scikit-learn has only the second's log odds
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    converged = bool(np.max(model.n_iter_) < max_iterations)
    return FittedProbe(np.asarray(model.classes_, np.intp), weight, bias, mean_D, scale_D, converged)


def make_splits(data: ProbeData, config: ProbeConfig) -> list[Split]:
    """One split for each seed, for studies and audits, which fit once on a train part.

    Raises:
        ValueError: Too few plates or batches, or a split without two classes in both parts.
    """
    splits = _splits(data, config, config.seeds)
    for split in splits:
        if len(classes_in_both(data.label_of_well, split.is_test)) < 2:
            raise ValueError(
                f"label {data.label}, split by {config.split}, seed {split.seed}: with {', '.join(split.held_out[:4])} "
                "held out, fewer than 2 classes have wells in both parts. Replicate the perturbations over plates, or "
                "set probe.split=well or another probe.label."
            )
    return splits


def probe_key(data: ProbeData, config: ProbeConfig) -> str:
    """Hash of the config, the crops and their labels: scores with one key are comparable."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("concurrent_trials", "choose_by")}
    wells = [
        f"{well}:{plate}:{batch}:{label}:{int(control)}"
        for well, plate, batch, label, control in zip(
            data.well_ids, data.plates, data.batches, data.label_of_well.tolist(), data.is_control.tolist(), strict=True
        )
    ]
    return content_id(VERSION, repr(sorted(settings.items())), *data.classes, "|", *wells, "|", *data.crop_ids)


def score_id(representation_id: str, metric: str, key: str, seed: int) -> str:
    """Id of one row of the `scores` table."""
    return content_id(representation_id, metric, key, str(seed))


def _splits(data: ProbeData, config: ProbeConfig, seeds: Sequence[int]) -> list[Split]:
    """Splits of the wells with a class, as masks over all wells."""
    wells = np.flatnonzero(data.label_of_well >= 0)
    if config.split in ("well", "leave_one_well_out"):
        labels = [data.classes[i] for i in data.label_of_well[wells]]
        share = config.held_out_share if config.split == "well" else 1e-9  # one well of each class
        if data.is_pooled:  # a well holds several classes and is held out whole
            parts = hold_out_groups([data.held_wells[i] for i in wells], share, seeds)
        else:
            parts = hold_out_wells([data.well_ids[i] for i in wells], labels, share, seeds)
    else:
        groups = group_names(data, config.split)
        parts = hold_out_groups([groups[i] for i in wells], config.held_out_share, seeds)
    whole = []
    for part in parts:
        is_test = np.zeros(len(data.well_ids), dtype=bool)
        is_test[wells[part.is_test]] = True
        whole.append(Split(part.seed, part.held_out, is_test))
    return whole
