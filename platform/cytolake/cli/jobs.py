"""The jobs: which there are, and the command line that they share, `--recipe NAME --set field=value`."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import set_option

if TYPE_CHECKING:
    from cytolake.pipeline.config import PipelineConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A stage of the pipeline, or all of them, as a command."""

    about: str
    """Its help, and the docstring of its file in jobs/."""
    has_dry_run: bool = False
    """Takes `--dry-run`, which prints what the job would cost."""
    can_force: bool = False
    """Takes `--force REASON`, which becomes `promote_without_gain`."""


JOBS = {
    "ingest": Job(about="Read plates into the catalog: images, plate map, QC metrics, crop grid."),
    "curate": Job(about="Judge every site, choose crops, and write them into a pack."),
    "pretrain": Job(about="Train an encoder on the newest pack of the recipe's curation.", has_dry_run=True),
    "embed": Job(about="Embed every crop of the pack with every block of the encoder and of its untrained twin."),
    "probe": Job(about="Probe every block under every pooling, and choose the best."),
    "sweep": Job(about="Search for the best settings of the training with Optuna; weak trials stop early (ASHA)."),
    "study": Job(about="Train with one augmentation at a time, at several strengths, and compare the classes."),
    "benchmark": Job(about="Score every representation on all labels and benchmarks of the recipe; the leaderboard."),
    "promote": Job(
        about="Register the chosen representation in MLflow and give it the alias that serving follows.",
        can_force=True,
    ),
    "report": Job(about="Write the pages of QC, report and leaderboard again, from what the tables hold."),
    "predict_performance": Job(
        about="Predict how well queries of the promoted representation, or prompts of a table, will do."
    ),
    "pipeline": Job(
        about="Run all stages: simulate or find plates, ingest, curate, pretrain, embed, probe, promote, report."
    ),
}
"""By name; `cytolake.pipeline.stages` has a function of each name."""

_Recipe = Annotated[
    str,
    typer.Option(
        help="Recipe name (`cytolake recipes` lists them), or a .yaml file; cytolake.yaml here where none is given."
    ),
]
_Set = Annotated[list[str] | None, set_option("Change one field; may be repeated.")]
_Show = Annotated[bool, typer.Option("--show", help="Print the resolved config as YAML and stop.")]
_Traceback = Annotated[bool, typer.Option("--traceback", help="On bad input, print the stack.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what the job would cost and stop.")]
_Force = Annotated[
    str,
    typer.Option(
        "--force", metavar="REASON", help="Go on where no gain over the baselines is shown; the reason is stored."
    ),
]


def run_job(name: str) -> None:
    """Run a job from this process's command line; the body of every file in jobs/."""
    typer.run(job_command(name))


def job_command(name: str) -> Callable[..., None]:
    """The command of a job: build the config from the recipe, run; bad input ends in a sentence and exit status 2."""

    def run(
        recipe: str,
        set_: list[str] | None,
        show: bool,
        traceback: bool,
        *,
        is_dry_run: bool = False,
        force: str = "",
    ) -> None:
        started = time.monotonic()
        from rich.console import Console
        from rich.markup import escape

        from cytolake.pipeline.overrides import apply_overrides
        from cytolake.recipes import build_recipe

        console = Console(highlight=False, soft_wrap=True)
        with exits_on_bad_input(traceback):
            config = apply_overrides(build_recipe(recipe), set_ or [])
            if force:
                config = dataclasses.replace(config, promote_without_gain=force)
            if show:
                console.print(escape(show_config(config)), end="")
                return
            if is_dry_run:
                from cytolake.pipeline.dry_run import pretrain_dry_run

                pretrain_dry_run(config, console)
                return
            check_root(config)
            from cytolake.pipeline import stages

            stages.JOBS[name](config, console)
            all_s = time.monotonic() - started  # the stages, the imports, and the start and end of Ray
            console.print(f"[bold]{'in all':<9}[/][dim]{all_s:7.1f} s[/]   from the start of {name}")

    def plain(recipe: _Recipe = "", set_: _Set = None, show: _Show = False, traceback: _Traceback = False) -> None:
        run(recipe, set_, show, traceback)

    def with_dry_run(
        recipe: _Recipe = "",
        set_: _Set = None,
        show: _Show = False,
        traceback: _Traceback = False,
        is_dry_run: _DryRun = False,
    ) -> None:
        run(recipe, set_, show, traceback, is_dry_run=is_dry_run)

    def with_force(
        recipe: _Recipe = "",
        set_: _Set = None,
        show: _Show = False,
        traceback: _Traceback = False,
        force: _Force = "",
    ) -> None:
        run(recipe, set_, show, traceback, force=force)

    job = JOBS[name]
    chosen = with_force if job.can_force else with_dry_run if job.has_dry_run else plain
    chosen.__doc__, chosen.__name__ = job.about, name
    return chosen


def show_config(config: PipelineConfig) -> str:
    """The whole config as YAML, with every default."""
    import yaml
    from pydantic import TypeAdapter

    from cytolake.pipeline.config import PipelineConfig

    return yaml.safe_dump(TypeAdapter(PipelineConfig).dump_python(config, mode="json"), sort_keys=False)


def check_root(config: PipelineConfig) -> None:
    """Refuse a relative root inside a submitted job: Ray deletes its working directory when the job ends."""
    in_job = "working_dir_files" in Path.cwd().parts or bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if in_job and not Path(config.root).is_absolute():
        from cytolake.pipeline.overrides import RecipeError

        raise RecipeError(
            f"root is {config.root!r}, a relative path, and this is a submitted job, whose working directory is "
            "deleted when it ends. Give a folder that all nodes share: --set root=/shared/cytolake, or CYTOLAKE_ROOT "
            "in the runtime environment."
        )
