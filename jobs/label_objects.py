"""Label cells or other objects of a pooled screen from a table, without reading a pixel."""

import _checkout  # noqa: F401  isort: skip

import typer

from cytolake.cli.plates import label_objects

if __name__ == "__main__":
    typer.run(label_objects)
