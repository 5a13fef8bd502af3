"""Run trials with Ray Tune: a list of calls, or settings that a searcher proposes. Nothing else starts Ray Tune.

Actors take one trial after another: in a process that has started and imported, a trial costs only its own work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cytolake.train.config import PretrainConfig

Call = tuple[Callable[..., Any], tuple[Any, ...]]
Settings = dict[str, Any]
Results = list[dict[str, Any]]
TakeStep = Callable[[Settings, int], Mapping[str, Any]]
"""One step of a trial: from its settings and the number of its earlier steps to a result; `done` in the last one."""


def run_calls(
    calls: Sequence[Call],
    *,
    name: str,
    storage: Path,
    resources: Mapping[str, float],
    concurrent: int = 0,
    on_done: Callable[[int], None] | None = None,
) -> list[Any]:
    """Run every call as a trial, and return their results in the order of the calls.

    Args:
        calls: Function and arguments of each, picklable; a result is a number or a text.
        name: Folder of the trials under `storage`.
        storage: Folder for what Ray Tune writes.
        resources: What each trial reserves, as Ray names it.
        concurrent: Most trials at the same time; 0 means as many as the resources allow.
        on_done: Called with the place of each call that returned.

    Raises:
        Exception: The error of a call. Calls that are running are ended; what finished calls wrote stays.
    """
    from ray import tune

    values: dict[int, Any] = {}

    def take_step(settings: Settings, n_steps: int) -> Mapping[str, Any]:
        function, arguments = calls[settings["number"]]
        return {"value": function(*arguments), "done": True}

    def end(settings: Settings, results: Results) -> None:
        values[settings["number"]] = results[-1]["value"]
        if on_done is not None:
            on_done(settings["number"])

    _run(
        take_step,
        ("number",),
        param_space={"number": tune.grid_search(list(range(len(calls))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent or None, reuse_actors=True),
        name=name,
        storage=storage,
        resources=resources,
        on_end=end,
    )
    return [values[number] for number in range(len(calls))]


def run_search(
    take_step: TakeStep,
    names: Sequence[str],
    searcher: Any,
    *,
    n_trials: int,
    scheduler: Any,
    name: str,
    storage: Path,
    resources: Mapping[str, float],
    concurrent: int = 0,
    on_begin: Callable[[Settings], None],
    on_end: Callable[[Settings, Results], None],
) -> None:
    """Run trials whose settings a searcher proposes; each step returns a `score`, higher is better.

    Args:
        take_step: Picklable.
        names: Names of the settings.
        searcher: A `ray.tune.search.Searcher`.
        n_trials: Trials in all.
        scheduler: Ray Tune's, which may stop a trial between two steps; None stops none.
        name, storage, resources, concurrent: As of `run_calls`.
        on_begin: Called with the settings of each trial that begins.
        on_end: Called with the settings and all results of each trial that ended or was stopped.

    Raises:
        Exception: The error of a step; the other trials are ended.
    """
    from ray import tune

    _run(
        take_step,
        names,
        param_space=None,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=n_trials,
            max_concurrent_trials=concurrent or None,
            reuse_actors=True,
        ),
        name=name,
        storage=storage,
        resources=resources,
        on_begin=on_begin,
        on_end=on_end,
    )


def trial_resources(training: PretrainConfig, concurrent: int = 0) -> tuple[dict[str, float], int]:
    """Resources of a trial that trains, and how many such trials may run at once; 0 means as resources allow.

    A training with workers of its own brings their resources, so its trial reserves none and one runs at a time. A
    training without workers reserves a CPU for each of its threads, and a GPU where it uses one.
    """
    if training.workers:
        # Ray needs a trial to reserve something: a byte of memory.
        return {"cpu": 0, "memory": 1}, concurrent or 1
    return {"cpu": max(1, training.threads), **({"gpu": 1} if training.use_gpu else {})}, concurrent


def _run(
    take_step: TakeStep,
    names: Sequence[str],
    *,
    param_space: dict[str, Any] | None,
    tune_config: Any,
    name: str,
    storage: Path,
    resources: Mapping[str, float],
    on_begin: Callable[[Settings], None] | None = None,
    on_end: Callable[[Settings, Results], None],
) -> None:
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    reference = ray.put(take_step)

    class CallTrainable(tune.Trainable):
        def setup(self, config: Settings) -> None:
            self.take_step: TakeStep = ray.get(reference)
            self.reset_config(config)

        def reset_config(self, new_config: Settings) -> bool:
            self.settings, self.n_steps = {each: new_config[each] for each in names}, 0
            return True

        def step(self) -> dict[str, Any]:
            result = dict(self.take_step(self.settings, self.n_steps))
            self.n_steps += 1
            return result

        # Ray saves a trial at its end. What a trial has to keep is stored by its own function.
        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    class Events(tune.Callback):
        def __init__(self) -> None:
            self.results: dict[str, Results] = {}

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            if on_begin is not None:
                on_begin({each: trial.config[each] for each in names})

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            self.results.setdefault(trial.trial_id, []).append(dict(result))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            on_end({each: trial.config[each] for each in names}, self.results.pop(trial.trial_id, []))

    fitted = tune.Tuner(
        tune.with_resources(CallTrainable, dict(resources)),
        param_space=param_space,
        tune_config=tune_config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            callbacks=[Events()],
            failure_config=tune.FailureConfig(fail_fast=True),
        ),
    ).fit()
    for number in range(len(fitted)):
        error = fitted[number].error
        if error is not None:
            raise error
