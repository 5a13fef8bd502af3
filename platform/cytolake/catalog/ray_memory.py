"""Recognises the end of a worker that Ray killed because the machine ran out of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

_KILLED = "running low on memory"
"""In the text of `ray.exceptions.OutOfMemoryError`, and of each error that quotes it."""
_USED = re.compile(r"was ([0-9.]+) ?GB(?: used)? / ([0-9.]+) ?GB")


def out_of_memory(error: BaseException) -> str:
    """What was used of how much, where Ray killed a worker for memory; empty where the error is another one.

    Args:
        error: What Ray raised in this process. The text may be in what it wraps: a failure of each training worker, or
            a cause.
    """
    for text in map(str, _with_causes(error)):
        if _KILLED in text:
            used = _USED.search(text)
            much = f"{float(used[1]):.1f} of {float(used[2]):.1f} GB of the machine were in use, and " if used else ""
            return f"out of memory: {much}Ray ended workers before the machine would stand still."
    return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        yield from getattr(error, "worker_failures", {}).values()  # of Ray Train
        error = error.__cause__ or getattr(error, "cause", None)
