"""Register the chosen representation in MLflow and give it the alias that serving follows."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("promote")
