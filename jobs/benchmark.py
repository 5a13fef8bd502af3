"""Score every representation on every label and benchmark of the recipe, guard rails included; the leaderboard."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import benchmark

if __name__ == "__main__":
    run_job(benchmark, __doc__)
