"""Train an encoder on a curated pack."""

import _checkout  # noqa: F401  isort: skip

from cytolake.line.command import run_job
from cytolake.line.stages import pretrain

if __name__ == "__main__":
    run_job(pretrain, __doc__)
