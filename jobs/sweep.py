"""Train and probe once for each value of one setting, with all else fixed."""

import _checkout  # noqa: F401  isort: skip

from cytolake.line.command import run_job
from cytolake.line.stages import sweep

if __name__ == "__main__":
    run_job(sweep, __doc__)
