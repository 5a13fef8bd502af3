"""Which cases of a test run every time: the boundaries; the others are slow and run in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def fast_cases(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, of which all but the fast ones are marked slow.

    Args:
        cases: All of them.
        fast: Some of them, at least one.
    """
    listed = list(cases)
    missing = [each for each in fast if each not in listed]
    assert not missing, f"no such cases: {missing}"
    return [
        each if each in fast else pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow)
        for each in listed
    ]
