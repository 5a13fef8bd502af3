"""A search on a small screen through real trials; its ranges, rungs and ledger."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.embed.small_screen import SmallScreen, make_small_screen
from tests.tune.in_process import run_in_process
from tests.tune.small_training import SMALL_TRAINING

from cytolake.pipeline.overrides import RecipeError, apply_overrides
from cytolake.tracking import TrackingConfig
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import finished_run, pretrain, pretrain_until
from cytolake.tune import sweep
from cytolake.tune.paired_seeds import paired_difference
from cytolake.tune.search_space import Range, Vary
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.study_probe import nested_probes, pin_study_probe
from cytolake.tune.sweep import SweepResult, _TrialTraining, run_sweep, rungs_of
from cytolake.tune.sweep_config import SweepConfig
from cytolake.tune.sweep_ledger import Ledger, SweepTrial

EVALUATION = StudyConfig(split_seeds=(0,), crops=60)
BASE = SMALL_TRAINING


@pytest.fixture(scope="module")
def small(small_screen: SmallScreen) -> SmallScreen:
    return small_screen


@pytest.fixture(scope="module")
def vary() -> Vary:
    """Learning rates and mask ratios, as `--set` would. A function of its own, which trials get without this module."""

    def varied(settings: Mapping[str, Any]) -> PretrainConfig:
        base = BASE
        for name, value in settings.items():
            if name == "pretrain.learning_rate":
                base = dataclasses.replace(base, learning_rate=float(value))
            elif name == "pretrain.objective.mae.mask_ratio":
                mae = dataclasses.replace(base.objective.mae, mask_ratio=float(value))
                base = dataclasses.replace(base, objective=dataclasses.replace(base.objective, mae=mae))
            else:
                raise ValueError(f"no field {name}")
        return base

    return varied


@pytest.mark.parametrize(
    ("range_fields", "message"),
    [
        ({"name": "learning_rate", "low": 1, "high": 2}, "expected pretrain. and a field"),
        ({"name": "knob.hue"}, "one of flip_rotate"),
        ({"name": "knob.gamma", "high": 2}, "strengths of a knob from 0 to 1"),
        ({"name": "pretrain.learning_rate", "log": True}, "above 0"),
        ({"name": "pretrain.learning_rate", "low": 2}, "low below high"),
    ],
)
def test_an_invalid_range_is_refused(range_fields, message):
    with pytest.raises(ValueError, match=message):
        Range(**range_fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"searcher": "grid"}, "a list of values for every setting"),
        ({"trials": 0}, "sweep.trials is 0"),
        ({"confirm_seeds": (0,)}, "the search's own seed"),
        ({"space": ()}, "one or more settings"),
    ],
)
def test_an_invalid_sweep_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**change)


def test_a_space_is_written_as_yaml_and_the_range_language_of_before_is_refused_with_an_example():
    space = "[{name: pretrain.learning_rate, low: 3e-4, high: 1e-2, log: true}, {name: knob.gamma, values: [0, 0.5]}]"
    found = apply_overrides(SweepConfig(), [f"space={space}"]).space
    assert found == (
        Range(name="pretrain.learning_rate", low=3e-4, high=1e-2, log=True),
        Range(name="knob.gamma", values=(0, 0.5)),
    )
    with pytest.raises(RecipeError, match=r"found 'knob.gamma=0..1'. Write it as {name: pretrain.learning_rate, low"):
        apply_overrides(SweepConfig(), ["space=[knob.gamma=0..1]"])


def test_the_confirmation_has_wells_that_the_search_neither_trains_nor_tests_on(small: SmallScreen):
    whole = pin_study_probe(small.catalog, small.pack, StudyConfig(split_seeds=(0, 1), crops=80))
    nested = nested_probes(whole)
    assert nested is not None
    search, confirm = nested
    (held_out,) = confirm.tests
    np.testing.assert_array_equal(held_out, whole.tests[0])
    assert len(search.tests) == 2
    of_search = [np.flatnonzero(search.data.label_of_well >= 0), *map(np.flatnonzero, search.tests)]
    assert all(len(wells) and not held_out[wells].any() for wells in of_search)
    vectors = np.random.default_rng(0).normal(size=(len(whole.data.crop_ids), 8)).astype(np.float32)
    n_predicted = len(search.predict(vectors)[0])
    assert n_predicted == sum(
        (search.data.label_of_well[search.data.well_of_crop[t[search.data.well_of_crop]]] >= 0).sum()
        for t in search.tests
    )


def test_a_screen_whose_other_plates_cannot_be_split_again_has_no_nested_probes(tmp_path):
    two = make_small_screen(tmp_path, n_plates=2)
    assert nested_probes(pin_study_probe(two.catalog, two.pack, StudyConfig(split_seeds=(0,), crops=80))) is None


def test_settings_are_compared_seed_by_seed_with_an_interval():
    from scipy.stats import ttest_rel

    ours, theirs = [0.51, 0.62, 0.43, 0.57], [0.50, 0.58, 0.40, 0.55]
    found = paired_difference(ours, theirs)
    expected = ttest_rel(ours, theirs).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.is_evident
    assert not paired_difference(ours, [0.50, 0.64, 0.40, 0.59]).is_evident
    assert not paired_difference([0.9], [0.1]).is_evident
    with pytest.raises(ValueError, match="2 and 1 scores"):
        paired_difference([1.0, 2.0], [1.0])


def test_the_best_of_many_equal_settings_is_not_better_on_new_seeds():
    """Twenty settings without effect: the best is .037 above the rest in the search, and its interval covers 0."""
    random = np.random.default_rng(0)
    n_evident, gains = 0, []
    for _ in range(200):
        search = 0.5 + 0.02 * random.normal(size=20)
        gains.append(search.max() - 0.5)
        again = 0.5 + 0.02 * random.normal(size=(2, 3))
        n_evident += result(tuple(again[0]), tuple(again[1])).verdict.startswith("the best settings are better")
    assert np.mean(gains) > 0.03
    assert n_evident / 200 < 0.06


def result(confirmed: tuple[float, ...], of_recipe: tuple[float, ...]) -> SweepResult:
    return SweepResult([], 1, 0, (), confirmed, of_recipe, 0.5, is_nested=True)


def test_a_search_of_an_augmentation_that_the_encoder_cannot_see_is_refused(small: SmallScreen, vary: Vary):
    config = SweepConfig(space=(Range(name="knob.gamma"), Range(name="knob.gain")))
    with pytest.raises(ValueError, match=r"sweep.space has knob\.gain, which changes nothing that the encoder gets"):
        run_sweep(small.catalog, small.pack, config, EVALUATION, BASE, vary, TrackingConfig())


def test_rungs_grow_by_the_reduction_and_end_with_the_training():
    config = SweepConfig(first_rung=0.1, reduction=3)
    assert rungs_of(1000, config) == [100, 300, 900, 1000]
    assert rungs_of(4, config) == [1, 3, 4]
    assert rungs_of(1000, dataclasses.replace(config, stops_early=False)) == [1000]


def test_a_ledger_knows_what_ended_and_what_was_interrupted(tmp_path):
    ledger = Ledger(tmp_path)
    one, other = {"knob.gamma": 0.25}, {"knob.gamma": 0.75}
    for settings in (one, other):
        ledger.begin(settings)
    ledger.end(SweepTrial(one, {2: 0.5, 4: 0.625}))
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"ended": {"knob.ga')  # torn by a kill
    again = Ledger(tmp_path)
    assert again.ended() == [SweepTrial(one, {2: 0.5, 4: 0.625})]
    assert again.interrupted() == [other]
    assert again.ended()[0].step == 4


def test_a_paused_training_continues_as_if_it_had_not_stopped(small: SmallScreen, tmp_path):
    tracking = TrackingConfig().at(small.catalog.root)
    whole = pretrain(small.pack.path, BASE, tmp_path / "whole" / "runs", tracking)
    runs = tmp_path / "paused" / "runs"
    first = pretrain_until(small.pack.path, BASE, runs, tracking, 1)
    assert first.parent.name == "checkpoint_step_00000001"
    assert finished_run(small.pack.pack_id, BASE, runs) is None
    assert pretrain_until(small.pack.path, BASE, runs, tracking, 1) == first
    pretrain_until(small.pack.path, BASE, runs, tracking, 3)
    continued = pretrain(small.pack.path, BASE, runs, tracking)
    assert continued.model_id == whole.model_id, "weights are the same to the last bit"
    assert pretrain_until(small.pack.path, BASE, runs, tracking, 2) == continued.checkpoint


@pytest.mark.slow
def test_a_search_finds_confirms_and_does_not_train_again(
    small: SmallScreen, local_ray: None, vary: Vary, monkeypatch: pytest.MonkeyPatch
):
    config = SweepConfig(
        space=(Range(name="pretrain.learning_rate", low=1e-4, high=1e-2, log=True), Range(name="knob.gamma")),
        trials=3,
        first_rung=0.25,
        confirm_seeds=(7,),
        concurrent=2,
    )
    reported: list[tuple[str, int, int]] = []
    tracking = TrackingConfig()
    found = run_sweep(
        small.catalog, small.pack, config, EVALUATION, BASE, vary, tracking, lambda *each: reported.append(each)
    )
    assert found.n_ran == len(found.trials) == 3
    assert found.best.step == found.steps == 4
    assert found.best.score == max(trial.score for trial in found.trials if trial.step == 4)
    assert all(set(trial.scores) <= {1, 3, 4} for trial in found.trials)
    assert len(found.confirmed) == len(found.of_recipe) == 1
    assert found.is_nested
    assert found.verdict.startswith("no evidence that the best settings are better than the recipe's own")
    assert found.verdict.endswith("over 1 new seed, on wells that the search did not use")
    assert ("trials", 3, 3) in reported
    assert {text.split("=")[0] for text in found.changes} == {"pretrain.learning_rate", "pretrain.augment.gamma"}
    for trial in found.trials:
        assert 1e-4 <= trial.settings["pretrain.learning_rate"] <= 1e-2

    trials = next((small.catalog.root / "runs" / "sweeps").glob("*/trials.jsonl"))
    lines = trials.read_text().splitlines()
    ended = [line for line in lines if "ended" in json.loads(line)]
    trials.write_text("\n".join(line for line in lines if line != ended[-1]) + "\n")  # as after a kill in the last one
    before = {path: path.stat().st_mtime_ns for path in (small.catalog.root / "runs").rglob("encoder.safetensors")}
    again = run_sweep(small.catalog, small.pack, config, EVALUATION, BASE, vary, tracking)
    assert again.n_ran == 1
    assert sorted(map(str, (trial.settings for trial in again.trials))) == sorted(
        map(str, (trial.settings for trial in found.trials))
    )
    after = {path: path.stat().st_mtime_ns for path in (small.catalog.root / "runs").rglob("encoder.safetensors")}
    changed = {
        path.relative_to(small.catalog.root / "runs").parts[0] for path in before if after.get(path) != before[path]
    }
    assert len(changed) <= 1, "the interrupted one alone, which may rest at another rung now"
    monkeypatch.setattr(sweep, "run_search", lambda *_, **__: pytest.fail("searched again"))
    monkeypatch.setattr(sweep, "run_calls", run_in_process)
    third = run_sweep(small.catalog, small.pack, config, EVALUATION, BASE, vary, tracking)
    assert third.n_ran == 0
    assert third.confirmed == again.confirmed


def test_a_training_that_fails_scores_0_and_ends_its_trial(small: SmallScreen, vary: Vary, tmp_path):
    probe = pin_study_probe(small.catalog, small.pack, EVALUATION)
    tracking = TrackingConfig().at(small.catalog.root)
    training = _TrialTraining(small.pack.path, BASE, vary, probe, (2, 4), tmp_path / "runs", tracking, "")
    failed = training({"pretrain.learning_rate": 1e30}, 0)
    assert (failed["score"], failed["done"]) == (0.0, True)
    assert "loss is" in failed["failure"]
    first, last = (training({"pretrain.learning_rate": 1e-3}, n_steps) for n_steps in (0, 1))
    assert [(each["step"], each["failure"], each["done"]) for each in (first, last)] == [(2, "", False), (4, "", True)]


@pytest.mark.slow
def test_a_grid_tries_each_with_each_and_a_failure_ends_nothing(small: SmallScreen, local_ray: None, vary: Vary):
    config = SweepConfig(
        space=(
            Range(name="pretrain.learning_rate", values=(1e-3, 1e30)),
            Range(name="pretrain.objective.mae.mask_ratio", values=(0.5, 0.75)),
        ),
        searcher="grid",
        stops_early=False,
        confirm_seeds=(),
    )
    found = run_sweep(small.catalog, small.pack, config, EVALUATION, BASE, vary, TrackingConfig())
    tried = {tuple(trial.settings.values()) for trial in found.trials}
    assert tried == {(1e-3, 0.5), (1e-3, 0.75), (1e30, 0.5), (1e30, 0.75)}
    failed = [trial for trial in found.trials if trial.failure]
    assert {trial.settings["pretrain.learning_rate"] for trial in failed} == {1e30}
    assert all("loss is" in trial.failure for trial in failed)
    assert (found.confirmed, found.of_recipe) == ((), ())


def test_a_setting_that_the_training_does_not_have_stops_the_sweep_at_once(small: SmallScreen, vary: Vary):
    config = SweepConfig(space=(Range(name="pretrain.momentum"),))
    with pytest.raises(ValueError, match=r"no field pretrain\.momentum"):
        run_sweep(small.catalog, small.pack, config, EVALUATION, BASE, vary, TrackingConfig())
