"""Embed every crop of the pack with every block of the encoder and of its untrained twin."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("embed")
