"""The same crops, labels and splits for every encoder of a study or a search.

A search takes other wells than the confirmation of what it found: the score that chose the best of many is too high.

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
from cytolake.benchmark.probe_data import ProbeData, label_crops
from cytolake.benchmark.split import classes_in_both
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.embed.crop_vectors import embed_rows
from cytolake.models import load_encoder
from cytolake.packs.pack import Pack
from cytolake.tune.clusterings import cluster_agreement, terciles
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.trade_offs import confusion_matrix

DENSITY = "foreground"
"""Tercile of the share of a crop that is foreground."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What every encoder is evaluated on: needs the pack and no catalog, so any process can evaluate."""

    pack_path: Path
    rows: NDArray[np.int64]
    """Of the pack, in the order of `data.crop_ids`."""
    data: ProbeData
    tests: list[NDArray[np.bool_]]
    """(W,) wells held out, of each split."""
    labels: dict[str, NDArray[np.intp]]
    """(N,) codes that clusters are compared with."""
    classes: tuple[str, ...]
    """Names of the classes that every split has in both parts."""
    config: StudyConfig

    @property
    def key(self) -> str:
        """Changes with anything asked: answers of another key do not count."""
        names = ("label", "split", "split_seeds", "nuisances", "block", "crops", "regularisation")
        asked = {name: getattr(self.config, name) for name in names}
        labels = {name: codes.tolist() for name, codes in self.labels.items()}  # a plate map may be corrected
        return content_id(json.dumps([asked, labels]), *self.classes, *self.data.crop_ids)[:16]

    def __call__(self, encoder_path: Path) -> dict[str, Any]:
        """`label` and `told` class of every crop in a test part, their `confusion` (K, K) over all splits, and `ami`,
        `nmi`, `ari` for each labelling."""
        vectors = self.vectors(encoder_path)
        label, told = self.told(vectors)
        agreement = cluster_agreement(vectors, self.labels, restarts=20, seeds=(0,))
        return {
            "label": label.tolist(),
            "told": told.tolist(),
            "confusion": confusion_matrix(label, told, len(self.classes)).tolist(),
            "agreement": {name: asdict(each) for name, each in agreement.items()},
        }

    def vectors(self, encoder_path: Path) -> NDArray[np.float32]:
        """(N, D) of the crops that are asked about."""
        pack = Pack.open(self.pack_path)
        return np.asarray(embed_rows(load_encoder(encoder_path), pack, self.rows)[self.config.block])

    def told(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """True and told class (positions in `classes`) of every crop in a test part, one split after the other."""
        code = {self.data.classes.index(name): k for k, name in enumerate(self.classes)}
        label = np.array([code.get(int(c), -1) for c in self.data.label_of_well[self.data.well_of_crop]], dtype=np.intp)
        parts = []
        for is_test_W in self.tests:
            is_test = is_test_W[self.data.well_of_crop]
            train, test = np.flatnonzero((label >= 0) & ~is_test), np.flatnonzero((label >= 0) & is_test)
            probe = linear_probe(vectors[train], label[train], regularisation=self.config.regularisation)
            parts.append((label[test], probe.classes[probe.logits(vectors[test]).argmax(axis=1)]))
        return np.concatenate([true for true, _ in parts]), np.concatenate([told for _, told in parts])


def pin_questions(catalog: Catalog, pack: Pack, config: StudyConfig) -> Questions:
    """Draw the crops by their ids alone, so that every trial of every study with this pack is asked about the same.

    Raises:
        ValueError: A label or a split that these crops do not allow.
    """
    crop_ids = pack.index.column("crop_id").to_pylist()
    drawn = np.argsort([content_id("study", crop_id) for crop_id in crop_ids], kind="stable")
    crops = pack.index.select(["crop_id", "well_id"]).take(np.sort(drawn[: config.crops]))
    what = f"pack {pack.pack_id}"
    data = label_crops(catalog, crops, config.label, include_controls=False, what=what)
    tests = _held_out_wells(data, config)
    classes = _classes_of_all(data, tests, config.label, what)
    labels = {config.label: data.label_of_well[data.well_of_crop]}
    for name in config.nuisances:
        try:
            other = label_crops(catalog, crops, name, include_controls=True, what=what)
        except ValueError:
            continue  # one plate or batch: nothing to compare with
        labels[name] = other.label_of_well[other.well_of_crop]
    labels[DENSITY] = terciles(_foreground(catalog, data.crop_ids))
    return Questions(
        pack_path=pack.path,
        rows=pack.rows_of(data.crop_ids),
        data=data,
        tests=tests,
        labels=labels,
        classes=classes,
        config=config,
    )


def nested_questions(questions: Questions) -> tuple[Questions, Questions] | None:
    """Hold out the wells of the first split from the search, and ask about these what the search found.

    The search splits the other wells among themselves, with the same seeds; what it found is asked about the first
    split as it was.

    Returns:
        Questions of the search and questions of the confirmation; None where the other wells cannot be split again,
        such as in a screen of two plates that holds out plates.
    """
    data, first = questions.data, questions.tests[0]
    rest = dataclasses.replace(data, label_of_well=np.where(first, -1, data.label_of_well))
    try:
        tests = _held_out_wells(rest, questions.config)
        classes = _classes_of_all(rest, tests, questions.config.label, f"wells of {len(tests)} splits")
    except ValueError:
        return None
    search = dataclasses.replace(questions, data=rest, tests=tests, classes=classes)
    confirm = dataclasses.replace(
        questions,
        tests=[first],
        classes=_classes_of_all(data, [first], questions.config.label, "wells of the first split"),
    )
    return search, confirm


def _held_out_wells(data: ProbeData, config: StudyConfig) -> list[NDArray[np.bool_]]:
    """(W,) wells of the test part, of each split; wells without a label are in none.

    Raises:
        ValueError: A split that these wells do not allow.
    """
    probe = ProbeConfig(label=config.label, split=config.split, seeds=config.split_seeds)
    return [split.is_test for split in make_splits(data, probe)]


def _classes_of_all(data: ProbeData, tests: Sequence[NDArray[np.bool_]], label: str, what: str) -> tuple[str, ...]:
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
