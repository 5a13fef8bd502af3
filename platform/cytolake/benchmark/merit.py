"""Benchmarks, labels and metrics whose low values are good, or by which no representation is chosen."""

from __future__ import annotations

GUARD_RAILS = ("batch_leakage", "false_positives")
"""Benchmarks with good low values; no representation is chosen by them."""
NUISANCES = ("plate", "batch", "row", "column")
"""Labels that a good vector does not predict: a probe of them is a guard rail too."""
WITHOUT_MERIT = ("batch_mixing",)
"""Benchmarks on which noise scores as well as biology; no representation is chosen by them."""
ERRORS = ("mse", "mae")
"""Metrics with good low values."""


def is_guard_rail(benchmark: str, label: str) -> bool:
    """Whether low values of a benchmark are good."""
    return benchmark in GUARD_RAILS or (benchmark.startswith("linear_probe") and label in NUISANCES)
