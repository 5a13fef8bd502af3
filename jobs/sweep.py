"""Search for the best settings of the training with Optuna; weak trials stop early (ASHA)."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("sweep")
