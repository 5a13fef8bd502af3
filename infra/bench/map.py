"""Replicate retrieval: equal to copairs on 632 wells, and the memory and time of 9,216 and 100,000 wells.

First the average precision of each treated well of BBBC021 (Ljosa profiles, wells against all DMSO wells) is compared
with that of copairs: the package where it is installed, else its published values next to the checkout. Where the real
wells are not there, simulated ones of the same shape are used. Then simulated screens of 384-well plates, 16 controls
each, 128 features, every perturbation on 4 plates, are scored in processes of their own under three rules:

- any control: replicates against all controls of the screen;
- plate control: replicates on other plates against the controls of the well's plate;
- all others: replicates against all wells of other perturbations, which needs every similarity. At 100,000 wells
  only every 50th block is scored, and the time of all is extrapolated from theirs.

copairs stops at 9,216 wells for lack of memory where all pairs are listed (copairs#90). The figure is the largest peak
of resident memory in GB; it counts only if the average precisions are equal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.average_precision import (
    average_precision,
    block_ranges,
    score_block,
    scores_table,
    unit_vectors,
)
from cytolake.benchmark.retrieval.pairs import PairRules, find_pairs

BAR_GB, LARGEST_DIFFERENCE = 4.0, 1e-8
SIZES = (9_216, 100_000)
N_FEATURES, PLATE, CONTROLS, REPLICATES = 128, 384, 16, 4
EVERY = 50
"""One block of so many is scored of the largest screen under the rule that needs every similarity."""
RULES = {
    "any control": PairRules(pos_sameby=("perturbation", "control"), neg_diffby=("perturbation", "control")),
    "plate control": PairRules(
        pos_sameby=("perturbation", "control"),
        pos_diffby=("plate",),
        neg_sameby=("plate",),
        neg_diffby=("perturbation", "control"),
    ),
    "all others": PairRules(pos_sameby=("perturbation",), neg_diffby=("perturbation",)),
}
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def screen(n_wells: int, n_features: int, seed: int = 0) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Wells whose perturbation moves them a little, as `RULES` and copairs take them."""
    rng = np.random.default_rng(seed)
    well = np.arange(n_wells)
    plate, place = well // PLATE, well % PLATE
    is_control = place < CONTROLS
    perturbation = np.where(is_control, -1, plate // REPLICATES * PLATE + place)
    effects = 0.3 * rng.normal(size=(perturbation.max() + 2, n_features))
    effects[0] = 0
    vectors = rng.normal(size=(n_wells, n_features)) + effects[perturbation + 1]
    control = np.where(is_control, well, -1)
    return pd.DataFrame({"perturbation": perturbation, "plate": plate, "control": control}), vectors


def real_wells() -> tuple[pd.DataFrame, NDArray[np.float64], NDArray[np.float64]] | None:
    """The wells of BBBC021, their profiles, and copairs' published average precision (NaN: none)."""
    source = REAL / "bbbc021_ljosa_profiles" / "morpheus" / "csvs" / "BBBC021_feature_selected_mad_robustize.csv"
    oracle = REAL / "oracles" / "bbbc021_activity_ap.csv"
    if not source.exists() or not oracle.exists():
        return None
    wells = pd.read_csv(source)
    published = pd.read_csv(oracle)
    key = ["Metadata_Plate", "Metadata_Well"]
    expected = wells[key].merge(published[[*key, "average_precision"]], on=key, how="left")["average_precision"]
    is_control = wells["Metadata_Compound"] == "DMSO"
    table = pd.DataFrame(
        {
            "perturbation": wells["Metadata_Compound"] + "@" + wells["Metadata_Concentration"].astype(str),
            "plate": wells["Metadata_Plate"],
            "control": np.where(is_control, np.arange(len(wells)), -1),
        }
    )
    return table, wells.filter(regex="^(?!Metadata_)").to_numpy(), expected.to_numpy()


def of_copairs(table: pd.DataFrame, vectors: NDArray[np.float64], rules: PairRules) -> pd.DataFrame | None:
    """copairs' result, None where it is not installed."""
    try:
        theirs = importlib.import_module("copairs.map").average_precision
    except ImportError:
        return None
    lists = {name: list(getattr(rules, name)) for name in ("pos_sameby", "pos_diffby", "neg_sameby", "neg_diffby")}
    result: pd.DataFrame = theirs(table, vectors, progress_bar=False, **lists)
    return result


def compare() -> tuple[float, str]:
    """Largest difference of an average precision on 632 wells, and what was compared with what."""
    real = real_wells()
    table, vectors, expected = real if real is not None else (*screen(632, 189), None)
    source = "632 real wells" if real is not None else "632 simulated wells"
    largest = 0.0
    judges = []
    for name, rules in RULES.items():
        ours = average_precision(table, vectors, rules).to_pandas()
        theirs = of_copairs(table, vectors, rules)
        oracles = [] if theirs is None else [theirs["average_precision"].to_numpy()]
        judges += [] if theirs is None else [f"copairs ({name})"]
        if name == "any control" and expected is not None:
            oracles.append(expected)
            judges.append("its published values")
            print(f"mean over treatments: {_mean_of_treatments(ours):.4f} (copairs: .9073)")
        for oracle in oracles:
            is_scored = ours["average_precision"].notna().to_numpy()
            if not np.array_equal(is_scored, ~np.isnan(oracle) & (ours["n_positives"] < ours["n_total"]).to_numpy()):
                raise RuntimeError(f"{name}: other wells are scored than copairs scores")
            largest = max(largest, float(np.abs(ours["average_precision"] - oracle)[is_scored].max()))
    if not judges:
        return float("nan"), f"{source}: nothing to compare with, install copairs"
    return largest, f"{source} against {', '.join(judges)}"


def _mean_of_treatments(rows: pd.DataFrame) -> float:
    return float(rows.groupby("perturbation")["average_precision"].mean().mean())


def measure(n_wells: int, name: str, *, with_copairs: bool = False) -> dict[str, Any]:
    """Seconds and memory of one screen; meant for a process of its own."""
    table, vectors = screen(n_wells, N_FEATURES)
    rules = RULES[name]
    before = _peak_gb()
    started = (time.perf_counter(), time.process_time())
    if with_copairs:
        scores = of_copairs(table, vectors, rules)
        assert scores is not None
        return _measured(scores, started, before, share=1.0)
    pairs = find_pairs(table, rules)
    unit_ND = unit_vectors(vectors)
    ranges = block_ranges(pairs)
    is_part = name == "all others" and n_wells == max(SIZES)
    done = ranges[:: EVERY if is_part else 1]
    blocks = [score_block(unit_ND, pairs, start, stop) for start, stop in done]
    if is_part:
        scores = pd.DataFrame({"average_precision": np.concatenate([block.average_precision for block in blocks])})
    else:
        scores = scores_table(table, blocks).to_pandas()
    return _measured(scores, started, before, share=len(done) / len(ranges))


def _measured(scores: pd.DataFrame, started: tuple[float, float], before_gb: float, share: float) -> dict[str, Any]:
    seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    mean = float(scores["average_precision"].mean())
    return {"seconds": seconds, "cpu": cpu, "before_gb": before_gb, "peak_gb": _peak_gb(), "share": share, "mean": mean}


def _peak_gb() -> float:
    """Of this process since it began; `ru_maxrss` would start at the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def _in_a_process(n_wells: int, name: str, *, with_copairs: bool = False) -> dict[str, Any] | None:
    """None where the process did not end well, for lack of memory or of time."""
    command = [sys.executable, __file__, "--wells", str(n_wells), "--rules", name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command += ["--out", str(path), *(["--copairs"] if with_copairs else [])]
        ended = subprocess.run(command, check=False, capture_output=with_copairs)
        result: dict[str, Any] | None = json.loads(path.read_text()) if ended.returncode == 0 else None
    return result


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    difference, compared = compare()
    console.print(f"largest difference of an average precision: {difference:.1e} on {compared}")
    shown = Table("wells", "rules", "by", "s", "CPU s", "peak GB", "of it scoring", "mean AP", box=None)
    peaks = []
    has_copairs = importlib.util.find_spec("copairs") is not None
    cases = [(n_wells, name, False) for n_wells in SIZES for name in RULES]
    cases += [(min(SIZES), "any control", True)] if has_copairs else []
    for n_wells, name, with_copairs in cases:
        by = "copairs" if with_copairs else "cytolake"
        measured = _in_a_process(n_wells, name, with_copairs=with_copairs)
        if measured is None:
            shown.add_row(f"{n_wells:,}", name, by, "failed", "", "", "", "")
            peaks += [] if with_copairs else [float("inf")]
            continue
        seconds = f"{measured['seconds'] / measured['share']:.1f}" + (
            "" if measured["share"] == 1 else f" ({measured['seconds']:.1f})"
        )
        cpu = f"{measured['cpu'] / measured['share']:.1f}"
        growth = measured["peak_gb"] - measured["before_gb"]
        shown.add_row(
            f"{n_wells:,}",
            name,
            by,
            seconds,
            cpu,
            f"{measured['peak_gb']:.2f}",
            f"{growth:.2f}",
            f"{measured['mean']:.4f}",
        )
        peaks += [] if with_copairs else [measured["peak_gb"]]
    console.print(shown)
    console.print("In brackets: seconds of the blocks that were scored, from which the time of all is extrapolated.")
    figure = max(peaks)
    is_ok = figure < BAR_GB and difference <= LARGEST_DIFFERENCE  # never true of a difference that is NaN
    print(
        f"map: figure={figure:.2f} bar={BAR_GB} difference={difference:.1e} difference_bar={LARGEST_DIFFERENCE} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wells", type=int, help="score one screen in this process")
    parser.add_argument("--rules", choices=RULES, default="any control")
    parser.add_argument("--copairs", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.wells is None:
        sys.exit(main())
    args.out.write_text(json.dumps(measure(args.wells, args.rules, with_copairs=args.copairs)))
