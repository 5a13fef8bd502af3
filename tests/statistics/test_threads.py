"""Limits of threads hold inside the context alone, also for libraries that came after the first use."""

from __future__ import annotations

import subprocess
import sys

import numpy as np  # noqa: F401 - brings a BLAS
import sklearn.linear_model  # noqa: F401 - brings OpenMP
from threadpoolctl import threadpool_info

from cytolake.statistics.threads import limited_threads


def threads(of: str = "") -> dict[str, int]:
    return {each["filepath"]: each["num_threads"] for each in threadpool_info() if of in ("", each["user_api"])}


def test_threads_are_limited_inside_and_as_before_after_it():
    with limited_threads(2):
        before = threads()
        assert set(before.values()) == {2}
        with limited_threads():
            assert set(threads().values()) == {1}
        assert threads() == before


def test_one_interface_is_limited_and_the_other_is_not():
    of_openmp = {each["filepath"] for each in threadpool_info() if each.get("threading_layer") == "openmp"}
    with limited_threads(2):
        with limited_threads(1, of="openmp"):
            assert set(threads("openmp").values()) == {1}
            own = {file: n for file, n in threads("blas").items() if file not in of_openmp}
            assert set(own.values()) == {2}
        with limited_threads(1, of="blas"):
            assert set(threads("blas").values()) == {1}


def test_a_library_that_was_loaded_later_is_limited_too():
    program = """
import numpy
from threadpoolctl import threadpool_info
from cytolake.statistics.threads import limited_threads
with limited_threads():
    n_before = len(threadpool_info())
import scipy.linalg
with limited_threads():
    info = threadpool_info()
print(len(info) - n_before, {each["num_threads"] for each in info})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    n_more, found = done.stdout.split(maxsplit=1)
    assert int(n_more) >= 1
    assert found.strip() == "{1}"
