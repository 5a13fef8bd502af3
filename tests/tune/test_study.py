"""Which trials a study has, and a study on a small screen: trained once, evaluated once, and continued."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tests.embed.small_screen import CHANNELS, SIZE, SmallScreen
from tests.tune.small_training import SMALL_TRAINING

from cytolake.models import ModelConfig
from cytolake.models.objectives import ObjectiveConfig
from cytolake.reports.study_page import study_summary, study_text, write_study
from cytolake.tracking import TrackingConfig
from cytolake.train.pretrain import finished_run
from cytolake.tune.study import run_study, study_trials
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.study_probe import DENSITY, pin_study_probe

CONFIG = StudyConfig(
    objectives=("mae", "simclr"), knobs=("noise", "mask_ratio"), strengths=(0.0, 0.5, 0.9), seeds=(0, 1),
    split_seeds=(0, 1), crops=80,
)  # fmt: skip
BASE = dataclasses.replace(SMALL_TRAINING, steps=2, workers=2)


def test_strength_0_is_trained_once_and_invalid_strengths_not_at_all():
    trials, skipped = study_trials(CONFIG, BASE)
    places = {(trial.objective, trial.knob, trial.strength, trial.seed) for trial in trials}
    assert len(places) == len(trials)
    assert ("simclr", "mask_ratio", 0.5, 0) not in places
    assert skipped["simclr, mask_ratio"] == "only the masked autoencoder masks"
    assert "nothing would be hidden" in skipped["mae, mask_ratio 0"]
    assert skipped["mae, mask_ratio"] == "has 2 different settings at these strengths, and a curve needs three"
    assert {trial.pretrain.workers for trial in trials} == {0}
    several = dataclasses.replace(CONFIG, objectives=("simclr",), knobs=("noise", "gamma"))
    trials, _ = study_trials(several, BASE)
    assert len(trials) == 12
    assert len({trial.pretrain for trial in trials}) == 10  # two seeds of strength 0 are shared


def test_knobs_that_change_nothing_the_encoder_gets_are_not_trained():
    knobs = ("gain", "offset", "channel_shuffle", "noise", "flip_rotate")
    config = dataclasses.replace(CONFIG, objectives=("simclr",), knobs=knobs)
    trials, skipped = study_trials(config, BASE)
    assert {trial.knob for trial in trials} == {"noise"}
    assert "each channel of a crop is standardised" in skipped["simclr, gain"]
    assert "each channel of a crop is standardised" in skipped["simclr, offset"]
    assert "does not depend on the order of the channels" in skipped["simclr, channel_shuffle"]
    # One training cannot stand for several strengths: its luck would count several times.
    assert skipped["simclr, flip_rotate"] == "has 2 different settings at these strengths, and a curve needs three"


def test_objectives_that_a_resnet_cannot_take_are_skipped_with_the_reason():
    model = ModelConfig(architecture="resnet", channels=CHANNELS, crop_size=SIZE)
    base = dataclasses.replace(BASE, model=model, objective=ObjectiveConfig(name="simsiam"))
    config = dataclasses.replace(CONFIG, objectives=("mae", "simsiam", "moco_v2_plus"), knobs=("noise",))
    trials, skipped = study_trials(config, base)
    assert {trial.objective for trial in trials} == {"simsiam", "moco_v2_plus"}
    assert "a resnet has none" in skipped["mae"]


def test_every_encoder_is_evaluated_on_the_same_crops(small_screen: SmallScreen):
    catalog, pack = small_screen.catalog, small_screen.pack
    probe = pin_study_probe(catalog, pack, CONFIG)
    evaluation = probe.evaluate(small_screen.checkpoints["trained"])
    confusion = np.array(evaluation["confusion"])
    tests = [is_test[probe.data.well_of_crop] for is_test in probe.tests]
    label = probe.data.label_of_well[probe.data.well_of_crop]
    assert confusion.sum() == sum((is_test & (label >= 0)).sum() for is_test in tests)
    assert set(evaluation["agreement"]) >= {"perturbation", "plate", "batch"}
    assert DENSITY not in evaluation["agreement"], "these crops have no share of foreground"
    assert pin_study_probe(catalog, pack, CONFIG).key == probe.key
    assert pin_study_probe(catalog, pack, dataclasses.replace(CONFIG, block=0)).key != probe.key
    with pytest.raises(ValueError, match=r"wells\.gene has 0 classes"):
        pin_study_probe(catalog, pack, dataclasses.replace(CONFIG, label="gene"))


def test_a_study_trains_each_once_and_a_second_call_nothing(small_screen: SmallScreen, calls_in_process, tmp_path):
    config = dataclasses.replace(CONFIG, objectives=("simclr",), knobs=("noise",))
    tracking = TrackingConfig()
    reported: list[tuple[int, int]] = []
    first = run_study(
        small_screen.catalog, small_screen.pack, config, BASE, tracking, lambda _, done, n: reported.append((done, n))
    )
    assert (first.n_trials, first.n_trained) == (6, 6)
    assert reported[0] == (0, 6)
    assert reported[-1] == (6, 6)
    assert first.trial_seconds > 0
    (curve,) = first.curves
    assert (curve.objective, curve.knob) == ("simclr", "noise")
    assert curve.accuracy.shape == (3, 2)
    assert curve.effects.gap.value >= 0
    assert curve.agreement["plate"].shape == (3, 2)

    trial = study_trials(config, BASE)[0][3]
    finished = finished_run(small_screen.pack.pack_id, trial.pretrain, small_screen.catalog.root / "runs")
    assert finished is not None
    evaluation = json.loads(next(finished.run_folder.glob("study_*.json")).read_text())
    lost = next(finished.run_folder.glob("study_*.json"))
    lost.unlink()  # as after a kill between training and evaluation
    weights = finished.checkpoint.stat().st_mtime_ns
    second = run_study(small_screen.catalog, small_screen.pack, config, BASE, tracking)
    assert (second.n_trials, second.n_trained) == (6, 1)
    assert finished.checkpoint.stat().st_mtime_ns == weights, "evaluated again, not trained again"
    assert json.loads(lost.read_text()) == evaluation
    third = run_study(small_screen.catalog, small_screen.pack, config, BASE, tracking)
    assert (third.n_trained, third.trial_seconds) == (0, 0)
    np.testing.assert_array_equal(third.curves[0].accuracy, first.curves[0].accuracy)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.at(small_screen.catalog.root).uri)
    experiment = client.get_experiment_by_name("cytolake")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    studies = [run for run in runs if run.info.run_name == "study"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") in {r.info.run_id for r in studies}]
    assert len(children) == 6
    assert {run.data.tags["study.strength"] for run in children} == {"0", "0.5", "0.9"}

    page = write_study(tmp_path / "study.html", "Study", first, config)
    assert page.read_text().count("<svg") == 2
    assert study_summary(first) in page.read_text()
    assert study_text(first).renderables[0] == study_summary(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knobs": ("hue",)}, "study.knobs has hue"),
        ({"strengths": (0.0, 1.0)}, "three or more"),
        ({"strengths": (0.0, 0.5, 2.0)}, "from 0 to 1"),
        ({"seeds": ()}, "study.seeds is empty"),
    ],
)
def test_an_invalid_study_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
