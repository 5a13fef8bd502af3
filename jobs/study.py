"""Train with one augmentation at a time, at several strengths, and compare the classes."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("study")
