"""Errors that a person can act on: one sentence on stderr, without a stack.

Exit status 2 where the command's input was wrong, 1 where its work was stopped: out of memory, a failed training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_STOPPED, EXIT_BAD_INPUT = 1, 2


@contextmanager
def exits_on_bad_input(traceback: bool | None = None) -> Iterator[None]:
    """Print an error about the input, or what stopped the work, as one sentence and exit; with `traceback`, raise it.

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
    except Exception as error:
        stopped = "" if traceback else _stopped(error)
        if not stopped:
            raise
        print_error(stopped, has_traceback=traceback is not None)
        raise typer.Exit(EXIT_STOPPED) from None


def _stopped(error: Exception) -> str:
    """What stopped the work and what to do, where a person can do something about it; else empty.

    Only modules that the command has imported anyway can have raised such an error.
    """
    train = sys.modules.get("cytolake.train.pretrain")
    if train is not None and isinstance(error, train.PretrainError):
        return str(error)
    if "ray" not in sys.modules:
        return ""
    from cytolake.catalog.ray_memory import out_of_memory

    memory = out_of_memory(error)
    next_step = "Close other programs, or give the job fewer CPUs (ray.cpus of the recipe). Then run it again."
    return f"{memory} {next_step} What is finished is not computed again." if memory else ""


def print_bad_input(error: BaseException, *, has_traceback: bool) -> None:
    """Report what was wrong with the input, without the stack.

    Args:
        has_traceback: Whether the command has the option `--traceback`.
    """
    # An error raised in a Ray worker arrives wrapped in the worker's traceback, with the original as its cause.
    cause = getattr(error, "cause", None)
    original = cause if isinstance(cause, BaseException) else error
    text = str(original.args[0]) if isinstance(original, KeyError) and original.args else str(original)
    print_error(text, has_traceback=has_traceback)


def print_error(text: str, *, has_traceback: bool) -> None:
    """Print what is wrong on stderr, and how to see more where the command has an option for it."""
    from rich.console import Console
    from rich.markup import escape

    hint = "\n[dim]--traceback shows where this was noticed[/]" if has_traceback else ""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {escape(text)}{hint}")
