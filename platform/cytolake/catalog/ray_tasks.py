"""Runs independent tasks on Ray where it is started, else one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_tasks(
    function: Callable[..., Result],
    tasks: Iterable[tuple[Any, ...]],
    n_tasks: int,
    what: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Results of a function of several arguments, in the order of the tasks.

    Where Ray runs they are Ray tasks, few at a time; without Ray, or with one task, they run here, to the same result.
    Arguments are taken from `tasks` as they are needed.
    """
    results: dict[int, Result] = {}
    ray = sys.modules.get("ray")  # a process that does not use Ray need not wait for its import
    if n_tasks < 2 or ray is None or not ray.is_initialized():
        for position, arguments in enumerate(tasks):
            results[position] = function(*arguments)
            if progress:
                progress(what, position + 1, n_tasks)
        return list(results.values())
    task = ray.remote(function).options(num_cpus=1)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, int] = {}
    waiting = enumerate(tasks)
    try:
        while True:
            while len(running) < most and (taken := next(waiting, None)) is not None:
                running[task.remote(*taken[1])] = taken[0]
            if not running:
                return [results[position] for position in sorted(results)]
            (finished,), _ = ray.wait(list(running), num_returns=1)
            results[running.pop(finished)] = ray.get(finished)
            if progress:
                progress(what, len(results), n_tasks)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
