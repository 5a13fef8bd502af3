"""Probe every block of every pooling, and choose the best."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import probe

if __name__ == "__main__":
    run_job(probe, __doc__)
