"""`run_calls` without Ray Tune, which test_trials.py and test_sweep.py run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def run_in_process(calls: Sequence[Any], *, on_done: Any = None, **_: Any) -> list[Any]:
    """Call one after another."""
    values = []
    for number, (function, arguments) in enumerate(calls):
        values.append(function(*arguments))
        if on_done is not None:
            on_done(number)
    return values
