"""Errors about a command's input: one sentence on stderr and exit status 2, without a stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_BAD_INPUT = 2


@contextmanager
def exits_on_bad_input(traceback: bool | None = None) -> Iterator[None]:
    """Print an error about the input as one sentence and exit with status 2; with `traceback`, raise it.

    Args:
        traceback: The value of the command's `--traceback`; None where it has no such option, which is then not
            recommended.
    """
    try:
        yield
    except (ValueError, LookupError, OSError) as error:
        if traceback:
            raise
        print_bad_input(error, has_traceback=traceback is not None)
        raise typer.Exit(EXIT_BAD_INPUT) from None


def print_bad_input(error: BaseException, *, has_traceback: bool) -> None:
    """Report what was wrong with the input, without the stack.

    Args:
        has_traceback: Whether the command has the option `--traceback`.
    """
    from rich.console import Console
    from rich.markup import escape

    # An error raised in a Ray worker arrives wrapped in the worker's traceback, with the original as its cause.
    cause = getattr(error, "cause", None)
    original = cause if isinstance(cause, BaseException) else error
    text = str(original.args[0]) if isinstance(original, KeyError) and original.args else str(original)
    hint = "\n[dim]--traceback shows where this was noticed[/]" if has_traceback else ""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {escape(text)}{hint}")
