"""Judge every site, choose crops, and write them into a pack."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import curate

if __name__ == "__main__":
    run_job(curate, __doc__)
