"""Every test and ranking on simulated data without an effect, and its power on planted effects.

A test at the level 0.05 must give p below 0.05 to 5 % of what has no effect: more and scientists follow noise, less and
effects are lost. A line a check: the share of p-values below 0.05 without an effect, and where the test has a
counterpart in efaar_benchmarking, copairs or SciPy, the power of both on the same data with planted effects.

The figure is the worst deviation of a share from 0.05. A power below the reference's by more than 0.02, the error of
some hundred simulations, makes it short too.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator

from inputs.null_checks import LEVEL, NullCheck

BAR = 0.02
POWER_TOLERANCE = 0.02
MODULES = ("null_signal", "null_study", "null_selection")
"""Of infra/bench/inputs, each with a function `checks`: perturbation signal and guard rails; augmentation studies; the
selection of a block."""


def all_checks(modules: tuple[str, ...]) -> Iterator[NullCheck]:
    """The checks of each module.

    Raises:
        ModuleNotFoundError: A module is not there.
    """
    for name in modules:
        try:
            module = importlib.import_module(f"inputs.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"inputs.{name}":
                raise
            raise ModuleNotFoundError(
                f"infra/bench/inputs/{name}.py is missing, so its tests are not checked. Expected a function checks() "
                "that returns a list of NullCheck."
            ) from error
        started = time.perf_counter()
        found: list[NullCheck] = module.checks()
        yield from found
        print(f"({name}: {len(found)} checks in {time.perf_counter() - started:.0f} s)", flush=True)


def is_weaker(check: NullCheck) -> bool:
    """The power is below that of a reference, or the reference is not installed."""
    if check.power is None or check.reference_power is None:
        return False
    return not check.power >= check.reference_power - POWER_TOLERANCE  # a NaN is weaker


def line_of(check: NullCheck) -> str:
    """One line about one check."""
    wrong = "" if abs(check.share_below_05 - LEVEL) <= BAR else "  <- not 0.05"
    power = "" if check.power is None else f"  power {check.power:.3f}"
    if check.reference_power is not None:
        power += f" (reference {check.reference_power:.3f}{', weaker' if is_weaker(check) else ''}: {check.reference})"
    return f"{check.name:42s} share {check.share_below_05:.3f} of {check.n_simulations:5d}{wrong}{power}"


def main(modules: tuple[str, ...]) -> int:
    found = []
    for check in all_checks(modules):
        print(line_of(check), flush=True)
        found.append(check)
    figure = max(abs(check.share_below_05 - LEVEL) for check in found)
    weaker = [check.name for check in found if is_weaker(check)]
    is_ok = figure <= BAR and not weaker and set(modules) == set(MODULES)
    print(
        f"nulls: figure={figure:.3f} bar={BAR} checks={len(found)} weaker_than_reference={len(weaker)} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=MODULES, help="these modules alone; the figure is short")
    sys.exit(main(tuple(parser.parse_args().only or MODULES)))
