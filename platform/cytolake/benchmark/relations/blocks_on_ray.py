"""Blocks of cosines as Ray tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from cytolake.benchmark.relations.cosine_blocks import BlockCounts, BlockTask, Floats
from cytolake.catalog.ray_tasks import run_tasks


def on_ray(
    function: Callable[[Floats, BlockTask], BlockCounts], unit_MD: Floats, tasks: Sequence[BlockTask]
) -> list[BlockCounts]:
    """A `map_blocks` for `relationship_recall`: the vectors go to each machine once.

    Without Ray the blocks run here, one after the other, to the same result.
    """
    ray = sys.modules.get("ray")
    shared = ray.put(unit_MD) if ray is not None and ray.is_initialized() and len(tasks) > 1 else unit_MD
    return run_tasks(function, ((shared, task) for task in tasks), len(tasks), "cosines")
