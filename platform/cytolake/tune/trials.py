"""Calls as trials of Ray Tune, in actors that take one after another: a process that is warm costs a trial nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cytolake.train.config import PretrainConfig

Call = tuple[Callable[..., float], tuple[Any, ...]]


def run_trials(
    calls: Sequence[Call],
    trainings: Sequence[PretrainConfig],
    storage: Path,
    concurrent: int = 0,
    told: Callable[[int], None] | None = None,
) -> list[float]:
    """Make every call, as many at once as the cluster has room for; what each gave, in their order.

    Args:
        calls: Function and arguments of each; they and the result must be picklable.
        trainings: The training of each call, alike in what they need.
        storage: Folder for what Ray Tune writes of trials.
        concurrent: At most this many at once; 0 means no limit but resources.
        told: Called with the number of calls that are done.

    Raises:
        Exception: What a call raised; calls that were running are ended, and those that were done are done.
    """
    import ray
    from ray import tune
    from ray.tune import Callback

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    training = trainings[0]
    results: dict[int, float] = {}
    references = [ray.put(call) for call in calls]

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.number = config["number"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.number = new_config["number"]
            return True

        def step(self) -> dict[str, Any]:
            function, arguments = ray.get(references[self.number])
            return {"number": self.number, "value": function(*arguments), "done": True}

        # What a trial made is kept by the call itself; Ray saves at the end all the same.
        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    class Done(Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if "value" in result:
                results[result["number"]] = result["value"]
                if told is not None:
                    told(len(results))

    resources, at_once = resources_of_trial(training, concurrent)
    fitted = tune.Tuner(
        tune.with_resources(Trial, resources),
        param_space={"number": tune.grid_search(list(range(len(calls))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once or None, reuse_actors=True),
        run_config=tune.RunConfig(
            name="study",
            storage_path=str(storage),
            verbose=0,
            callbacks=[Done()],
            failure_config=tune.FailureConfig(fail_fast=True),
        ),
    ).fit()
    for number in range(len(fitted)):
        error = fitted[number].error
        if error is not None:
            raise error
    return [results[number] for number in range(len(calls))]


def resources_of_trial(training: PretrainConfig, concurrent: int = 0) -> tuple[dict[str, float], int]:
    """What a trial of such a training holds, and how many may run at once, 0 for no limit but resources.

    A training with workers of its own brings their resources, so its trial holds none and one runs at a time. One
    without workers holds a CPU for each of its threads, and a GPU where it is told to use one.
    """
    if training.workers:
        # Ray wants a trial to hold something: a byte of memory.
        return {"cpu": 0, "memory": 1}, concurrent or 1
    return {"cpu": max(1, training.threads), **({"gpu": 1} if training.use_gpu else {})}, concurrent
