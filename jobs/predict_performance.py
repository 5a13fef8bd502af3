"""Predict how well queries of the promoted representation, or prompts of a table, will do."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("predict_performance")
