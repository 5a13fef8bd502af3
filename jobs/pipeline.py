"""Run all stages: simulate or find plates, ingest, curate, pretrain, embed, probe, promote, report."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("pipeline")
