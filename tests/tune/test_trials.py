"""Calls as real trials of Ray Tune: their order, their errors, and what they reserve."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.tune.small_training import SMALL_TRAINING

from cytolake.tune.trials import run_calls, trial_resources


def test_results_are_in_the_order_of_calls_and_an_error_ends_the_run(local_ray: None, tmp_path: Path):
    done: list[int] = []
    calls = [(divmod, (7, 2)), (str, ("text",)), (max, (3, 5))]
    options = {"storage": tmp_path, "resources": {"cpu": 1}, "concurrent": 2}
    values = run_calls([(repr, (call[0](*call[1]),)) for call in calls], name="calls", on_done=done.append, **options)
    assert values == ["(3, 1)", "'text'", "5"]
    assert sorted(done) == [0, 1, 2]

    ended: list[int] = []
    with pytest.raises(Exception, match="could not convert string to float: 'no number'"):
        run_calls([(float, ("1",)), (float, ("no number",))], name="error", on_done=ended.append, **options)
    assert set(ended) <= {0}


def test_a_trial_reserves_the_threads_of_its_training_and_nothing_for_workers():
    assert trial_resources(dataclasses.replace(SMALL_TRAINING, threads=3), 2) == ({"cpu": 3}, 2)
    assert trial_resources(dataclasses.replace(SMALL_TRAINING, use_gpu=True)) == ({"cpu": 1, "gpu": 1}, 0)
    assert trial_resources(dataclasses.replace(SMALL_TRAINING, workers=2)) == ({"cpu": 0, "memory": 1}, 1)
