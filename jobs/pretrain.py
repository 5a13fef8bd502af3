"""Train an encoder on the newest pack of the recipe's curation."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("pretrain")
