"""Train an encoder on the newest pack of the recipe's curation."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.dry_run import pretrain_dry_run
from cytolake.pipeline.stages import pretrain

if __name__ == "__main__":
    run_job(pretrain, __doc__, dry_run=pretrain_dry_run)
