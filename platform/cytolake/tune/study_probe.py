"""The probe of studies and sweeps: one block of every encoder on the same crops, labels and splits.

A search is evaluated on other wells than the confirmation of its result: the score that chose the best of many settings
is biased upwards.

W wells, N crops, K classes, D features. Source of the bias: Cawley and Talbot 2010, "On over-fitting in model
selection", JMLR 11:2079.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.linear_probe import ProbeConfig, linear_probe, make_splits
from cytolake.benchmark.pinned_probe import PinnedCrops, pin_crops
from cytolake.benchmark.probe_data import ProbeData, label_crops
from cytolake.benchmark.split import classes_in_both
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.packs.pack import Pack
from cytolake.tune.clusterings import cluster_agreement, terciles
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.trade_offs import confusion_matrix

DENSITY = "foreground"
"""Tercile of the share of a crop that is foreground."""


@dataclass(frozen=True, slots=True)
class StudyProbe:
    """What every encoder of a study or sweep is evaluated on."""

    crops: PinnedCrops
    """Wells that are not evaluated have no label."""
    tests: list[NDArray[np.bool_]]
    """(W,) wells held out, of each split."""
    labels: dict[str, NDArray[np.intp]]
    """(N,) codes that clusters are compared with."""
    classes: tuple[str, ...]
    """Names of the classes that every split has in both parts."""
    config: StudyConfig

    @property
    def data(self) -> ProbeData:
        """Wells and labels of the crops."""
        return self.crops.data

    @property
    def key(self) -> str:
        """Changes with everything that an evaluation depends on: results under another key do not count."""
        names = ("label", "split", "split_seeds", "nuisances", "block", "crops", "regularisation")
        settings = {name: getattr(self.config, name) for name in names}
        labels = {name: codes.tolist() for name, codes in self.labels.items()}  # a plate map may be corrected
        return content_id(json.dumps([settings, labels]), *self.classes, *self.data.crop_ids)[:16]

    def evaluate(self, encoder_path: Path) -> dict[str, Any]:
        """`label` and `predicted` class of every crop in a test part, their `confusion` (K, K) over all splits, and
        `agreement` of clusters (`ami`, `nmi`, `ari`) with each labelling."""
        vectors = self.vectors(encoder_path)
        label, predicted = self.predict(vectors)
        agreement = cluster_agreement(vectors, self.labels, restarts=20, seeds=(0,))
        return {
            "label": label.tolist(),
            "predicted": predicted.tolist(),
            "confusion": confusion_matrix(label, predicted, len(self.classes)).tolist(),
            "agreement": {name: asdict(each) for name, each in agreement.items()},
        }

    def vectors(self, encoder_path: Path) -> NDArray[np.float32]:
        """(N, D) of the block that is evaluated."""
        return np.asarray(self.crops.vectors(encoder_path)[self.config.block])

    def predict(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """True and predicted class (positions in `classes`) of every crop in a test part, split after split."""
        code = {self.data.classes.index(name): k for k, name in enumerate(self.classes)}
        label = np.array([code.get(int(c), -1) for c in self.data.label_of_well[self.data.well_of_crop]], dtype=np.intp)
        parts = []
        for is_test_W in self.tests:
            is_test = is_test_W[self.data.well_of_crop]
            train, test = np.flatnonzero((label >= 0) & ~is_test), np.flatnonzero((label >= 0) & is_test)
            probe = linear_probe(vectors[train], label[train], regularisation=self.config.regularisation)
            parts.append((label[test], probe.classes[probe.logits(vectors[test]).argmax(axis=1)]))
        return np.concatenate([true for true, _ in parts]), np.concatenate([predicted for _, predicted in parts])


def pin_study_probe(catalog: Catalog, pack: Pack, config: StudyConfig) -> StudyProbe:
    """Pin crops, labels and splits: the same for every trial of every study with this pack.

    Raises:
        ValueError: A label or a split that these crops do not allow.
    """
    crops = pin_crops(catalog, pack, config.label, n_crops=config.crops, salt="study")
    data, what = crops.data, f"pack {pack.pack_id}"
    tests = _held_out_wells(data, config)
    classes = _shared_classes(data, tests, config.label, what)
    labels = {config.label: data.label_of_well[data.well_of_crop]}
    ids = pack.index.select(["crop_id", "well_id"]).take(crops.rows)
    for name in config.nuisances:
        try:
            other = label_crops(catalog, ids, name, include_controls=True, what=what)
        except ValueError:
            continue  # one plate or batch: nothing to compare with
        labels[name] = other.label_of_well[other.well_of_crop]
    labels[DENSITY] = terciles(_foreground(catalog, data.crop_ids))
    return StudyProbe(crops=crops, tests=tests, labels=labels, classes=classes, config=config)


def nested_probes(probe: StudyProbe) -> tuple[StudyProbe, StudyProbe] | None:
    """Hold out the wells of the first split from the search, and evaluate the result of the search on them.

    The search splits the other wells with the same seeds; the confirmation uses the first split as it was.

    Returns:
        Probe of the search and probe of the confirmation; None where the other wells cannot be split again, such as in
        a screen of two plates that holds out plates.
    """
    data, first = probe.data, probe.tests[0]
    rest = dataclasses.replace(data, label_of_well=np.where(first, -1, data.label_of_well))
    try:
        tests = _held_out_wells(rest, probe.config)
        classes = _shared_classes(rest, tests, probe.config.label, f"wells of {len(tests)} splits")
    except ValueError:
        return None
    search = dataclasses.replace(probe, crops=dataclasses.replace(probe.crops, data=rest), tests=tests, classes=classes)
    confirmed = _shared_classes(data, [first], probe.config.label, "wells of the first split")
    return search, dataclasses.replace(probe, tests=[first], classes=confirmed)


def _held_out_wells(data: ProbeData, config: StudyConfig) -> list[NDArray[np.bool_]]:
    """(W,) wells of the test part, of each split; wells without a label are in none.

    Raises:
        ValueError: A split that these wells do not allow.
    """
    probe = ProbeConfig(label=config.label, split=config.split, seeds=config.split_seeds)
    return [split.is_test for split in make_splits(data, probe)]


def _shared_classes(data: ProbeData, tests: Sequence[NDArray[np.bool_]], label: str, what: str) -> tuple[str, ...]:
    """Names of the classes that every split has in both parts.

    Raises:
        ValueError: Fewer than two.
    """
    shared = set(range(len(data.classes)))
    for is_test in tests:
        shared &= set(classes_in_both(data.label_of_well, is_test).tolist())
    if len(shared) < 2:
        raise ValueError(
            f"{what}: {len(shared)} classes of {label} are in both parts of every split, expected two or more. "
            "Raise study.crops, or take another study.label or study.split."
        )
    return tuple(name for k, name in enumerate(data.classes) if k in shared)


def _foreground(catalog: Catalog, crop_ids: Sequence[str]) -> NDArray[np.float64]:
    table = catalog.table("crops", columns=["crop_id", "foreground_share"])
    share = dict(zip(table["crop_id"].to_pylist(), table["foreground_share"].to_pylist(), strict=True))
    return np.array([np.nan if share.get(c) is None else share[c] for c in crop_ids], dtype=float)
