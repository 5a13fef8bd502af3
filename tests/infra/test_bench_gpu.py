"""What the GPU benchmark counts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from infra.bench.gpu import MAE, STAINS, counted_flops, inference_flops, mae_step_flops

from cytolake.models import published_size


def test_flops_by_formula_are_those_that_torch_counts_in_a_step():
    counted, by_formula = counted_flops()
    assert counted == by_formula


@pytest.mark.parametrize(
    ("size", "inference", "training"),
    [
        ("s16", 12.1, 50), ("b16", 45.9, 75), ("b8", 213, 344), ("l16", 161, 159), ("l8", 722, 689), ("g8", 4104, 3096),
    ],
)  # fmt: skip
def test_flops_of_the_published_sizes(size, inference, training):
    """GFLOP for a crop of 6 channels and 256 px, derived from depth, width and heads alone.

    The benchmark counts cls tokens and the embedding of pixels too, which is at most 3.5 % more.
    """
    model = published_size(size, channels=STAINS)
    assert 1 <= inference_flops(model, 6) / 1e9 / inference < 1.035
    assert 1 <= mae_step_flops(model, MAE, 6) / 1e9 / training < 1.035


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="it would start to measure")
def test_without_a_gpu_it_says_so(checkout):
    done = subprocess.run([sys.executable, checkout / "infra/bench/gpu.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr


@pytest.mark.slow
def test_every_part_of_it_runs_on_a_cpu(checkout, tmp_path):
    """Smoke: what a GPU would measure, with tiny shapes."""
    done = subprocess.run(
        [sys.executable, checkout / "infra/bench/gpu.py", "--dry", "--json", tmp_path / "gpu.json"],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "gpu: dry run, 13 measurements, 0 parts failed" in done.stdout
    assert (tmp_path / "gpu.json").is_file()
