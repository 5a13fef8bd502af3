"""Runs independent tasks on Ray where it is started, else one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_tasks(
    function: Callable[..., Result],
    tasks: Iterable[tuple[Any, ...]],
    n_tasks: int,
    what: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Results of a function of several arguments, in the order of the tasks; see `iterate_tasks`."""
    results = dict(iterate_tasks(function, tasks, n_tasks, what, progress))
    return [results[position] for position in sorted(results)]


def iterate_tasks(
    function: Callable[..., Result],
    tasks: Iterable[tuple[Any, ...]],
    n_tasks: int,
    what: str,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Position and result of each task, as the results arrive.

    If Ray is running, calls are Ray tasks, few at a time; without Ray, or with one task, they run in this process, with
    the same results. Arguments are taken from `tasks` as they are needed. Closing the iterator cancels running tasks
    and waits for their end.
    """
    ray = sys.modules.get("ray")  # a process that does not use Ray need not wait for its import
    if n_tasks < 2 or ray is None or not ray.is_initialized():
        for position, arguments in enumerate(tasks):
            result = function(*arguments)
            if progress:
                progress(what, position + 1, n_tasks)
            yield position, result
        return
    task = ray.remote(function).options(num_cpus=1)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, int] = {}
    waiting = enumerate(tasks)
    done = 0
    try:
        while True:
            while len(running) < most and (taken := next(waiting, None)) is not None:
                running[task.remote(*taken[1])] = taken[0]
            if not running:
                return
            (finished,), _ = ray.wait(list(running), num_returns=1)
            position, result = running.pop(finished), ray.get(finished)
            done += 1
            if progress:
                progress(what, done, n_tasks)
            yield position, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:  # a cancelled task may still write files until it has ended
            ray.wait(list(running), num_returns=len(running), timeout=60)
