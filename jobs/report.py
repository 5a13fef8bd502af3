"""Write the pages of QC, report and leaderboard again, from what the tables hold."""

import _checkout  # noqa: F401  isort: skip

from cytolake.cli.jobs import run_job

if __name__ == "__main__":
    run_job("report")
