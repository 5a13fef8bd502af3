"""Tables of `pretrain --dry-run`: facts of the run, memory and speed by number of GPUs, and the FSDP plan."""

from __future__ import annotations

import math
import re

from rich.console import Group, RenderableType
from rich.table import Table

from cytolake.models import ModelConfig
from cytolake.train.dry_run import DryRun


def dry_run_tables(found: DryRun) -> Group:
    """All of it, for a terminal."""
    warnings = [f"[yellow]augment.{name} {why}[/]" for name, why in found.without_effect.items()]
    plan: list[RenderableType] = (
        [] if found.config.model.is_convolutional else ["", _plan_table(found)]
    )  # which is not sharded
    return Group(_facts(found), *warnings, "", *_memory_table(found), *plan)


def _digits(value: float, decimals: int = 1) -> str:
    """A number with so many decimals, or more where that would leave fewer than two digits of it."""
    return f"{value:,.{decimals}f}" if value >= 10 ** (1 - decimals) or not value else f"{value:.2g}"


def _facts(found: DryRun) -> Table:
    cost, config, model = found.cost, found.config, found.config.model
    parameters = f"encoder {_digits(cost.encoder_parameters / 1e6)} M, rest {_digits(cost.other_parameters / 1e6)} M"
    if cost.teacher_parameters:
        parameters += f", teacher {_digits(cost.teacher_parameters / 1e6)} M"
    recomputed = f" and {_digits(cost.recompute_flops / 1e9, 0)} to recompute" if config.recompute else ""
    source = "as given" if found.is_mfu_given else "as published runs reach"
    if model.is_convolutional and not found.is_mfu_given:
        source = "as published runs of vision transformers reach"
    if found.n_samples is None or found.gpu_hours is None:
        run = f"{config.epochs} epochs of a pack that does not exist yet; no pretrain.steps"
        hours = f"{found.gpu_hours_per_million:,.4g} for each million crops of the pack"
    else:
        pack = "" if found.n_crops is None else f" of {found.n_crops:,}"
        run = f"{found.n_samples:,} crops{pack} in {found.n_steps:,} steps of up to {config.minibatch_size:,}"
        hours = f"{found.gpu_hours:,.4g}" if found.gpu_hours < 1000 else f"{found.gpu_hours:,.0f}"
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column()
    shown.add_row(
        "model",
        _described(model),
    )
    shown.add_row(
        "training",
        f"{config.objective.name}, {config.optimiser}, {config.parallel}{', recompute' if config.recompute else ''}",
    )
    shown.add_row("parameters", parameters)
    shown.add_row("tokens", f"{cost.tokens:,.0f} a crop")
    shown.add_row("training", f"{_digits(cost.training_flops / 1e9, 0)} GFLOP a crop{recomputed}")
    shown.add_row("inference", f"{_digits(cost.inference_flops / 1e9, 0)} GFLOP a crop")
    shown.add_row("GPU", f"{found.device.name}, {found.device.peak_tflops:g} TFLOP/s, {found.device.memory_gb:g} GB")
    shown.add_row("speed", f"{1 / found.seconds_per_crop:,.0f} crops/s on one, {found.mfu:.1%} of its peak, {source}")
    shown.add_row("run", run)
    shown.add_row("GPU-hours", hours)
    return shown


def _described(model: ModelConfig) -> str:
    if model.is_convolutional:
        return f"{model.resnet} with a {model.stem} stem, {len(model.channels)} stains, crops of {model.crop_size} px"
    return (
        f"{model.architecture} of {model.depth} x {model.width}, {model.heads} heads, patches of "
        f"{model.patch_size} px, crops of {model.crop_size} px"
    )


def _memory_table(found: DryRun) -> list[RenderableType]:
    """Memory and speed by number of GPUs, up to the first number that leaves one crop of a step to each."""
    columns = ("GPUs", "crops each", "weights", "activations", "all", "", "crops/s", "hours")
    shown = Table(*columns, box=None, pad_edge=False)
    for i, column in enumerate(shown.columns):
        column.justify, column.no_wrap = "left" if i == 5 else "right", True
    for on in found.on_gpus:
        shown.add_row(
            f"{on.n_gpus:,}",
            f"{on.crops_per_gpu:,}",
            f"{_digits(on.state_bytes / 1e9)} GB",
            f"{_digits(on.activation_bytes / 1e9)} GB",
            f"{_digits(on.memory_bytes / 1e9)} GB",
            "fits" if on.fits else "[bold red]too much[/]",
            f"{on.crops_per_s:,.0f}",
            "" if on.hours is None else _digits(on.hours),
        )
        if on.crops_per_gpu == 1 and on is not found.on_gpus[-1]:
            note = f"[dim]more GPUs do not help: a step has {_crops_of_step(found)}, at least one on each GPU[/]"
            return [shown, note]
    return [shown]


def _crops_of_step(found: DryRun) -> str:
    config = found.config
    if config.minibatch_tokens is None:
        return f"{config.minibatch_size:,} crops"
    return f"at most {config.minibatch_size:,} crops, of {config.minibatch_tokens:,} tokens"


def _plan_table(found: DryRun) -> Table:
    """FSDP units, those of the same size as one row."""
    n_gpus = max(1, found.config.workers)
    unit = "FSDP unit" if found.config.parallel == "fsdp" else "unit, with FSDP"
    shown = Table(unit, "units", "parameters", "whole", f"on each of {n_gpus}", box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    alike: dict[tuple[str, int], int] = {}
    for name, size in found.units.items():
        key = (re.sub(r"\.\d+(?=\.|$)", ".*", name) or "all the rest", size)
        alike[key] = alike.get(key, 0) + 1
    for (name, size), n in sorted(alike.items(), key=lambda row: -row[0][1] * row[1]):
        shown.add_row(
            name,
            f"{n:,}",
            f"{size:,}",
            f"{_digits(4 * size / 1e6)} MB",
            f"{_digits(4 * math.ceil(size / n_gpus) / 1e6, 2)} MB",
        )
    return shown
