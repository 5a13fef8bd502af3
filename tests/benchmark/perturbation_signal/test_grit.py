"""Grit: that of a loop over wells, 0 of nothing, and what plates alone give."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from cytolake.benchmark.perturbation_signal.grit import grit

D = 20


def screen(rng, effect, *, plate_effect=0.0, n_perturbations=30, n_plates=3):
    """A replicate of each perturbation and 12 controls on each plate."""
    names = ([f"p{i:02d}" for i in range(n_perturbations)] + ["DMSO"] * 12) * n_plates
    plates = np.repeat(np.arange(n_plates), n_perturbations + 12)
    is_control = np.asarray(names) == "DMSO"
    of_name = effect * rng.normal(size=(n_perturbations + 12, D))
    of_name[n_perturbations:] = 0
    vectors = np.tile(of_name, (n_plates, 1)) + rng.normal(size=(len(names), D))
    vectors += plate_effect * rng.normal(size=(n_plates, D))[plates]
    return vectors, names, [f"P{plate}" for plate in plates], is_control


def test_grit_is_that_of_a_loop_over_wells():
    """As cytominer-eval: scikit-learn's scaler on the correlations with controls, applied to those with replicates."""
    vectors, names, plates, is_control = screen(np.random.default_rng(0), 1.0)
    correlation = np.corrcoef(vectors)
    found = grit(vectors, names, plates, is_control)
    for row in found.table.to_pylist():
        own = [i for i, name in enumerate(names) if name == row["perturbation"]]
        z = []
        for i in own:
            scaler = StandardScaler().fit(correlation[i, is_control][:, None])
            z.append(scaler.transform(correlation[i, [j for j in own if j != i]][:, None]).mean())
        assert row["grit"] == pytest.approx(np.mean(z), abs=1e-9)
    assert found.mean.value == pytest.approx(np.mean(found.table["grit"]))
    assert found.mean.low < found.mean.value < found.mean.high
    assert found.n_controls == 36
    assert found.table.num_rows == 30


def test_grit_of_wells_without_an_effect_is_0_and_grows_with_the_effect():
    means = [grit(*screen(np.random.default_rng(1), effect)).mean for effect in (0.0, 0.7, 2.0)]
    assert abs(means[0].value) < 3.5 * means[0].draws.std()
    assert means[0].high < means[1].low < means[1].high < means[2].low


def test_what_plates_share_shows_in_the_shuffled_perturbations_too():
    """Replicates of one plate are alike for the plate's sake; controls of all plates are not."""
    rng = np.random.default_rng(2)
    vectors, names, plates, is_control = screen(rng, 0.0, plate_effect=1.0)
    names = [
        name if control else f"{plate}p{int(name[1:]) // 3}"
        for name, plate, control in zip(names, plates, is_control, strict=True)
    ]
    found = grit(vectors, names, plates, is_control)
    assert found.mean.low > 0.5  # no perturbation has an effect
    assert found.permuted == pytest.approx(found.mean.value, abs=0.1)
    planted = grit(*screen(rng, 2.0))
    assert abs(planted.permuted) < 0.2 < planted.mean.low


def test_wells_that_cannot_be_correlated_are_left_out_and_counted():
    vectors, names, plates, is_control = screen(np.random.default_rng(3), 1.0)
    vectors[0] = np.inf
    vectors[42] = 3.0  # the second well of p00
    vectors[31] = np.nan  # a control
    found = grit(vectors, names, plates, is_control)
    assert found.n_left_out == 3
    assert found.n_controls == 35
    assert found.table.to_pylist()[0] == {
        "perturbation": "p00", "n_wells": 1, "grit": None, "reason": "1 usable wells, expected 2 or more",
    }  # fmt: skip


def test_what_has_no_controls_or_no_replicates_is_refused():
    vectors, names, plates, is_control = screen(np.random.default_rng(4), 1.0)
    with pytest.raises(ValueError, match="0 of 126 wells are usable negative controls, expected 2 or more"):
        grit(vectors, names, plates, np.zeros_like(is_control))
    with pytest.raises(ValueError, match="has 2 usable wells, expected replicates"):
        grit(vectors, [f"{name}{i}" for i, name in enumerate(names)], plates, is_control)
    with pytest.raises(ValueError, match="1 plates and 126 control marks"):
        grit(vectors, names, ["P"], is_control)
