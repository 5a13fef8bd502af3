"""Train with one augmentation at a time, at several strengths: which classes does it help, and which harm?"""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import study

if __name__ == "__main__":
    run_job(study, __doc__)
