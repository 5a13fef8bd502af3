from __future__ import annotations

import numpy as np
import pytest
from infra.bench.qc import QcBench, area_under_roc, detect
from sklearn.metrics import roc_auc_score

from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS
from cytolake.screens.simulated.screen import SimulatedScreen


def screen(n_plates: int, size_px: int) -> SimulatedScreen:
    return SimulatedScreen(
        n_plates=n_plates, n_batches=n_plates, n_pathways=2, genes_per_pathway=1, n_compounds=0, sites_per_well=1,
        site_size_px=size_px, artefact_share=0.0, seed=20,
    )  # fmt: skip


@pytest.mark.slow
def test_ten_labels_of_a_kind_find_it_on_another_plate_and_in_the_right_channel():
    """`make bench-qc` on fewer kinds and sites."""
    kinds = ("defocus", "autofluorescence", "empty")
    found = detect(
        QcBench(screen=screen(3, 96), n_training_plates=2, kinds=kinds, severities=(0.0, 1.0), n_processes=1)
    )
    assert set(found.auroc) == set(kinds)
    assert max(untouched for untouched, _ in found.auroc.values()) < 0.55
    assert min(spoilt for _, spoilt in found.auroc.values()) > 0.95
    assert min(found.right_channel.values()) > 0.8
    assert found.false_alarms < 0.2


@pytest.mark.slow
def test_ten_labels_of_a_kind_find_each_kind_on_other_plates():
    """`make bench-qc` on sites of a third of the area, 28 of them; a site more or less is 0.02."""
    found = detect(QcBench(screen=screen(4, 128), n_training_plates=2, severities=(0.0, 1.0), n_processes=1))
    assert set(found.auroc) == set(ARTEFACT_KINDS)
    assert max(untouched for untouched, _ in found.auroc.values()) < 0.55
    assert min(spoilt for _, spoilt in found.auroc.values()) > 0.9


def test_the_area_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    spoilt, clean = rng.integers(2, 9, 50) / 8, rng.integers(0, 7, 70) / 8
    expected = roc_auc_score([1] * 50 + [0] * 70, [*spoilt, *clean])
    assert abs(area_under_roc(spoilt, clean) - expected) < 1e-12
