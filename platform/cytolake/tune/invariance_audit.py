"""Audit a trained encoder: the effect of every augmentation at several strengths on its vectors and on probes.

Nothing is trained. Crops of held-out plates are changed by one knob at a time and embedded again. Two things are
measured: how far their vectors move, and the recall of each class of a probe that was fitted on unchanged crops of
other plates. An encoder that should ignore focus but not dose must move little and lose no recall of doses under
`defocus_radius_px`.

A distance 1 - cos has no scale of its own (in most encoders all crops lie in a narrow cone), so it is also given in
units of the mean distance between two crops of different wells: 1 is as far as an unrelated crop.

N crops, K classes, W wells, D features.

Source: the first step of the design of Bendidi et al. 2023, arXiv:2304.11718, on trained encoders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.linear_probe import FittedProbe, ProbeConfig, linear_probe, make_splits
from cytolake.benchmark.pinned_probe import order_by_id
from cytolake.benchmark.probe_data import ProbeData, label_crops
from cytolake.benchmark.split import SplitBy, classes_in_both
from cytolake.benchmark.units import group_names
from cytolake.catalog import Catalog
from cytolake.embed.crop_vectors import embed_rows
from cytolake.models import Encoder, load_encoder
from cytolake.models.augment import AugmentConfig, augment
from cytolake.models.augment.knobs import KNOBS, NOTHING, Knob
from cytolake.models.crops import CropBatch
from cytolake.packs.pack import Pack
from cytolake.statistics.balanced_accuracy import WellCounts, balanced_accuracy, resampled_scores
from cytolake.statistics.intervals import MIN_GROUPS, few_groups_interval, standard_error
from cytolake.train.knobs_without_effect import changes_input, crops_to_compare, why_without_effect

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float32]

OFF = ""
"""Name of the knob of crops that were not changed."""
_PAIRS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """Which knobs, how strong, and which labels a probe predicts."""

    knobs: tuple[str, ...] = tuple(KNOBS)
    """Names of `cytolake.models.augment.knobs.KNOBS`."""
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    """From above 0 to 1, increasing; each crop draws its own change up to the strength."""
    labels: tuple[tuple[str, SplitBy], ...] = (("perturbation", "plate"), ("plate", "well"))
    """Columns of `wells` to predict, and what is held out. Include nuisances such as the plate."""
    train_crops: int = 2000
    """Unchanged crops that probes are fitted on."""
    test_crops: int = 400
    """Crops of held-out plates or wells that are changed."""
    regularisation: float = 0.01
    """Inverse strength of the probes' penalty."""
    seed: int = 0
    """Of the split, the drawn crops and the changes."""
    bootstrap_draws: int = 500

    def __post_init__(self) -> None:
        unknown = sorted(set(self.knobs) - set(KNOBS))
        if unknown or not self.knobs:
            raise ValueError(f"audit.knobs has {', '.join(unknown) or 'none'}, expected some of {', '.join(KNOBS)}.")
        if not self.strengths or list(self.strengths) != sorted(set(self.strengths)) or self.strengths[0] <= 0:
            raise ValueError(f"audit.strengths is {self.strengths}, expected increasing numbers above 0, up to 1.")
        if self.strengths[-1] > 1:
            raise ValueError(f"audit.strengths is {self.strengths}, expected at most 1.")
        if not self.labels:
            raise ValueError(
                "audit.labels is empty, expected at least one (label, split), such as (perturbation, plate)."
            )
        if min(self.train_crops, self.test_crops) < 2:
            raise ValueError("audit.train_crops and audit.test_crops must each be 2 or more.")


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One encoder, knob, strength and label."""

    encoder: str
    knob: str
    """`""` for crops as they are."""
    family: str
    strength: float
    label: str
    shift: float
    """Mean 1 - cos of a crop's vector before and after."""
    relative_shift: float
    """The same in units of the mean distance between crops of different wells."""
    recall: float
    """Mean over classes of the share of changed crops predicted correctly."""
    drift: float
    """Recall less that of unchanged crops, mean over classes."""
    drift_low: float
    """Lower end of the 95 % interval: plates (or other held-out units) resampled, in the same way for both; wells where
    fewer than three were held out. NaN where there are too few of either."""
    drift_high: float
    p_value: float
    """Two-sided, of no drift: Student's t of drift over its standard error. 1 where no crop is predicted otherwise; NaN
    where resamples do not vary or there is no interval."""
    class_recall: dict[str, float]
    """Share of each class predicted correctly."""
    class_drift: dict[str, float]
    interval_over: str = ""
    """What was resampled, such as `4 plates`."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything measured."""

    rows: list[AuditRow]
    skipped: dict[str, str]
    """Knobs that do not fit an encoder or have no effect on it, and why."""
    n_train: dict[str, int]
    """Crops fitted on, of each label."""
    n_test: dict[str, int]
    """Crops changed, of each label."""

    def of(self, encoder: str, knob: str, label: str) -> list[AuditRow]:
        """Rows of one curve by strength, unchanged crops first."""
        rows = [r for r in self.rows if r.encoder == encoder and r.label == label and r.knob in (OFF, knob)]
        return sorted(rows, key=lambda row: row.strength)


@dataclass(frozen=True, slots=True)
class _Task:
    """One label: the crops to fit on and to change, and the units that its interval resamples."""

    data: ProbeData
    classes: NDArray[np.intp]
    train: NDArray[np.intp]
    """Crops of the data, fitted on."""
    test: NDArray[np.intp]
    """Crops of the data, changed."""
    group: NDArray[np.intp]
    """(W,) wells that are resampled together."""
    n_groups: int
    """Of the changed crops."""
    n_strata: int
    """Within which wells are resampled; 1 where groups are."""
    interval_over: str


def audit_encoders(
    catalog: Catalog,
    pack: Pack,
    encoders: Mapping[str, str | Path],
    block: int,
    pooling: str,
    config: AuditConfig | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Change crops by every knob, and measure how far vectors move and what probes still predict.

    Args:
        encoders: Checkpoint by name, such as `trained` and `untrained`.
        block: Transformer block, 0 = first, whose output is audited.
        pooling: `mean` or `cls`.
        config: Knobs, strengths, labels.
        progress: Called before and after each probe, and after each knob and strength.

    Raises:
        ValueError: A label or split that the screen does not allow, or a block that an encoder does not have.
    """
    config = config or AuditConfig()
    tasks = [_task(catalog, pack, label, split, config) for label, split in config.labels]
    loaded = {name: load_encoder(path) for name, path in encoders.items()}
    for name, encoder in loaded.items():
        if not 0 <= block < encoder.n_blocks:
            raise ValueError(f"encoder {name} has blocks 0 to {encoder.n_blocks - 1}, block {block} was requested.")
    total, done = len(loaded) * (1 + len(config.knobs) * len(config.strengths)), 0
    rows: list[AuditRow] = []
    skipped: dict[str, str] = {}
    for name, encoder in loaded.items():
        audited = _AuditedEncoder(encoder, block, pooling, pack, config.seed)
        audits = []
        for i, task in enumerate(tasks):
            if progress is not None:
                progress(f"probes of the {name} encoder", i, len(tasks))
            audits.append(_LabelAudit(audited, task, config))
        if progress is not None:
            progress(f"probes of the {name} encoder", len(tasks), len(tasks))
            progress("knobs", done, total)
        rows += [each.row(name, OFF, "", 0.0, each.unchanged) for each in audits]
        done += 1
        for knob, strength, changed in _changes(encoder, pack, config, skipped):
            for each in audits:
                vectors = audited.vectors(each.test_crop_ids, changed)
                rows.append(each.row(name, knob.field, knob.family, strength, vectors))
            done += 1
            if progress is not None:
                progress("knobs", done, total)
    if progress is not None:
        progress("knobs", total, total)
    return Audit(
        rows,
        skipped,
        {task.data.label: len(task.train) for task in tasks},
        {task.data.label: len(task.test) for task in tasks},
    )


def _changes(
    encoder: Encoder, pack: Pack, config: AuditConfig, skipped: dict[str, str]
) -> Iterator[tuple[Knob, float, AugmentConfig]]:
    base = NOTHING
    if encoder.config.is_fused:  # it needs all its stains: a dropped one is dark
        base = dataclasses.replace(base, channel_drop_mode="blank")
    crops = crops_to_compare(encoder.config, pack)
    strengths_of = {"flip_rotate": config.strengths[-1:]}  # all or nothing
    for name in config.knobs:
        knob = KNOBS[name]
        strengths = strengths_of.get(name, config.strengths)
        try:
            for strength in strengths:
                knob(strength, base).check_model(encoder.config)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        if not changes_input(encoder.config, base, knob(strengths[-1], base), crops):
            skipped[name] = why_without_effect(name, encoder.config)
            continue
        for strength in strengths:
            yield knob, strength, knob(strength, base)


def _task(catalog: Catalog, pack: Pack, label: str, split: SplitBy, config: AuditConfig) -> _Task:
    """Crops to fit on and to change, chosen by their ids alone, so that every encoder has the same."""
    data = label_crops(
        catalog,
        pack.index.select(["crop_id", "well_id"]),
        label,
        include_controls=False,
        what=f"pack {pack.pack_id}",
    )
    probe = ProbeConfig(label=label, split=split, seeds=(config.seed,))
    held = make_splits(data, probe)[0].is_test
    classes = classes_in_both(data.label_of_well, held)
    label_of_crop = data.label_of_well[data.well_of_crop]
    is_used, is_test = np.isin(label_of_crop, classes), held[data.well_of_crop]
    drawn = order_by_id(data.crop_ids, "audit", str(config.seed))
    train = _alike(drawn[(is_used & ~is_test)[drawn]], label_of_crop, config.train_crops)
    test = _alike(drawn[(is_used & is_test)[drawn]], label_of_crop, config.test_crops)
    wells = np.unique(data.well_of_crop[test])
    group = np.arange(len(data.well_ids))
    n_groups, n_strata, over = len(wells), len(np.unique(data.label_of_well[wells])), f"{len(wells)} wells"
    if split not in ("well", "leave_one_well_out"):
        held_out = np.unique(group_names(data, split), return_inverse=True)[1].astype(np.intp)
        n_held_out = len(np.unique(held_out[wells]))
        if n_held_out < MIN_GROUPS:
            over += f": of {split.replace('_', ' ')}s, {n_held_out} held out, too few to resample"
        else:
            group, n_groups, n_strata, over = held_out, n_held_out, 1, f"{n_held_out} {split.replace('_', ' ')}s"
    return _Task(data, classes, train, test, group, n_groups, n_strata, over)


def _alike(drawn: NDArray[np.intp], label: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Up to `most` of the drawn crops, equally many of each class as far as there are."""
    turn = np.zeros(len(drawn), dtype=int)
    for value in np.unique(label[drawn]):
        of_class = label[drawn] == value
        turn[of_class] = np.arange(of_class.sum())
    return np.asarray(np.sort(drawn[np.argsort(turn, kind="stable")[:most]]))


class _AuditedEncoder:
    """An encoder that embeds crops of a pack, changed or unchanged."""

    def __init__(self, encoder: Encoder, block: int, pooling: str, pack: Pack, seed: int) -> None:
        self.encoder, self.block, self.pooling, self.pack, self.seed = encoder, block, pooling, pack, seed

    def vectors(self, crop_ids: Sequence[str], changed: AugmentConfig | None = None) -> Floats:
        """(N, D); a crop's change depends on its row in the pack and the seed, not on the minibatch."""

        def change(batch: CropBatch, rows: NDArray[np.int64]) -> CropBatch:
            return batch if changed is None else augment(batch, changed, seed=self.seed, epochs=0, sample_index=rows)

        rows = self.pack.rows_of(crop_ids)
        return np.asarray(embed_rows(self.encoder, self.pack, rows, self.pooling, change)[self.block])


@dataclass(slots=True)
class _LabelAudit:
    """One encoder's probe of one label."""

    audited: _AuditedEncoder
    task: _Task
    config: AuditConfig
    unchanged: Floats = field(init=False)
    probe: FittedProbe = field(init=False)
    typical: float = field(init=False)
    """Mean 1 - cos of crops of different wells."""
    counts: WellCounts = field(init=False)

    def __post_init__(self) -> None:
        data, train, test = self.task.data, self.task.train, self.task.test
        self.unchanged = self.audited.vectors(self.test_crop_ids)
        vectors = self.audited.vectors([data.crop_ids[i] for i in train])
        labels = data.label_of_well[data.well_of_crop[train]]
        self.probe = linear_probe(vectors, labels, regularisation=self.config.regularisation)
        self.typical = _typical_distance(self.unchanged, data.well_of_crop[test], self.config.seed)
        self.counts = self._counts(self.unchanged)

    @property
    def test_crop_ids(self) -> list[str]:
        return [self.task.data.crop_ids[i] for i in self.task.test]

    def row(self, encoder: str, knob: str, family: str, strength: float, vectors: Floats) -> AuditRow:
        data = self.task.data
        counts = self._counts(vectors)
        draws = self.config.bootstrap_draws
        now, before = (balanced_accuracy(each, data.label_of_well) for each in (counts, self.counts))
        changed, unchanged = (  # the same resamples
            resampled_scores(each, data.label_of_well, self.task.group, draws) for each in (counts, self.counts)
        )
        changes, drift = changed - unchanged, now - before
        n_groups, n_strata = self.task.n_groups, self.task.n_strata
        low, high = few_groups_interval(drift, changes, n_groups, (-1.0, 1.0), n_strata=n_strata)
        shift = float(np.mean(1 - _cosines(self.unchanged, vectors)))
        recall, was = self._recall(counts), self._recall(self.counts)
        return AuditRow(
            encoder=encoder,
            knob=knob,
            family=family,
            strength=strength,
            label=data.label,
            shift=shift,
            relative_shift=shift / self.typical if self.typical > 0 else float("nan"),
            recall=now,
            drift=drift,
            drift_low=float(low),
            drift_high=float(high),
            p_value=float("nan") if np.isnan(low) and drift else _p_value(drift, changes, n_groups, n_strata),
            class_recall=recall,
            class_drift={name: recall[name] - was[name] for name in recall},
            interval_over=self.task.interval_over,
        )

    def _counts(self, vectors: Floats) -> WellCounts:
        data, test = self.task.data, self.task.test
        well = data.well_of_crop[test]
        predicted = self.probe.classes[self.probe.logits(vectors).argmax(axis=1)]
        n_wells = len(data.well_ids)
        total = np.bincount(well, minlength=n_wells).astype(np.float64)
        correct = np.bincount(well, weights=predicted == data.label_of_well[well], minlength=n_wells)
        return WellCounts(np.asarray(correct, np.float64), total)

    def _recall(self, counts: WellCounts) -> dict[str, float]:
        found = {}
        for code in self.task.classes.tolist():
            wells = self.task.data.label_of_well == code
            total = counts.total[wells].sum()
            if total:
                found[self.task.data.classes[code]] = float(counts.correct[wells].sum() / total)
        return found


def _p_value(drift: float, changes: NDArray[np.float64], n_groups: int, n_strata: int) -> float:
    from scipy.stats import t

    if drift == 0:
        return 1.0
    error = standard_error(changes[np.isfinite(changes)], n_groups, n_strata)
    return float(2 * t.sf(abs(drift) / error, n_groups - n_strata)) if error > 0 else float("nan")


def _cosines(one: Floats, other: Floats) -> NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(length, 1e-12))


def _typical_distance(vectors: Floats, well: NDArray[np.intp], seed: int) -> float:
    random = np.random.default_rng(seed)
    i, j = random.integers(0, len(vectors), (2, _PAIRS))
    differ = well[i] != well[j]
    return float(np.mean(1 - _cosines(vectors[i[differ]], vectors[j[differ]]))) if differ.any() else float("nan")
