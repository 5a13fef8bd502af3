"""Score every representation on all labels and benchmarks of the recipe; the leaderboard."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("benchmark")
