"""`python -m cytolake.cli`: the `cytolake` command where it is not on the PATH, such as in a submitted job."""

from __future__ import annotations

from cytolake.cli.main import app

if __name__ == "__main__":
    app()
