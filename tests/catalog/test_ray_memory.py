from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.v2.api.exceptions import WorkerGroupError

from cytolake.catalog.ray_memory import out_of_memory

# As Ray 2.60's raylet writes it, shortened.
KILLED = """5 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: b8) \
was 22.47GB used / 23.54GB limit (0.954727)
OOM kill reason: Memory usage 24022855680B exceeded threshold of 24012259328B (95.0% of 25276063744B limit)
Object store memory usage: [- objects spillable: 0]
Ray killed 5 worker(s) based on the killing policy
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/. To disable worker killing, \
set the environment variable `RAY_memory_monitor_refresh_ms` to zero."""
WANTED = "out of memory: 22.5 of 23.5 GB of the machine were in use, and Ray"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError(KILLED),
        WorkerGroupError("[Rank 0]:\nended", {0: ValueError("x"), 1: OutOfMemoryError(KILLED)}),
        WorkerGroupError(KILLED, {}),
        caused(RuntimeError("a batch failed"), OutOfMemoryError(KILLED)),
    ],
)
def test_a_worker_that_ray_killed_for_memory_is_recognised_wherever_its_text_is(error):
    assert out_of_memory(error).startswith(WANTED)


def test_a_text_without_figures_is_recognised_and_another_error_is_not():
    found = out_of_memory(OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."))
    assert found.startswith("out of memory: Ray ended")
    assert out_of_memory(ValueError("the file server went away")) == ""
