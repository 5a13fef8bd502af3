"""Consistency and magnitude of perturbations whose signal is known, against random rows and against named ones."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from cytolake.benchmark.perturbation_signal.consistency_magnitude import SignalConfig, consistency, magnitude
from cytolake.benchmark.transcriptomics import perturbation_signal as transcriptomics
from cytolake.statistics.consistency import consistency_tests

CONFIG = SignalConfig(n_draws=199)
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
    n_active=4, n_inert=24, n_rows=6, n_controls=40, *, strength=3.0, dim=10, seed=0, n_batches=2, batch_shift=0.0
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


MANY = [f"inert {i:02d}" for i in range(20)]
SIGNAL = "perturbation_signal"


def test_consistency_is_the_mean_cosine_of_all_pairs():
    screen = make_screen()
    values = column(consistency(*screen.arguments, CONFIG), "value")
    own = [i for i, name in enumerate(screen.names) if name == "active 01"]
    expected = cosine_similarity(screen.vectors[own])[np.triu_indices(len(own), k=1)].mean()
    assert values["active 01"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share_of_controls", [0.3, 0.6])
def test_a_shift_shared_by_all_treated_wells_is_not_consistency(share_of_controls):
    """Drawn into the null, control wells, which lack the shift, made 25 % of inert perturbations consistent at 30 %
    controls and 94 % at 60 %."""
    p_values = []
    for seed in range(8):
        n_treated = round(300 * (1 - share_of_controls))
        screen = make_screen(0, n_treated // 6, 6, 300 - n_treated, seed=seed, n_batches=3)
        screen.vectors[~screen.is_control, 0] += 2
        p_values += column(consistency(*screen.arguments, CONFIG), "p_value").values()
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.asarray(p_values) <= 0.05) < 0.1


@pytest.mark.parametrize(("ours", "theirs"), [(consistency, "consistency"), (magnitude, "magnitude")])
def test_wells_and_cells_are_tested_alike(ours, theirs):
    screen = make_screen(n_batches=3)
    names = sorted(set(screen.names) - {"DMSO"})
    rows = SimpleNamespace(
        perturbation_of_row=np.asarray([-1 if name == "DMSO" else names.index(name) for name in screen.names]),
        batch_of_row=np.asarray([int(batch[1:]) for batch in screen.batches]),
        perturbations=tuple(names),
        batches=("B0", "B1", "B2"),
        is_control=screen.is_control,
    )
    values, p_values = getattr(transcriptomics, theirs)(rows, screen.vectors, CONFIG.n_draws, CONFIG.seed)
    signal = ours(*screen.arguments, CONFIG)
    assert list(column(signal, "value").values()) == pytest.approx(values.tolist())
    of_signal = np.asarray(list(column(signal, "p_value").values()))
    # Draws of consistency have a name, so they are others: three standard errors of two p-values.
    spread = 3 * np.sqrt(2 * p_values * (1 - p_values) / CONFIG.n_draws)
    assert (np.abs(of_signal - p_values) <= (spread + 1 / CONFIG.n_draws if ours is consistency else 0)).all()


def test_a_curation_gives_the_same_p_values():
    """The rule hands the treated wells of an experiment to the same test, under the experiment's name."""
    screen = make_screen(n_batches=3)
    names = sorted(set(screen.names) - {"DMSO"})
    treated = np.flatnonzero(~screen.is_control)
    groups = np.asarray([names.index(screen.names[i]) for i in treated])
    plates = np.asarray([int(screen.batches[i][1:]) for i in treated])
    of_rule = consistency_tests(screen.vectors[treated], groups, plates, CONFIG.n_draws, CONFIG.seed, SIGNAL)
    p_values = column(consistency(*screen.arguments, CONFIG), "p_value")
    assert {names[test.group]: test.p_value for test in of_rule} == p_values


def test_rows_of_no_perturbation_are_drawn_and_not_listed():
    screen = make_screen()
    unnamed = ["" if name.startswith("inert") else name for name in screen.names]
    whole, part = (
        consistency(screen.vectors, names, screen.batches, screen.is_control, CONFIG)
        for names in (screen.names, unnamed)
    )
    assert column(part, "p_value") == {n: p for n, p in column(whole, "p_value").items() if n.startswith("active")}


def test_q_values_are_those_of_the_perturbations_that_count():
    screen = make_screen()
    signal = consistency(*screen.arguments, CONFIG)
    p_values, q_values = (list(column(signal, name).values()) for name in ("p_value", "q_value"))
    assert q_values == pytest.approx(stats.false_discovery_control(p_values).tolist())
    assert signal.discovered.hits == sum(q <= 0.05 for q in q_values) <= signal.significant.hits
    named = consistency(*screen.arguments, CONFIG, null_perturbations=MANY)
    assert {name for name, q in column(named, "q_value").items() if q is not None} == set(screen.names) - {
        *MANY,
        "DMSO",
    }


@pytest.mark.real_data
def test_equal_rows_have_the_consistency_that_efaar_publishes(real_data):
    known = json.loads((real_data / "oracles" / "efaar_published.json").read_text())["pert_signal_consistency_metric"]
    rows = np.asarray(known["in"])
    signal = consistency(rows, ["a"] * len(rows), ["B"] * len(rows), np.zeros(len(rows), bool), CONFIG)
    assert column(signal, "value")["a"] == pytest.approx(known["out"], abs=1e-12)


@pytest.mark.parametrize(("statistic", "is_above"), [(consistency, np.less), (magnitude, np.less_equal)])
def test_the_p_value_against_named_perturbations_is_efaars_with_one_added(statistic, is_above):
    """The reference: 1 less the share of null values below, for magnitude with ties; no two values are equal here."""
    screen = make_screen()
    signal = statistic(*screen.arguments, CONFIG, null_perturbations=MANY)
    values, p_values = column(signal, "value"), column(signal, "p_value")
    null = np.asarray([values[name] for name in MANY])
    for name in set(values) - set(MANY):
        efaar = 1 - is_above(null, values[name]).mean()
        assert p_values[name] == pytest.approx((1 + len(null) * efaar) / (1 + len(null)), abs=1e-12)


def test_against_named_perturbations_all_are_compared_with_the_controls_of_all_batches():
    """As EFAAR_benchmarking: also a perturbation in a batch without controls."""
    screen = make_screen()
    batches = [
        "lone" if name == "active 01" else batch for name, batch in zip(screen.names, screen.batches, strict=True)
    ]
    arguments = (screen.vectors, screen.names, batches, screen.is_control, CONFIG)
    row = magnitude(*arguments).table.to_pylist()[1]
    assert (row["value"], row["p_value"]) == (None, None)
    assert row["reason"] == "0 finite rows in batches with control rows, expected at least 5"
    assert column(magnitude(*arguments, null_perturbations=MANY), "p_value")["active 01"] == pytest.approx(1 / 21)


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("null", [(), MANY], ids=["random", "named"])
def test_perturbations_with_an_effect_are_found_and_those_of_the_null_are_not_counted(statistic, null):
    screen = make_screen(n_inert=20)
    signal = statistic(*screen.arguments, CONFIG, null_perturbations=null)
    p_values = column(signal, "p_value")
    assert all(p <= 0.05 for name, p in p_values.items() if name.startswith("active"))
    assert np.mean([p > 0.05 for name, p in p_values.items() if name in MANY]) > 0.7
    assert {name for name, is_null in column(signal, "is_null").items() if is_null} == set(null)
    assert signal.n_defined == (4 if null else 24)


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("batch_shift", [0.0, 2.0])
def test_p_values_are_uniform_without_an_effect(statistic, batch_shift):
    """Acceptance test: also where batches differ, for rows and labels are drawn in the perturbation's own batches."""
    p_values = []
    for seed in range(1 if statistic is consistency else 40):  # magnitudes of one screen share its controls
        n = 240 if statistic is consistency else 6
        screen = make_screen(0, n, 6, 60, n_batches=3, batch_shift=batch_shift, seed=seed)
        p_values += column(statistic(*screen.arguments, CONFIG), "p_value").values()
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.asarray(p_values) <= 0.05) < 0.1


@pytest.mark.parametrize("statistic", BOTH)
def test_p_values_against_named_perturbations_are_uniform_where_all_do_as_little(statistic):
    screen = make_screen(0, 400, 6, 100, seed=2)
    null = [f"inert {i:02d}" for i in range(200)]
    signal = statistic(*screen.arguments, CONFIG, null_perturbations=null)
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
    found = consistency(vectors, names, [str(b) for b in batches], none, CONFIG)
    fooled = consistency(vectors, names, ["all"] * n, none, CONFIG)
    assert found.significant.value < 0.2
    assert fooled.significant.value > 0.5


@pytest.mark.parametrize("statistic", BOTH)
def test_the_order_of_rows_and_a_change_of_scale_do_not_matter(statistic):
    screen = make_screen()
    first = statistic(*screen.arguments, CONFIG, null_perturbations=MANY)
    order = np.random.default_rng(5).permutation(len(screen.names))
    again = statistic(
        screen.vectors[order] * 7,
        [screen.names[i] for i in order],
        [screen.batches[i] for i in order],
        screen.is_control[order],
        CONFIG,
        null_perturbations=MANY,
    )
    assert column(again, "p_value") == pytest.approx(column(first, "p_value"))


@pytest.mark.parametrize("statistic", BOTH)
def test_a_seed_repeats_a_run_and_another_changes_it(statistic):
    screen = make_screen()
    first, again = (column(statistic(*screen.arguments, CONFIG), "p_value") for _ in range(2))
    other = column(statistic(*screen.arguments, dataclasses.replace(CONFIG, seed=1)), "p_value")
    assert first == again
    assert first != other


@pytest.mark.parametrize("statistic", BOTH)
def test_a_sample_of_a_large_group_is_tested(statistic):
    screen = make_screen()
    large = dataclasses.replace(screen, names=["big" if n.startswith("inert") else n for n in screen.names])
    signal = statistic(*large.arguments, dataclasses.replace(CONFIG, max_rows=10))
    assert (column(signal, "n_tested")["big"], column(signal, "n_rows")["big"]) == (10, 144)


@pytest.mark.parametrize("null", [(), MANY], ids=["random", "named"])
@pytest.mark.parametrize(("statistic", "least"), [(consistency, 2), (magnitude, 5)])
def test_too_few_rows_have_no_value_and_say_why(statistic, least, null):
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
    signal = statistic(*few.arguments, CONFIG, null_perturbations=null)
    assert column(signal, "value")["active 00"] is None
    assert column(signal, "p_value")["active 00"] is None
    reason = column(signal, "reason")["active 00"]
    assert reason.startswith(f"{least - 1} finite rows")
    assert reason.endswith(f"expected at least {least}")
    assert column(signal, "reason")["active 01"] == ""
    assert signal.n_defined == 27 - len(null)


@pytest.mark.parametrize("statistic", BOTH)
def test_rows_that_are_not_finite_are_left_out_and_counted(statistic):
    screen = make_screen()
    broken = screen.vectors.copy()
    own = [i for i, name in enumerate(screen.names) if name == "active 00"]
    broken[own[0], 3], broken[-1, 0] = np.nan, np.inf
    keep = np.isfinite(broken).all(axis=1)
    signal = statistic(broken, *screen.arguments[1:], CONFIG, null_perturbations=MANY)
    without = statistic(
        broken[keep],
        [n for n, k in zip(screen.names, keep, strict=True) if k],
        [b for b, k in zip(screen.batches, keep, strict=True) if k],
        screen.is_control[keep],
        CONFIG,
        null_perturbations=MANY,
    )
    assert column(signal, "value") == column(without, "value")
    assert column(signal, "n_not_finite")["active 00"] == 1
    assert column(signal, "n_rows")["active 00"] == 5
    assert sum(column(signal, "n_not_finite").values()) == 1


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_representation_that_collapsed_has_no_signal(statistic, value):
    """All vectors equal: ties are not significant against random rows, and have no p against named ones."""
    screen = make_screen()
    flat = np.full_like(screen.vectors, value)
    random = statistic(flat, *screen.arguments[1:], CONFIG)
    assert set(column(random, "p_value").values()) == {1.0}
    named = statistic(flat, *screen.arguments[1:], CONFIG, null_perturbations=MANY)
    assert named.n_defined == 0
    assert set(column(named, "reason").values()) == {"all null perturbations have the same value"}


@pytest.mark.parametrize("statistic", BOTH)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float32])
def test_numbers_of_any_type_give_what_doubles_give(statistic, dtype):
    screen = make_screen()
    rounded = np.round(screen.vectors * 10).astype(dtype)
    expected = statistic(rounded.astype(np.float64), *screen.arguments[1:], CONFIG)
    assert statistic(rounded, *screen.arguments[1:], CONFIG).table.equals(expected.table)


def test_magnitude_without_controls_is_an_error_and_consistency_is_not():
    screen = make_screen(n_controls=0)
    with pytest.raises(ValueError, match=r"no finite control row.*plate map"):
        magnitude(*screen.arguments, CONFIG)
    assert consistency(*screen.arguments, CONFIG).n_defined == 28


@pytest.mark.parametrize("statistic", BOTH)
def test_a_null_that_is_not_in_the_screen_is_an_error(statistic):
    screen = make_screen()
    with pytest.raises(ValueError, match=r"none of 1 null perturbations \(OR4F5\) is in the screen"):
        statistic(*screen.arguments, CONFIG, null_perturbations=["OR4F5"])
    with pytest.raises(ValueError, match=r"4 null perturbations .* no p-value can be 0\.05\. Name 19 or more"):
        statistic(*screen.arguments, CONFIG, null_perturbations=MANY[:4])


@pytest.mark.parametrize("statistic", BOTH)
def test_arguments_that_do_not_fit_are_refused(statistic):
    screen = make_screen()
    with pytest.raises(ValueError, match="183 perturbations"):
        statistic(screen.vectors, screen.names[:183], screen.batches, screen.is_control, CONFIG)
    with pytest.raises(ValueError, match="expected \\(N, D\\)"):
        statistic(screen.vectors[:, 0], *screen.arguments[1:], CONFIG)


@pytest.mark.parametrize(("field", "value"), [("alpha", 1.0), ("n_draws", 0), ("max_controls", 0), ("max_rows", 4)])
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
    assert signal.n_defined == 102  # the treated wells of lactacystin's week are its own
    assert signal.significant.low > 0.4
    whole = consistency(features, treatments, ["all"] * len(weeks), is_control, SignalConfig(n_draws=499))
    assert (whole.n_defined, whole.significant.low > 0.8) == (103, True)
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
