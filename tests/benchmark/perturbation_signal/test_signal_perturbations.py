"""Consistency and magnitude of perturbations whose signal is known, under both nulls."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from cytolake.benchmark.perturbation_signal import perturbations
from cytolake.benchmark.perturbation_signal.energy import energy_distance
from cytolake.benchmark.perturbation_signal.perturbations import SignalConfig, consistency, magnitude

MATCHED = SignalConfig(n_draws=199)
EFAAR = SignalConfig(null="efaar")
BOTH = [consistency, magnitude]


@dataclasses.dataclass
class Screen:
    vectors: np.ndarray
    names: list[str]
    batches: list[str]
    is_control: np.ndarray

    @property
    def arguments(self):
        return self.vectors, self.names, self.batches, self.is_control


def make_screen(
    n_active=4, n_inert=12, n_rows=6, n_controls=40, *, strength=3.0, dim=10, seed=0, n_batches=2, batch_shift=0.0
) -> Screen:
    """Rows of noise, of which those of `active` perturbations go one way each; batches alternate row by row."""
    random = np.random.default_rng(seed)
    names = [f"active {i:02d}" for i in range(n_active)] + [f"inert {i:02d}" for i in range(n_inert)]
    labels = [name for name in names for _ in range(n_rows)] + ["DMSO"] * n_controls
    vectors = random.normal(size=(len(labels), dim))
    for i in range(n_active):
        direction = random.normal(size=dim)
        vectors[i * n_rows : (i + 1) * n_rows] += strength * direction / np.linalg.norm(direction)
    batches = np.arange(len(labels)) % n_batches
    vectors += batch_shift * random.normal(size=(n_batches, dim))[batches]
    return Screen(vectors, labels, [f"B{b}" for b in batches], np.asarray([name == "DMSO" for name in labels]))


def column(signal, name):
    return dict(zip(signal.table["perturbation"].to_pylist(), signal.table[name].to_pylist(), strict=True))


INERT = [f"inert {i:02d}" for i in range(12)]


def test_consistency_is_the_mean_cosine_of_all_pairs():
    screen = make_screen()
    values = column(consistency(*screen.arguments, MATCHED), "value")
    own = [i for i, name in enumerate(screen.names) if name == "active 01"]
    expected = cosine_similarity(screen.vectors[own])[np.triu_indices(len(own), k=1)].mean()
    assert values["active 01"] == pytest.approx(expected, abs=1e-12)


def test_magnitude_is_the_energy_distance_to_all_controls_where_they_are_few():
    screen = make_screen()
    values = column(magnitude(*screen.arguments, MATCHED), "value")
    own = [i for i, name in enumerate(screen.names) if name == "inert 03"]
    expected = energy_distance(screen.vectors[own], screen.vectors[screen.is_control])
    assert values["inert 03"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.real_data
def test_equal_rows_have_the_consistency_that_efaar_publishes(real_data):
    known = json.loads((real_data / "oracles" / "efaar_published.json").read_text())["pert_signal_consistency_metric"]
    rows = np.asarray(known["in"])
    signal = consistency(rows, ["a"] * len(rows), ["B"] * len(rows), np.zeros(len(rows), bool), MATCHED)
    assert column(signal, "value")["a"] == pytest.approx(known["out"], abs=1e-12)


@pytest.mark.parametrize(("statistic", "least", "is_above"), [(consistency, 2, np.less), (magnitude, 5, np.less_equal)])
def test_the_efaar_p_value_is_one_less_the_share_of_null_perturbations_below(statistic, least, is_above):
    """Written out as the reference has it: values of the null below, for magnitude with ties, over their number."""
    screen = make_screen()
    signal = statistic(*screen.arguments, EFAAR, null_perturbations=INERT)
    values, p_values = column(signal, "value"), column(signal, "p_value")
    null = np.asarray([values[name] for name in INERT])
    for name, value in values.items():
        assert p_values[name] == pytest.approx(1 - is_above(null, value).mean(), abs=1e-12)


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("config", [MATCHED, EFAAR], ids=["matched", "efaar"])
def test_perturbations_with_an_effect_are_found_and_those_of_the_null_are_not_counted(statistic, config):
    screen = make_screen()
    signal = statistic(*screen.arguments, config, null_perturbations=INERT)
    p_values = column(signal, "p_value")
    assert all(p <= 0.05 for name, p in p_values.items() if name.startswith("active"))
    assert np.mean([p > 0.05 for name, p in p_values.items() if name in INERT]) > 0.7
    assert (signal.significant.hits, signal.n_defined) == (4, 4)
    assert {name for name, is_null in column(signal, "is_null").items() if is_null} == set(INERT)


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("batch_shift", [0.0, 2.0])
def test_p_values_are_uniform_where_rows_come_from_the_null_pool(statistic, batch_shift):
    """Acceptance test: also where batches differ, for rows are drawn in the perturbation's own batches."""
    screen = make_screen(0, 240, 6, 240, n_batches=3, batch_shift=batch_shift, seed=1)
    p_values = list(column(statistic(*screen.arguments, MATCHED), "p_value").values())
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.asarray(p_values) <= 0.05) < 0.1


@pytest.mark.parametrize("statistic", BOTH)
def test_efaar_p_values_are_uniform_where_perturbations_do_as_little_as_the_null(statistic):
    screen = make_screen(0, 400, 6, 100, seed=2)
    null = [f"inert {i:02d}" for i in range(200)]
    signal = statistic(*screen.arguments, EFAAR, null_perturbations=null)
    counted = [p for name, p in column(signal, "p_value").items() if name not in null]
    assert len(counted) == signal.n_defined == 200
    # Two samples: the p-values of the others are their ranks among the null.
    assert stats.kstest(counted, "uniform").statistic < stats.kstwo.ppf(0.99, 100)


def test_batch_effects_pass_for_signal_only_in_a_null_of_one_batch():
    """Rows of one batch agree through the batch: the matched null has that too, a null over all batches has not."""
    random = np.random.default_rng(0)
    n, batches = 240, np.repeat(np.arange(4), 60)
    vectors = random.normal(size=(n, 8)) + 3 * random.normal(size=(4, 8))[batches]
    names = [f"p{i // 6:02d}" for i in range(n)]  # each within one batch
    none = np.zeros(n, bool)
    told = consistency(vectors, names, [str(b) for b in batches], none, MATCHED)
    fooled = consistency(vectors, names, ["all"] * n, none, MATCHED)
    assert told.significant.value < 0.2
    assert fooled.significant.value > 0.5


@pytest.mark.parametrize("statistic", BOTH)
def test_the_order_of_rows_and_a_change_of_scale_do_not_matter(statistic):
    screen = make_screen()
    first = statistic(*screen.arguments, EFAAR, null_perturbations=INERT)
    order = np.random.default_rng(5).permutation(len(screen.names))
    again = statistic(
        screen.vectors[order] * 7,
        [screen.names[i] for i in order],
        [screen.batches[i] for i in order],
        screen.is_control[order],
        EFAAR,
        null_perturbations=INERT,
    )
    assert column(again, "p_value") == pytest.approx(column(first, "p_value"))


@pytest.mark.parametrize("statistic", BOTH)
def test_a_seed_repeats_a_run_and_another_changes_it(statistic):
    screen = make_screen()
    first, again = (column(statistic(*screen.arguments, MATCHED), "p_value") for _ in range(2))
    other = column(statistic(*screen.arguments, dataclasses.replace(MATCHED, seed=1)), "p_value")
    assert first == again
    assert first != other


def test_many_controls_are_sampled_the_same_way_each_time():
    screen = make_screen(n_controls=300)
    config = dataclasses.replace(MATCHED, max_controls=50)
    first, again = (column(magnitude(*screen.arguments, config), "value") for _ in range(2))
    whole = column(magnitude(*screen.arguments, MATCHED), "value")
    assert first == again
    assert first != whole
    assert first["active 00"] == pytest.approx(whole["active 00"], rel=0.3)


def test_distances_computed_first_and_for_each_draw_give_the_same_p_values(monkeypatch):
    screen = make_screen()
    first = column(magnitude(*screen.arguments, MATCHED), "p_value")
    monkeypatch.setattr(perturbations, "POOL_UP_TO", 0)
    assert column(magnitude(*screen.arguments, MATCHED), "p_value") == pytest.approx(first)
    monkeypatch.undo()
    monkeypatch.setattr(perturbations, "DISTANCES_AT_ONCE", 50)
    assert column(magnitude(*screen.arguments, MATCHED), "p_value") == pytest.approx(first)


@pytest.mark.parametrize("statistic", BOTH)
def test_a_large_group_is_tested_on_a_sample_and_valued_on_all(statistic):
    screen = make_screen()
    large = dataclasses.replace(screen, names=["big" if n.startswith("inert") else n for n in screen.names])
    signal = statistic(*large.arguments, dataclasses.replace(MATCHED, max_rows=10))
    whole = statistic(*large.arguments, MATCHED)
    assert column(signal, "n_tested")["big"] == 10
    assert column(signal, "n_rows")["big"] == column(whole, "n_tested")["big"] == 72
    assert column(signal, "value")["big"] == column(whole, "value")["big"]


@pytest.mark.parametrize("config", [MATCHED, EFAAR], ids=["matched", "efaar"])
@pytest.mark.parametrize(("statistic", "least"), [(consistency, 2), (magnitude, 5)])
def test_too_few_rows_have_no_value_and_say_why(statistic, least, config):
    screen = make_screen()
    keep = np.ones(len(screen.names), bool)
    own = [i for i, name in enumerate(screen.names) if name == "active 00"]
    keep[own[least - 1 :]] = False
    few = Screen(
        screen.vectors[keep],
        [n for n, k in zip(screen.names, keep, strict=True) if k],
        [b for b, k in zip(screen.batches, keep, strict=True) if k],
        screen.is_control[keep],
    )
    signal = statistic(*few.arguments, config, null_perturbations=INERT)
    assert column(signal, "value")["active 00"] is None
    assert column(signal, "p_value")["active 00"] is None
    assert column(signal, "reason")["active 00"] == f"{least - 1} finite rows, expected at least {least}"
    assert column(signal, "reason")["active 01"] == ""
    assert signal.n_defined == 3


@pytest.mark.parametrize("statistic", BOTH)
def test_rows_that_are_not_finite_are_left_out_and_counted(statistic):
    screen = make_screen()
    broken = screen.vectors.copy()
    own = [i for i, name in enumerate(screen.names) if name == "active 00"]
    broken[own[0], 3], broken[-1, 0] = np.nan, np.inf
    keep = np.isfinite(broken).all(axis=1)
    signal = statistic(broken, *screen.arguments[1:], EFAAR, null_perturbations=INERT)
    without = statistic(
        broken[keep],
        [n for n, k in zip(screen.names, keep, strict=True) if k],
        [b for b, k in zip(screen.batches, keep, strict=True) if k],
        screen.is_control[keep],
        EFAAR,
        null_perturbations=INERT,
    )
    assert column(signal, "value") == column(without, "value")
    assert column(signal, "n_not_finite")["active 00"] == 1
    assert column(signal, "n_rows")["active 00"] == 5
    assert sum(column(signal, "n_not_finite").values()) == 1


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_representation_that_collapsed_has_no_signal(statistic, value):
    """All vectors equal: ties are not significant under one null, and have no p under the other."""
    screen = make_screen()
    flat = np.full_like(screen.vectors, value)
    matched = statistic(flat, *screen.arguments[1:], MATCHED)
    assert set(column(matched, "p_value").values()) == {1.0}
    efaar = statistic(flat, *screen.arguments[1:], EFAAR, null_perturbations=INERT)
    assert efaar.n_defined == 0
    assert set(column(efaar, "reason").values()) == {"all null perturbations have the same value"}


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float32])
def test_numbers_of_any_type_give_what_doubles_give(statistic, dtype):
    screen = make_screen()
    rounded = np.round(screen.vectors * 10).astype(dtype)
    expected = statistic(rounded.astype(np.float64), *screen.arguments[1:], MATCHED)
    assert statistic(rounded, *screen.arguments[1:], MATCHED).table.equals(expected.table)


def test_magnitude_without_controls_is_an_error_and_consistency_is_not():
    screen = make_screen(n_controls=0)
    with pytest.raises(ValueError, match=r"no finite control row.*plate map"):
        magnitude(*screen.arguments, MATCHED)
    assert consistency(*screen.arguments, MATCHED).n_defined == 16


@pytest.mark.parametrize("statistic", BOTH)
def test_a_null_that_is_not_in_the_screen_is_an_error(statistic):
    screen = make_screen()
    with pytest.raises(ValueError, match=r"none of 1 null perturbations .* signal\.null=matched"):
        statistic(*screen.arguments, EFAAR, null_perturbations=["OR4F5"])


@pytest.mark.parametrize("statistic", BOTH)
def test_arguments_that_do_not_fit_are_refused(statistic):
    screen = make_screen()
    with pytest.raises(ValueError, match="111 perturbations"):
        statistic(screen.vectors, screen.names[:111], screen.batches, screen.is_control, MATCHED)
    with pytest.raises(ValueError, match="expected \\(N, D\\)"):
        statistic(screen.vectors[:, 0], *screen.arguments[1:], MATCHED)


@pytest.mark.parametrize(
    ("field", "value"), [("null", "random"), ("alpha", 1.0), ("n_draws", 0), ("max_controls", 0), ("max_rows", 4)]
)
def test_a_signal_setting_that_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"signal\.{field}"):
        SignalConfig(**{field: value})


@pytest.mark.real_data
def test_real_compounds_have_signal_and_real_controls_have_none(real_data):
    """BBBC021's normalised profiles: most treatments agree over plates; DMSO wells in groups at random do not."""
    path = real_data / "bbbc021_ljosa_profiles" / "morpheus" / "csvs" / "BBBC021_feature_selected_mad_robustize.csv"
    wells = pd.read_csv(path)
    features = wells[[name for name in wells if not name.startswith("Metadata_")]].to_numpy()
    # Of a week: its plates are the batches of the screen.
    weeks = wells["Metadata_Plate"].str.split("_").str[0].tolist()
    treatments = (wells["Metadata_Compound"] + " " + wells["Metadata_Concentration"].astype(str)).tolist()
    is_control = (wells["Metadata_Compound"] == "DMSO").to_numpy()
    signal = consistency(features, treatments, weeks, is_control, SignalConfig(n_draws=499))
    assert signal.n_defined == 103
    assert signal.significant.low > 0.6
    controls = np.flatnonzero(is_control)
    groups = [f"group {i // 4}" for i in range(len(controls))]
    null = consistency(
        features[np.random.default_rng(0).permutation(controls)],
        groups,
        ["all"] * len(groups),
        np.zeros(len(groups), bool),
        SignalConfig(n_draws=499),
    )
    assert null.significant.low < 0.05
