"""Labels that are tied to batches, and labels that are spread over them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats.contingency import association

from cytolake.benchmark.confounding import label_confounding


@pytest.mark.parametrize("seed", range(3))
def test_cramers_v_is_scipys(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, size=80)
    batches = np.where(random.random(80) < 0.5, labels % 3, random.integers(0, 3, size=80))
    result = label_confounding([f"L{x}" for x in labels], [f"B{x}" for x in batches])
    table = pd.crosstab(labels, batches).to_numpy()
    assert result.cramers_v == pytest.approx(association(table, method="cramer"), abs=1e-12)
    assert 0 <= result.cramers_v_corrected < result.cramers_v


def test_the_corrected_v_of_labels_at_random_is_near_zero_and_the_plain_one_is_not():
    random = np.random.default_rng(0)
    labels, batches = ([f"{x}" for x in random.integers(0, n, size=300)] for n in (40, 10))
    result = label_confounding(labels, batches)
    assert result.cramers_v > 0.3
    assert result.cramers_v_corrected < 0.15


def test_replicated_labels_of_one_batch_are_named():
    """Label c has one well, which is in one batch whatever the layout."""
    labels, batches = ["a", "a", "b", "b", "c"], ["X", "Y", "X", "X", "Y"]
    result = label_confounding(labels, batches, label="gene")
    assert result.warning.startswith("gene is confounded with batch: 1 of 2 values that two or more wells have")
    assert "b (X);" in result.warning
    assert result.table.to_pylist() == [
        {"label": "a", "n_wells": 2, "n_batches": 2, "only_batch": None},
        {"label": "b", "n_wells": 2, "n_batches": 1, "only_batch": "X"},
        {"label": "c", "n_wells": 1, "n_batches": 1, "only_batch": "Y"},
    ]


def test_labels_of_one_well_each_are_not_confounded():
    """A table with one row for each gene, over two batches."""
    assert label_confounding(["a", "b", "c", "d"], ["X", "X", "Y", "Y"]).warning == ""


def test_labels_in_every_batch_need_no_warning_and_one_batch_allows_no_statement():
    spread = label_confounding(["a", "b"] * 4, ["X"] * 4 + ["Y"] * 4)
    assert (spread.warning, spread.cramers_v) == ("", 0.0)
    tied = label_confounding(["a", "b"] * 4, ["X", "Y"] * 4)
    assert tied.cramers_v == 1.0
    single = label_confounding(["a", "a", "b", "b"], ["X"] * 4)
    assert single.warning == "one batch only: no statement about batches is possible."
    assert math.isnan(single.cramers_v)
    with pytest.raises(ValueError, match="0 labels and 0 batches"):
        label_confounding([], [])


@pytest.mark.real_data
def test_compounds_of_bbbc021_are_confounded_with_the_week(real_data):
    path = real_data / "bbbc021_ljosa_profiles" / "morpheus" / "csvs" / "BBBC021_feature_selected_mad_robustize.csv"
    wells = pd.read_csv(path)
    weeks = wells["Metadata_Plate"].str.split("_").str[0].tolist()
    assert "is confounded with batch" in label_confounding(wells["Metadata_Compound"].tolist(), weeks).warning
