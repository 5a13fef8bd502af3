"""Well means."""

from __future__ import annotations

import numpy as np

from cytolake.embed.aggregate import well_means


def test_well_means_are_those_of_a_loop_whatever_the_order_of_crops():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 4)).astype(np.float32)
    wells = random.choice(["A01", "B02", "C03"], size=50).tolist()
    names, means, counts = well_means(vectors, wells)
    assert names == ["A01", "B02", "C03"]
    for name, mean, count in zip(names, means, counts, strict=True):
        here = np.asarray(wells) == name
        assert count == here.sum()
        np.testing.assert_allclose(mean, vectors[here].mean(axis=0), rtol=1e-5)
    order = random.permutation(50)
    _, shuffled, _ = well_means(vectors[order], np.asarray(wells)[order].tolist())
    np.testing.assert_allclose(means, shuffled, rtol=1e-6)
