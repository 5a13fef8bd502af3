"""Run the whole line: simulate or find plates, ingest, curate, pretrain, embed, probe, promote, report."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import pipeline

if __name__ == "__main__":
    run_job(pipeline, __doc__)
