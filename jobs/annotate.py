"""Take the labels of a plate's or a screen's wells from a plate map, without reading a pixel."""

import _checkout  # noqa: F401  isort: skip

import typer

from cytolake.cli.plates import annotate

if __name__ == "__main__":
    typer.run(annotate)
