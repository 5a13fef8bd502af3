"""Ray's calls that the package makes, answered in this process.

A task or actor of Ray runs in a process of its own, which imports everything first: seconds of CPU before the first
line of ours. Here tasks, Ray Data's batches and Ray Tune's trials run one after the other where they are called, with
arguments that were pickled as Ray pickles them. What only Ray can show (processes that die, resources, order of ends)
is tested with the fixture `local_ray`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

N_CPUS = 2


class Reference:
    """A result that is there already."""

    def __init__(self, value: Any) -> None:
        self._pickled = _dumps(value)

    @property
    def value(self) -> Any:
        from ray import cloudpickle

        return cloudpickle.loads(self._pickled)


class FailedReference(Reference):
    """The exception of a task, raised where its result is read."""

    @property
    def value(self) -> Any:
        raise super().value


class Task:
    """What `ray.remote(function)` gives."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._pickled = _dumps(function)

    def options(self, **_: Any) -> Task:
        return self

    def remote(self, *arguments: Any) -> Reference:
        from ray import cloudpickle

        given = [get(each) if isinstance(each, Reference) else Reference(each).value for each in arguments]
        try:
            return Reference(cloudpickle.loads(self._pickled)(*given))
        except Exception as error:
            return FailedReference(error)


class Dataset:
    """What `ray.data.from_arrow(tables)` gives; every table is a block."""

    def __init__(self, blocks: Sequence[pa.Table], call: Callable[[], Callable[[pa.Table], pa.Table]] | None = None):
        self._blocks, self._call, self._batch_size = blocks, call, 0

    def map_batches(
        self,
        function: Any,
        *,
        batch_size: int | None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Dataset:
        sent = Reference((function, dict(fn_constructor_kwargs or {})))

        def call() -> Callable[[pa.Table], pa.Table]:
            received, settings = sent.value
            return received(**settings) if isinstance(received, type) else received

        mapped = Dataset(self._blocks, call)
        mapped._batch_size = batch_size or 0
        return mapped

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        assert self._call is not None
        function = self._call()
        for block in self._blocks:
            for first in range(0, block.num_rows, self._batch_size or max(1, block.num_rows)):
                yield function(block.slice(first, self._batch_size or None))


class Tuner:
    """Ray Tune's grid over one name, one trial after another."""

    def __init__(self, trainable: Any, *, param_space: Mapping[str, Any], run_config: Any = None, **_: Any) -> None:
        ((self._name, space),) = param_space.items()
        self._values, self._trainable = space["grid_search"], Reference(trainable)
        self._callbacks = (run_config and run_config.callbacks) or []

    def fit(self) -> list[TrialResult]:
        return [self._run(number, value) for number, value in enumerate(self._values)]

    def _run(self, number: int, value: Any) -> TrialResult:
        trial = TrialResult(f"{number:05d}", {self._name: value})
        trainable = self._trainable.value
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ray.tune.report", trial.metrics.update)
                if isinstance(trainable, type):
                    actor = trainable.__new__(trainable)
                    actor.setup(dict(trial.config))
                    while not trial.metrics.get("done"):
                        trial.metrics.update(actor.step())
                        for each in self._callbacks:
                            each.on_trial_result(number, [trial], trial, dict(trial.metrics))
                else:
                    trainable(dict(trial.config))
        except Exception as error:
            trial.error = error
        for each in self._callbacks:
            (each.on_trial_error if trial.error else each.on_trial_complete)(number, [trial], trial)
        return trial


class TrialResult:
    """A trial for callbacks, and its result for the caller."""

    def __init__(self, trial_id: str, config: dict[str, Any]) -> None:
        self.trial_id, self.config = trial_id, config
        self.metrics: dict[str, Any] = {}
        self.error: Exception | None = None


def get(references: Any) -> Any:
    return [each.value for each in references] if isinstance(references, list) else references.value


def _dumps(value: Any) -> bytes:
    from ray import cloudpickle

    return bytes(cloudpickle.dumps(value))


@contextmanager
def ray_in_process() -> Iterator[None]:
    """Until its end `ray` means this process; no daemon is started, and a Ray that runs is not used."""
    import ray.data
    import ray.tune

    def with_parameters(function: Callable[..., Any], **parameters: Any) -> Callable[[dict[str, Any]], Any]:
        sent = Reference(parameters)
        return lambda config: function(config, **sent.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(ray, "cluster_resources", lambda: {"CPU": N_CPUS})
        patch.setattr(ray, "remote", lambda *function, **_: Task(*function) if function else Task)
        patch.setattr(ray, "put", Reference)
        patch.setattr(ray, "get", get)
        patch.setattr(
            ray, "wait", lambda references, num_returns=1, **_: (references[:num_returns], references[num_returns:])
        )
        patch.setattr(ray, "cancel", lambda *_, **__: None)
        patch.setattr(ray.data, "from_arrow", Dataset)
        patch.setattr(ray.tune, "Tuner", Tuner)
        patch.setattr(ray.tune, "with_parameters", with_parameters)
        patch.setattr(ray.tune, "with_resources", lambda trainable, _: trainable)
        yield
