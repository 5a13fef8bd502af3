"""Write the pages of QC, report and leaderboard again, from what the tables hold."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.command import run_job
from cytolake.pipeline.stages import report

if __name__ == "__main__":
    run_job(report, __doc__)
