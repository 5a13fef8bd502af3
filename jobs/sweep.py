"""Search for the best settings of the training: Optuna proposes, trials that fall behind are stopped early."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import sweep

if __name__ == "__main__":
    run_job(sweep, __doc__)
