"""Embed every crop of the pack with every block of the encoder, and of its untrained twin."""

import _checkout  # noqa: F401  isort: skip

from cytolake.line.command import run_job
from cytolake.line.stages import embed

if __name__ == "__main__":
    run_job(embed, __doc__)
