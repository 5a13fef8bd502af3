"""Alignment against what EFAAR_benchmarking and pycytominer gave for 632 real profiles of BBBC021, 40 features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytolake.embed.alignment.control_statistics import ControlStatistics
from cytolake.embed.alignment.fit import fit_alignment, fit_from_statistics
from cytolake.embed.alignment.variants import AlignmentConfig

pytestmark = pytest.mark.real_data
WRITTEN_TO = 1e-8
"""pycytominer's results were written with 10 digits: values near 10 and above are rounded by up to 5e-9."""


class Profiles:
    def __init__(self, table: pd.DataFrame, perturbation: str, batch: str, n_columns: int) -> None:
        self.vectors = table.iloc[:, n_columns:].to_numpy(np.float64)
        self.is_control = (table[perturbation] == "DMSO").to_numpy()
        self.batches = table[batch].tolist()

    def aligned(self, **config):
        fitted = fit_alignment(self.vectors, self.batches, self.is_control, AlignmentConfig(**config))
        return fitted.apply(self.vectors, self.batches)


@pytest.fixture(scope="module")
def oracles(real_data: Path) -> Path:
    return real_data / "oracles"


@pytest.fixture(scope="module")
def efaar(oracles) -> Profiles:
    table = pd.read_csv(oracles / "efaar_align_input.csv.gz", float_precision="round_trip")
    return Profiles(table, "pert", "batch", 3)


@pytest.fixture(scope="module")
def expected(oracles) -> dict[str, np.ndarray]:
    with np.load(oracles / "efaar_align_expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def pycytominer(oracles) -> Profiles:
    table = pd.read_csv(oracles / "pycytominer_normalize_input.csv.gz", float_precision="round_trip")
    return Profiles(table, "Metadata_Compound", "Metadata_Plate", 5)


def written(oracles: Path, name: str) -> np.ndarray:
    return pd.read_csv(oracles / f"pycytominer_{name}.csv.gz").iloc[:, 5:].to_numpy(np.float64)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"variant": "centre_scale"}, "centerscale_on_controls_by_batch"),
        ({"variant": "standardize"}, "centerscale_on_controls_by_batch"),
        ({"variant": "centre_scale", "scope": "all"}, "centerscale_on_controls"),
    ],
)
def test_scaling_on_controls_is_that_of_efaar(efaar, expected, config, name):
    np.testing.assert_allclose(efaar.aligned(**config), expected[name], rtol=0, atol=1e-12)


def test_scaling_on_all_wells_is_that_of_efaar_by_batch(efaar, expected):
    config = AlignmentConfig(variant="centre_scale", missing_controls="all_wells")
    fitted = fit_alignment(efaar.vectors, efaar.batches, np.zeros(len(efaar.vectors), bool), config)
    aligned = fitted.apply(efaar.vectors, efaar.batches)
    np.testing.assert_allclose(aligned, expected["centerscale_by_batch"], rtol=0, atol=1e-12)
    assert len(fitted.batches_on_all_wells) == 10


def test_tvn_is_that_of_efaar_with_batches(efaar, expected):
    want, got = expected["tvn_on_controls_coral_by_batch"], efaar.aligned(variant="tvn_efaar_v1")
    scale = np.abs(want @ want.T).max()
    np.testing.assert_allclose(got @ got.T / scale, want @ want.T / scale, rtol=0, atol=1e-12)
    signs = np.sign((got * want).sum(axis=0))
    np.testing.assert_allclose(got * signs, want, rtol=0, atol=1e-8)


def test_tvn_of_one_batch_without_coral_is_vcb_with_one_batch(efaar, expected):
    """Whitening and colouring by the same covariance undo each other."""
    one = fit_alignment(
        efaar.vectors, ["all"] * len(efaar.vectors), efaar.is_control, AlignmentConfig(variant="tvn_vcb")
    )
    want, got = expected["tvn_on_controls"], one.apply(efaar.vectors, ["all"] * len(efaar.vectors))
    np.testing.assert_allclose(got @ got.T, want @ want.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("variant", ["standardize", "robustize", "mad_robustize"])
def test_normalisation_is_that_of_pycytominer(pycytominer, oracles, variant):
    want = written(oracles, f"normalize_{variant}")
    np.testing.assert_allclose(pycytominer.aligned(variant=variant, scope="all"), want, rtol=0, atol=WRITTEN_TO)


@pytest.mark.parametrize("method", ["ZCA", "ZCA-cor", "PCA", "PCA-cor"])
def test_sphering_is_that_of_pycytominer(pycytominer, oracles, method):
    """Singular values of these controls span 1e6; squaring them, as a covariance does, would cost the digits."""
    want = written(oracles, f"spherize_{method}")
    got = pycytominer.aligned(variant="sphering", sphering_method=method)
    if method.startswith("PCA"):
        got = got * np.sign((got * want).sum(axis=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=WRITTEN_TO)


@pytest.mark.parametrize("variant", ["centre", "centre_scale", "pca_cs", "tvn_efaar_v1", "tvn_vcb", "sphering"])
def test_real_profiles_in_chunks_align_as_those_in_memory(efaar, variant):
    config = AlignmentConfig(variant=variant)
    parts = [ControlStatistics.for_config(config, 40) for _ in range(3)]
    for i, rows in enumerate(np.array_split(np.random.default_rng(0).permutation(632), 17)):
        batches = [efaar.batches[row] for row in rows]
        parts[i % 3].add(efaar.vectors[rows], batches, efaar.is_control[rows])
    fitted = fit_from_statistics(parts[2].merge(parts[0]).merge(parts[1]), config)
    got = fitted.apply(efaar.vectors, efaar.batches)
    np.testing.assert_allclose(got, efaar.aligned(variant=variant), rtol=0, atol=1e-8)
