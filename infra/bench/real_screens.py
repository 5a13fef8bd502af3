"""What pretraining gains on real screens: a probe at several steps, against the same encoder untrained.

The recipe `real_screens`, trained longer: six public screens of 1 to 6 channels, one channel-adaptive encoder. Where
they come from is predicted without error by any encoder, so it shows nothing. The label here is what happened to the
cells of the one screen with a response, a plate row of a GPCR assay: bright vesicles, or none. It is a visual measure
that comes with that copy of the images, well by well; the wells between the classes carry no label. Whole wells are
held out.

The screens are looked for in CYTOLAKE_REAL_SCREENS, by default ../shared/data. With a folder as argument the run is
kept there, pictures of reconstructions included. The figure is what the trained encoder's best block has over the best
block of the untrained one; the bar is that it has more, in the mean over the splits.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.benchmark.pinned_probe import TrainingProbeConfig
from cytolake.pipeline.stages import run_pipeline
from cytolake.recipes import build_recipe
from cytolake.train.evaluation import read_evaluations
from cytolake.tune.block_search import interval_text

BAR = 0.0
SCREENS = Path(os.environ.get("CYTOLAKE_REAL_SCREENS", "../shared/data"))
LABELLED = "cp_plate_row_1ch"
STEPS, EVALUATE_EVERY = 800, 200
PROBE = ProbeConfig(label="perturbation", split="well", include_controls=True)


def copy_screens(to: Path) -> None:
    """The recipe's screens, with the response of each labelled well as its perturbation."""
    for source in build_recipe("real_screens").screens.sources:
        if not (to / source.path).is_dir():
            shutil.copytree(SCREENS / source.path, to / source.path)
    index = to / LABELLED / "index.csv"
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        response = row["note"].rsplit(": ", 1)[-1]
        row["perturbation"] = "" if response == "intermediate" else response
    index.chmod(0o644)
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    if not (SCREENS / LABELLED).is_dir():
        console.print(f"{SCREENS / LABELLED}: no such folder. Set CYTOLAKE_REAL_SCREENS to where the real screens are.")
        return 2
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as temporary:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "root"
        screens = root / "screens"  # stay with the run: pictures of later pages are read from them
        copy_screens(screens)
        recipe = build_recipe("real_screens")
        recipe = dataclasses.replace(
            recipe,
            root=str(root),
            screens=dataclasses.replace(recipe.screens, root=str(screens)),
            pretrain=dataclasses.replace(
                recipe.pretrain, steps=STEPS, checkpoint_every=EVALUATE_EVERY, evaluate_every=EVALUATE_EVERY
            ),
            training_probe=TrainingProbeConfig(
                n_crops=100_000, probe=dataclasses.replace(PROBE, regularisation=(0.01,))
            ),
            probe=PROBE,
        )
        result = run_pipeline(recipe, console)
        evaluations = read_evaluations(result.run_folder)
        by_step = ", ".join(f"{step}: {numbers['best_block']:.3f}" for step, numbers in evaluations.items())
        print(f"probe by step, best block, 0 is untrained: {by_step}")
        if len(sys.argv) > 1:
            print(f"pictures of reconstructions: {result.run_folder}")
    choice = result.choice
    print(f"trained: {choice.score:.3f} {interval_text(choice.ci_low, choice.ci_high)} block {choice.block}")
    untrained = choice.baseline("untrained")
    for row in choice.baselines:
        print(f"{row.kind}: {row.score:.3f} {interval_text(row.ci_low, row.ci_high)}")
    gain = choice.score - (untrained.score if untrained else choice.best_baseline.score)
    print(f"real_screens: figure={gain:.3f} bar={BAR} {'ok' if gain > BAR else 'short'}")
    return 0 if gain > BAR else 1


if __name__ == "__main__":
    sys.exit(main())
