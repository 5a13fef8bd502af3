"""Score the chosen representation and its baselines on every label, batch leakage included."""

import _checkout  # noqa: F401  isort: skip

from cytolake.line.command import run_job
from cytolake.line.stages import benchmark

if __name__ == "__main__":
    run_job(benchmark, __doc__)
