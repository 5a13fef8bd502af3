"""Register the chosen representation in MLflow and give it the alias that serving follows."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import promote

if __name__ == "__main__":
    run_job(promote, __doc__, can_force=True)
