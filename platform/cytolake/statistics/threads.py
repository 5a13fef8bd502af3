"""Limits of the threads that BLAS and OpenMP take, in one place because finding the libraries is what costs."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Literal

from threadpoolctl import ThreadpoolController


def limited_threads(
    n_threads: int | None = 1, *, of: Literal["blas", "openmp"] | None = None
) -> AbstractContextManager[Any]:
    """Context in which the numerical libraries of this process take at most so many threads; after it, as before.

    Args:
        n_threads: None limits nothing, and still restores the numbers of before at the end.
        of: Only the threads of this interface.
    """
    limited: AbstractContextManager[Any] = _libraries(len(sys.modules)).limit(limits=n_threads, user_api=of)
    return limited


@lru_cache(maxsize=1)  # to find them is to look at every loaded file: 20 ms with torch and Arrow (measured 2026-11)
def _libraries(_n_modules: int) -> ThreadpoolController:
    """The libraries that are loaded; more come with imports only."""
    return ThreadpoolController()
