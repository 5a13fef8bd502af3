"""A study of augmentations on the simulated screen: its cost compared with bare trainings, and its survival of a kill.

Three objectives x two knobs x five strengths x three seeds (strength 0 is shared by the knobs: 81 trainings), a small
encoder, the demo's screen, all else fixed. First the same trainings are measured bare: a sample of them in as many
processes side by side as the study has trials at once, without Ray, each evaluated in the same way. Then the study
runs, is killed with SIGKILL (its whole Ray too) when a third is done, and runs again to its end.

The figure is the study's wall time, both parts, over the bare trainings' mean time x their number / how many run at
once; the bar is 1.15. It holds when no training that was finished before the kill ran again, the confusion of all crops
is scikit-learn's, and no gap is below 0. What was found (pairs of classes with opposite effects, or that there are
none) is printed, and the page is written into the folder that is given as argument.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cytolake.pipeline.config import PipelineConfig

BAR = 1.15
CONCURRENT = os.cpu_count() or 1
SAMPLE = 6
"""Bare trainings that are measured, spread over the objectives."""
KILL_AT = 1 / 3
SAME = 0.99
"""Share of crops with the same prediction when an encoder is evaluated again in another process."""


def the_config(root: Path) -> PipelineConfig:
    """The demo's screen, and a study of a small encoder."""
    from cytolake.models import ModelConfig
    from cytolake.recipes import build_recipe
    from cytolake.tune.study_config import StudyConfig

    config = build_recipe("demo")
    pretrain = dataclasses.replace(
        config.pretrain,
        model=ModelConfig(
            architecture="mae_vit",
            channels=config.pretrain.model.channels,
            crop_size=64,
            patch_size=16,
            width=96,
            depth=3,
            heads=3,
        ),
        steps=120,
        minibatch_size=64,
        threads=1,
        checkpoint_every=1000,
        log_every=20,
        evaluate_every=None,
    )
    study = StudyConfig(
        objectives=("mae", "simclr", "vicreg"),
        knobs=("crop_scale", "gamma"),
        strengths=(0.0, 0.25, 0.5, 0.75, 1.0),
        seeds=(0, 1, 2),
        crops=1200,
        concurrent=CONCURRENT,
    )
    return dataclasses.replace(
        config, name="sweep", root=str(root), pretrain=pretrain, study=study, training_probe=None, label_curve=None
    )


def prepare(root: Path) -> None:
    """Simulate, ingest and curate."""
    from rich.console import Console

    from cytolake.pipeline import stages

    console = Console(highlight=False)
    for stage in (stages.ingest, stages.curate):
        stage(the_config(root), console)


def run(root: Path) -> None:
    """The study, in a process of its own; its result as JSON on the last line."""
    from rich.console import Console

    import cytolake.catalog
    from cytolake.pipeline.session import ray_session
    from cytolake.pipeline.steps import Steps
    from cytolake.reports.study_page import study_text, write_study
    from cytolake.tune.study import run_study

    config = the_config(root)
    catalog = cytolake.catalog.open(root)
    started = time.perf_counter()
    with ray_session(config.ray):
        pack = Steps(config, Console(), catalog).newest_pack()
        ready = time.perf_counter()
        found = run_study(catalog, pack, config.study, config.pretrain, config.tracking, _print_progress)
    seconds = time.perf_counter() - ready
    Console(width=150).print(study_text(found))
    for curve in found.curves:
        print(f"{curve.objective}, {curve.knob}: {curve.effects.verdict}")
    page = write_study(root / "report" / "study.html", "Study of the simulated screen", found, config.study)
    print(f"page {page}")
    gaps = [curve.effects.gap.value for curve in found.curves]
    result = {
        "seconds": seconds,
        "ray_starts": ready - started,
        "n_trials": found.n_trials,
        "n_trained": found.n_trained,
        "gap": min(gaps),
        "pairs": sum(len(curve.effects.pairs) for curve in found.curves),
    }
    print(json.dumps(result))


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"{what} {done} of {total}", file=sys.stderr, flush=True)


def bare(job: tuple[str, str, int]) -> float:
    """One training and its evaluation in a plain process: seconds."""
    import torch

    import cytolake.catalog
    from cytolake.packs.pack import Pack
    from cytolake.tracking import TrackingConfig
    from cytolake.tune.study import study_trials, train_and_evaluate
    from cytolake.tune.study_probe import pin_study_probe

    torch.set_num_threads(1)
    root, runs, place = job
    config = the_config(Path(root))
    catalog = cytolake.catalog.open(root)
    pack = Pack.open(next((Path(root) / "packs").glob("[!.]*")))
    trials, _ = study_trials(config.study, config.pretrain)
    probe = pin_study_probe(catalog, pack, config.study)
    trial = list({trial.pretrain: trial for trial in trials}.values())[place]
    started = time.perf_counter()
    train_and_evaluate(pack.path, trial, probe, Path(runs) / "runs", TrackingConfig().at(runs), "")
    return time.perf_counter() - started


def finished(root: Path) -> dict[str, float]:
    """When the weights of each finished training were written."""
    return {str(path): path.stat().st_mtime for path in (root / "runs").glob("*/result.json")}


def confusions_are_scikit_learns(root: Path) -> bool:
    """Whether each finished trial's confusion is what scikit-learn counts of its answers, and one encoder that is
    evaluated again predicts the same. Of 500 crops one may be at a tie, which another number of threads decides
    differently."""
    from sklearn.metrics import confusion_matrix

    import cytolake.catalog
    from cytolake.packs.pack import Pack
    from cytolake.tune.study_probe import pin_study_probe

    files = sorted((root / "runs").glob("*/study_*.json"))
    for path in files:
        stored = json.loads(path.read_text())
        counted = confusion_matrix(stored["label"], stored["predicted"], labels=range(len(stored["confusion"])))
        if not (counted == np.array(stored["confusion"])).all():
            return False
    pack = Pack.open(next((root / "packs").glob("[!.]*")))
    probe = pin_study_probe(cytolake.catalog.open(root), pack, the_config(root).study)
    label, predicted = probe.predict(probe.vectors(path.with_name("encoder.safetensors")))
    same = np.mean((label == stored["label"]) & (predicted == stored["predicted"]))
    print(f"{len(files)} confusions are scikit-learn's; an encoder evaluated again predicts {same:.1%} of crops alike")
    return bool(same >= SAME)


def start(what: str, root: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, what, str(root)], text=True, start_new_session=True, **options)


def main() -> int:
    from cytolake.tune.study import study_trials

    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as name:
        root = Path(sys.argv[1] if len(sys.argv) > 1 else name).resolve()
        start("prepare", root).wait()
        config = the_config(root)
        n = len({trial.pretrain for trial in study_trials(config.study, config.pretrain)[0]})
        places = [round(i * (n - 1) / (SAMPLE - 1)) for i in range(SAMPLE)]
        with tempfile.TemporaryDirectory() as runs, multiprocessing.get_context("spawn").Pool(CONCURRENT) as pool:
            # A folder for each: they must not find each other's results. The first of each process warms it.
            pool.map(bare, [(str(root), f"{runs}/warm{i}", 0) for i in range(CONCURRENT)], chunksize=1)
            jobs = [(str(root), f"{runs}/{i}", place) for i, place in enumerate(places)]
            alone = pool.map(bare, jobs, chunksize=1)
        each = ", ".join(f"{seconds:.1f}" for seconds in alone)
        print(f"bare trainings, {CONCURRENT} at once: {np.mean(alone):.1f} s each ({each})")

        started = time.perf_counter()
        killed = start("run", root, stderr=subprocess.PIPE)
        assert killed.stderr is not None
        for line_of_progress in killed.stderr:
            parts = line_of_progress.split()
            if parts[:1] == ["trials"] and int(parts[1]) >= KILL_AT * int(parts[3]):
                break
        first_s = time.perf_counter() - started
        for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed.wait()
        before = finished(root)
        print(f"killed after {first_s:.0f} s with {len(before)} trainings finished")
        started = time.perf_counter()
        second = start("run", root, stdout=subprocess.PIPE)
        assert second.stdout is not None
        lines = second.stdout.read().splitlines()
        second.wait()
        second_s = time.perf_counter() - started
        print("\n".join(lines[:-1]))
        result = json.loads(lines[-1])
        after = finished(root)
        again = sum(after.get(path) != written for path, written in before.items())
        same = confusions_are_scikit_learns(root)
    expected = np.mean(alone) * result["n_trials"] / CONCURRENT
    figure = (first_s + second_s) / expected
    print(
        f"{result['n_trials']} trainings, wall {first_s:.0f} + {second_s:.0f} s (imports and Ray's start included), "
        f"bare {expected:.0f} s; {again} finished trainings ran again, {result['n_trained']} trials after the kill; "
        f"{result['pairs']} pairs of classes with opposite effects; least gap {result['gap']:.4f}"
    )
    holds = figure <= BAR and again == 0 and same and result["gap"] >= 0
    print(f"sweep: figure={figure:.2f} bar={BAR} {'ok' if holds else 'short'}")
    return 0 if holds else 1


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("prepare", "run"):
        {"prepare": prepare, "run": run}[sys.argv[1]](Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
