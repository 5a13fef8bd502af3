"""Start of the `cytolake` command; `python -m cytolake.cli` where it is not on the PATH, as in a submitted job."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command, or name the extra that it needs: an application's `cytolake[client]` has no commands."""
    try:
        from cytolake.cli.main import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "cytolake":
            raise
        sys.exit(
            f"cytolake: the package {error.name} is not installed. The command needs more than the client: "
            "pip install 'cytolake[all]'."
        )
    app()


if __name__ == "__main__":
    run()
