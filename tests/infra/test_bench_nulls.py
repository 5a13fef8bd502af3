"""What `make bench-nulls` says of a check: which shares and powers hold, and that no module may be missing."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "infra" / "bench"


@pytest.fixture
def nulls(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("nulls")


def check(nulls, share, power=None, reference_power=None):
    return nulls.NullCheck(
        name="a test", share_below_05=share, n_simulations=2000, power=power, reference_power=reference_power
    )


@pytest.mark.parametrize(
    ("power", "reference_power", "weaker"),
    [(None, None, False), (0.5, None, False), (0.8, 0.7, False), (0.7, 0.8, True), (0.7, math.nan, True)],
)
def test_a_power_below_the_references_or_without_one_is_weaker(nulls, power, reference_power, weaker):
    assert nulls.is_weaker(check(nulls, 0.05, power, reference_power)) is weaker
    assert ("weaker" in nulls.line_of(check(nulls, 0.05, power, reference_power))) is weaker


def test_a_share_far_from_the_level_is_marked(nulls):
    assert "not 0.05" in nulls.line_of(check(nulls, 0.1))
    assert "not 0.05" not in nulls.line_of(check(nulls, 0.06))


def test_the_figure_is_the_worst_share_and_part_of_the_modules_is_short(nulls, monkeypatch, capsys):
    def checks():
        return [check(nulls, 0.055), check(nulls, 0.044)]

    for name in nulls.MODULES:
        monkeypatch.setitem(sys.modules, f"inputs.{name}", type(sys)(name))
        sys.modules[f"inputs.{name}"].checks = checks
    assert nulls.main(nulls.MODULES) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nulls: figure=0.006 bar=0.02 checks=6 ")
    assert nulls.main(nulls.MODULES[:1]) == 1
    assert capsys.readouterr().out.rstrip().endswith("short")


def test_a_missing_module_is_named(nulls):
    with pytest.raises(ModuleNotFoundError, match=r"inputs/null_absent\.py is missing"):
        list(nulls.all_checks(("null_absent",)))
