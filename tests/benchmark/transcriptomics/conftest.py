"""A small simulated screen of counts, whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytolake.benchmark.transcriptomics.screen import Screen, ScreenSpec, load_screen

CONTROL = "Non-targeting control"
N_BATCHES, N_PERTURBATIONS, N_GENES, CELLS_EACH = 4, 8, 60, 12


def simulate(*, effect: float = 1.2, batch_effect: float = 0.2, seed: int = 0) -> Any:
    """Negative binomial counts; perturbations 2 i and 2 i + 1 change the same genes, and batches all genes a little."""
    import anndata

    random = np.random.default_rng(seed)
    base = random.normal(1.0, 0.6, N_GENES)
    programmes = np.zeros((N_PERTURBATIONS // 2, N_GENES))
    for programme in programmes:
        programme[random.choice(N_GENES, 12, replace=False)] = effect * random.choice([-1, 1], 12)
    batch_shift = batch_effect * random.normal(size=(N_BATCHES, N_GENES))
    rates, perturbations, batches = [], [], []
    for batch in range(N_BATCHES):
        for place in range(-1, N_PERTURBATIONS):
            n = CELLS_EACH * (2 if place < 0 else 1)
            shift = np.zeros(N_GENES) if place < 0 else programmes[place // 2] * (1 if place % 2 else 0.8)
            size = random.lognormal(0, 0.2, (n, 1))
            rates.append(size * np.exp(base + batch_shift[batch] + shift))
            perturbations += [CONTROL if place < 0 else f"gene{place}"] * n
            batches += [f"b{batch}"] * n
    counts = random.negative_binomial(4, 4 / (4 + np.concatenate(rates))).astype(np.float32)
    order = random.permutation(len(counts))
    obs = pd.DataFrame(
        {"target": np.asarray(perturbations)[order], "gem": pd.Categorical(np.asarray(batches)[order])},
        index=[f"cell{i}" for i in range(len(counts))],
    )
    # Half of the perturbed genes are measured.
    names = [f"gene{2 * i}" if i < N_PERTURBATIONS // 2 else f"other{i}" for i in range(N_GENES)]
    data = anndata.AnnData(sparse.csr_matrix(counts[order]), obs, pd.DataFrame(index=names))
    data.obsm["model"] = counts[order][:, :16]
    return data


SPEC = ScreenSpec(perturbation="target", control=CONTROL, batch="gem", embeddings=("model",))


@pytest.fixture(scope="session")
def data() -> Any:
    return simulate()


@pytest.fixture(scope="session")
def spec() -> ScreenSpec:
    return SPEC


@pytest.fixture(scope="session")
def screen(data) -> Screen:
    return load_screen(data, SPEC)
