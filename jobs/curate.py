"""Judge every site, choose crops, and write them into a pack."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("curate")
