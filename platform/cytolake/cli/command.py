"""The command line that all jobs share: `--recipe NAME --set field=value`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape

from cytolake.pipeline.config import Line
from cytolake.pipeline.overrides import RecipeError, apply_overrides

Job = Callable[[Line, Console], None]

EXIT_BAD_INPUT = 2

_Recipe = Annotated[
    str,
    typer.Option(
        help="Recipe name (`cytolake recipes` lists them), or a .yaml file; cytolake.yaml here where none is given."
    ),
]
_Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change one field; may be repeated.")
]
_Show = Annotated[bool, typer.Option("--show", help="Print the resolved config as YAML and stop.")]
_Traceback = Annotated[bool, typer.Option("--traceback", help="On bad input, show where it was noticed.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what the job would cost and stop.")]

_Force = Annotated[
    str,
    typer.Option(
        "--force", metavar="REASON", help="Go on where no gain over the baselines is shown; the reason is kept."
    ),
]


def run_job(job: Job, about: str | None, dry_run: Job | None = None, *, can_force: bool = False) -> None:
    """Run a job from this process's command line; the body of every file in jobs/."""
    typer.run(job_command(job, about, dry_run, can_force=can_force))


def job_command(
    job: Job, about: str | None, dry_run: Job | None = None, *, can_force: bool = False
) -> Callable[..., None]:
    """The command of a job: build the config from the recipe, run; bad input ends in a sentence and exit code 2.

    Args:
        job: What to run.
        about: Its help.
        dry_run: What to run instead with `--dry-run`; None gives the command no such option.
        can_force: Whether it takes `--force REASON`, which becomes `promote_without_gain`.
    """

    def run(
        recipe: str, set_: list[str] | None, show: bool, traceback: bool, estimate: Job | None = None, force: str = ""
    ) -> None:
        from cytolake.recipes import build_recipe  # recipes stand above the line; only a command may look up to them

        console = Console(highlight=False, soft_wrap=True)
        with bad_input_told(traceback):
            line = apply_overrides(build_recipe(recipe), set_ or [])
            if force:
                line = dataclasses.replace(line, promote_without_gain=force)
            if show:
                console.print(escape(show_config(line)), end="")
                return
            if estimate is not None:
                estimate(line, console)
                return
            check_root(line)
            job(line, console)

    def plain(recipe: _Recipe = "", set_: _Set = None, show: _Show = False, traceback: _Traceback = False) -> None:
        run(recipe, set_, show, traceback)

    def with_dry_run(
        recipe: _Recipe = "",
        set_: _Set = None,
        show: _Show = False,
        traceback: _Traceback = False,
        is_dry_run: _DryRun = False,
    ) -> None:
        run(recipe, set_, show, traceback, dry_run if is_dry_run else None)

    def with_force(
        recipe: _Recipe = "",
        set_: _Set = None,
        show: _Show = False,
        traceback: _Traceback = False,
        force: _Force = "",
    ) -> None:
        run(recipe, set_, show, traceback, force=force)

    chosen = with_force if can_force else plain if dry_run is None else with_dry_run
    chosen.__doc__ = about
    return chosen


@contextmanager
def bad_input_told(traceback: bool | None = None) -> Iterator[None]:
    """Turn an error about the input into one sentence on stderr and exit code 2; with `traceback`, let it through.

    Args:
        traceback: What the command was given; None where it has no such option, which is then not recommended.
    """
    try:
        yield
    except (ValueError, LookupError, OSError) as error:
        if traceback:
            raise
        print_bad_input(error, has_traceback=traceback is not None)
        raise typer.Exit(EXIT_BAD_INPUT) from None


def show_config(line: Line) -> str:
    """The whole config as YAML, every default spelled out."""
    return yaml.safe_dump(TypeAdapter(Line).dump_python(line, mode="json"), sort_keys=False)


def print_bad_input(error: BaseException, *, has_traceback: bool) -> None:
    """Report what was wrong with the input, without the stack.

    Args:
        error: What was raised.
        has_traceback: Whether the command has the option `--traceback`.
    """
    # An error raised in a Ray worker arrives wrapped in the worker's traceback, with the original as its cause.
    cause = getattr(error, "cause", None)
    told = cause if isinstance(cause, BaseException) else error
    text = str(told.args[0]) if isinstance(told, KeyError) and told.args else str(told)
    hint = "\n[dim]--traceback shows where this was noticed[/]" if has_traceback else ""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {escape(text)}{hint}")


def check_root(line: Line) -> None:
    """Refuse a relative root inside a submitted job: Ray deletes its working directory when the job ends."""
    in_job = "working_dir_files" in Path.cwd().parts or bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if in_job and not Path(line.root).is_absolute():
        raise RecipeError(
            f"root is {line.root!r}, a relative path, and this is a submitted job, whose working directory is deleted "
            "when it ends. Give a folder that all nodes share: --set root=/shared/cytolake, or CYTOLAKE_ROOT in the "
            "runtime environment."
        )
