"""Predict how well queries of the promoted representation, or prompts of a table, will do before they are used."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import predict_performance

if __name__ == "__main__":
    run_job(predict_performance, __doc__)
