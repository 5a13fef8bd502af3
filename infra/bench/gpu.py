"""Training steps and inference on one GPU: crops per second, FLOP/s, share of the GPU's peak, memory.

Masked autoencoders of the published sizes (6 channels, crops of 256 px, 75 % hidden, decoder of 8 x 512 x 16, Fourier
weight 0.01) and a mixed-channel ChAda-ViT, packed against padded to 10 channels with the same weights. A training step
is forward, backward and fused AdamW in bf16 autocast on minibatches that are on the GPU already, so nothing but the GPU
is measured. The figure is the share of the declared dense bf16 peak that ViT-L/8 reaches in training.

FLOPs are those of the model by formula: products of matrices and attention, 2 for each multiply-add, the backward pass
twice the forward one; nothing that is computed again, no loss and no optimiser. The formula is compared with torch's
own counter before anything is timed.

Needs torch, timm, numpy, safetensors and a checkout, no install: `python3 infra/bench/gpu.py`. `--dry` runs every part
on a CPU with tiny shapes and no figure. `--json FILE` stores all numbers. It is one file because all parts share one
plan, one timer and one report, and a GPU machine runs them in one call.

Shapes: B crops, L = 1 + tokens of a crop, D width.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_CHECKOUT), str(_CHECKOUT / "platform")]

from infra.bench.chada import PADDED_TO, packed_loss, padded_loss, real_mix  # noqa: E402

from cytolake.models import CropBatch, ModelConfig, VisionTransformer, build_encoder, masking_noise, published_size  # noqa: E402
from cytolake.models import transformer as transformer_module  # noqa: E402
from cytolake.models.cost import training_cost  # noqa: E402
from cytolake.models.objectives import MaeConfig, ObjectiveConfig, View, build_objective  # noqa: E402
from cytolake.models.transformer import compile_blocks  # noqa: E402

BAR = 0.5
DECLARED_PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 or H200 SXM, by the maker's data sheet."""
STAINS = tuple(f"stain {i}" for i in range(6))
MAE = MaeConfig(decoder_width=512, decoder_depth=8, decoder_heads=16)
MINIBATCHES = (1024, 768, 512, 384, 256, 128, 96, 64, 48, 32, 16)
SHARE_OF_MEMORY = 0.85
BYTES_PER_FEATURE = 42
"""Kept for the backward pass by one block for each feature of a token: a guess that chooses a minibatch that fits."""
BYTES_PER_PARAMETER = 18
"""fp32 weight, gradient and AdamW's two moments, and the bf16 copy that autocast keeps."""
CHADA_CROPS = 64
_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Where and how much is measured."""

    device: torch.device
    is_dry: bool
    compiler: str
    """Backend of `torch.compile`."""
    repeats: int
    """Timed steps."""
    budget_s: float
    """No part is started that would probably end later than this after the start."""
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def model(self, size: str, **changes: Any) -> ModelConfig:
        """The published size, or a tiny one of its kind where nothing but the script is tried."""
        config = dataclasses.replace(published_size(size, channels=STAINS), **changes)
        if self.is_dry:
            side = 4 * config.patch_size
            config = dataclasses.replace(config, width=32, depth=4, heads=2, mlp_ratio=4.0, crop_size=side)
        return config

    def mae(self) -> MaeConfig:
        return dataclasses.replace(MAE, decoder_width=32, decoder_depth=1, decoder_heads=2) if self.is_dry else MAE


# --- FLOPs by formula --------------------------------------------------------------------------------------------


def blocks_flops(length: int, width: int, mlp_width: int, depth: int) -> int:
    """Forward FLOPs of transformer blocks on one crop of L tokens."""
    return depth * (length * 2 * (4 * width**2 + 2 * width * mlp_width) + 4 * length**2 * width)


def inference_flops(model: ModelConfig, n_channels: int) -> int:
    """FLOPs of the encoder on one crop."""
    n_tokens = model.n_tokens(n_channels)
    return _pixels_flops(model, n_tokens, model.width) + blocks_flops(
        1 + n_tokens, model.width, model.mlp_width, model.depth
    )


def mae_step_flops(model: ModelConfig, mae: MaeConfig, n_channels: int) -> int:
    """FLOPs of one crop's forward and backward pass. Pixels have no gradient, so their embedding counts twice only."""
    n_tokens = model.n_tokens(n_channels)
    n_visible = max(1, int(n_tokens * (1 - mae.mask_ratio) + 1e-6))
    width = mae.decoder_width
    pixels = _pixels_flops(model, n_tokens - n_visible, width)
    entry = 2 * (1 + n_visible) * model.width * width
    forward = (
        blocks_flops(1 + n_visible, model.width, model.mlp_width, model.depth)
        + entry
        + blocks_flops(1 + n_tokens, width, 4 * width, mae.decoder_depth)
        + pixels
    )
    return 3 * forward + 2 * _pixels_flops(model, n_visible, model.width)


def _pixels_flops(model: ModelConfig, n_tokens: int, width: int) -> int:
    """Between the pixels of tokens and their features."""
    fused = len(model.channels) if model.is_fused else 1
    return 2 * n_tokens * fused * model.patch_size**2 * width


def counted_flops() -> tuple[int, int]:
    """FLOPs of a small training step: by torch's counter, which sees every product that is computed, and by formula."""
    size = published_size("s16", channels=STAINS, crop_size=64)
    model = dataclasses.replace(size, width=48, depth=2, heads=3, drop_path=0.0)
    mae = MaeConfig(decoder_width=32, decoder_depth=2, decoder_heads=4, fourier_weight=0.0)
    objective = build_objective(model, ObjectiveConfig(mae=mae), 0)
    views = resident_views(model, 3, 1, torch.device("cpu"))
    # As plain products: fused attention computes some again in its backward pass, which a model's FLOPs leave out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(views)["loss"].backward()
    return counter.get_total_flops(), 3 * mae_step_flops(model, mae, len(STAINS))


# --- minibatches and clocks --------------------------------------------------------------------------------------


def resident_crops(counts: Sequence[int], size: int, device: torch.device, seed: int) -> CropBatch:
    """A minibatch of noise on the device, of crops with so many channels."""
    generator = torch.Generator(device).manual_seed(seed)
    widest = max(counts)
    pixels = torch.randint(100, 4000, (len(counts), widest, size, size), generator=generator, device=device).float()
    channel_index = torch.arange(1, widest + 1).repeat(len(counts), 1)
    is_real = torch.arange(widest) < torch.tensor(counts)[:, None]
    return CropBatch(
        pixels * is_real.to(device)[:, :, None, None], channel_index * is_real, tuple(int(n) for n in counts)
    )


def resident_views(model: ModelConfig, n_crops: int, n: int, device: torch.device) -> list[View]:
    """`n` minibatches with the random numbers of their masks."""
    n_tokens = model.n_tokens(len(STAINS))
    return [
        View(
            resident_crops([len(STAINS)] * n_crops, model.crop_size, device, seed),
            masking_noise(0, seed, range(n_crops), n_tokens).to(device),
        )
        for seed in range(n)
    ]


def seconds_of(step: Callable[[int], object], repeats: int, device: torch.device) -> list[float]:
    """Of each step, one after the other without waiting between them."""
    if device.type != "cuda":
        times = [time.perf_counter()]
        for i in range(repeats):
            step(i)
            times.append(time.perf_counter())
        return [later - earlier for earlier, later in pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for i in range(repeats):
        step(i)
        events[i + 1].record()
    torch.cuda.synchronize()
    return [earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(events)]


def measured_peak(plan: Plan) -> float:
    """FLOP/s of a large product of random bf16 matrices."""
    side = 64 if plan.is_dry else 8192
    one, other = (torch.randn(side, side, device=plan.device, dtype=torch.bfloat16) for _ in range(2))
    seconds_of(lambda _: one @ other, 3, plan.device)
    return 2 * side**3 / statistics.median(seconds_of(lambda _: one @ other, 20, plan.device))


@contextmanager
def attention_by(names: Sequence[str]) -> Iterator[None]:
    """The kernels that attention may use, the preferred first."""
    with sdpa_kernel([_BACKENDS[name] for name in names], set_priority=True):
        yield


def half(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16)


# --- attention ---------------------------------------------------------------------------------------------------


def fastest_attention(plan: Plan, report: dict[str, Any]) -> list[str]:
    """Kernels by their time for one forward and backward pass of all blocks of ViT-L/8, the fastest first."""
    n_crops = 2 if plan.is_dry else 64
    shapes = {"encoder": (257, 16, 64, 24), "decoder": (1025, 16, 32, 8)}
    if plan.is_dry:
        shapes = {"encoder": (5, 2, 16, 2), "decoder": (17, 2, 16, 1)}
    total_ms: dict[str, float] = {}
    for name, backend in _BACKENDS.items():
        if name == "math" or (plan.is_dry and name != "flash"):
            continue
        try:
            for where, (length, heads, size, depth) in shapes.items():
                entered = torch.randn(n_crops * length, 3, heads, size, device=plan.device, dtype=torch.bfloat16)
                query, key, value = (
                    part.unflatten(0, (n_crops, length)).transpose(1, 2).detach().requires_grad_()
                    for part in (entered[:, 0].contiguous(), entered[:, 1].contiguous(), entered[:, 2])
                )

                def both(_: int, inputs: tuple[Tensor, ...] = (query, key, value)) -> None:
                    mixed = functional.scaled_dot_product_attention(*inputs)
                    torch.autograd.grad(mixed, inputs, mixed.detach())

                with sdpa_kernel(backend):
                    seconds_of(both, 3, plan.device)
                    own_ms = 1e3 * statistics.median(seconds_of(both, 10, plan.device))
                total_ms[name] = total_ms.get(name, 0.0) + depth * own_ms
                flops = 3 * 4 * n_crops * length**2 * heads * size
                print(f"attention {where} {name}: {own_ms:.2f} ms a block, {flops / own_ms / 1e9:.0f} TFLOP/s")
        except RuntimeError as error:
            total_ms.pop(name, None)
            print(f"attention {name}: not here ({str(error).splitlines()[0][:100]})")
    report["attention_ms"] = total_ms
    order = sorted(total_ms, key=total_ms.__getitem__)
    return [*order, "math"]


# --- masked autoencoders -----------------------------------------------------------------------------------------


def fitting_minibatches(plan: Plan, model: ModelConfig, mae: MaeConfig) -> list[int]:
    """Numbers of crops to try, the largest first: those that probably fit, and then ever smaller ones."""
    if plan.is_dry:
        return [3]
    n_tokens = model.n_tokens(len(STAINS))
    n_visible = int(n_tokens * (1 - mae.mask_ratio))
    features = n_visible * model.width * model.depth + n_tokens * mae.decoder_width * mae.decoder_depth
    cost = training_cost(model, ObjectiveConfig(mae=mae), len(STAINS))
    free, _ = torch.cuda.mem_get_info(plan.device)
    left = SHARE_OF_MEMORY * free - BYTES_PER_PARAMETER * cost.trained_parameters
    fits = left / (BYTES_PER_FEATURE * features)
    return [n for n in MINIBATCHES if n <= fits]


def measure_mae(plan: Plan, size: str, kernels: Sequence[str], peak: float, share: float = 1.0) -> dict[str, Any]:
    """A training step and inference of one size, with the largest minibatch that fits, or a share of it.

    Blocks are compiled whole; where that fails, with another kernel, without their attention, or not at all.
    """
    model, mae = plan.model(size), plan.mae()
    others = [*kernels[1:], kernels[0]]
    attempts: list[tuple[bool | None, Sequence[str]]] = [
        (True, kernels),
        (True, others),
        (False, kernels),
        (None, others),
    ]
    failures = []
    for n_crops in fitting_minibatches(plan, model, mae):
        n_tried = max(1, int(n_crops * share))
        while attempts:
            one_shape, order = attempts[0]
            try:
                with attention_by(order):
                    row = _timed_mae(plan, size, model, mae, n_tried, one_shape, peak)
                return {**row, "attention": order[0], "failures": failures}
            except torch.OutOfMemoryError:
                print(f"{size}: {n_tried} crops do not fit", flush=True)
                break
            except Exception:  # the next attempt may work, and other parts must be measured whatever happens here
                failures.append(traceback.format_exc())
                print(f"{size}: one_shape={one_shape}, attention by {order[0]}: {failures[-1][-1200:]}", flush=True)
                attempts.pop(0)
            finally:
                _forget(plan)
    raise RuntimeError(f"{size}: no step could be measured")


def _timed_mae(
    plan: Plan, size: str, model: ModelConfig, mae: MaeConfig, n_crops: int, one_shape: bool | None, peak: float
) -> dict[str, Any]:
    device = plan.device
    objective = build_objective(model, ObjectiveConfig(mae=mae), 0).to(device).train()
    views = resident_views(model, n_crops, 2, device)
    with torch.no_grad(), half(device):
        torch.manual_seed(0)
        eager_loss = float(objective([views[0]])["loss"])
    if one_shape is not None:
        compile_blocks(objective, one_shape=one_shape, backend=plan.compiler)
    step = _step_of(lambda i: objective([views[i % 2]])["loss"], objective, device)
    _reset_peak(device)
    compiling = time.monotonic()
    torch.manual_seed(0)
    loss = float(step(0))
    compile_s = time.monotonic() - compiling
    if abs(loss - eager_loss) > 0.01 * eager_loss:
        raise RuntimeError(f"the compiled step has loss {loss}, without compiling it is {eager_loss}")
    seconds_of(step, 2 if plan.is_dry else 4, device)
    times = seconds_of(step, plan.repeats, device)
    row = _row(f"{size} mae", n_crops, times, mae_step_flops(model, mae, len(STAINS)), peak)
    row |= {
        "tokens_per_s": row["crops_per_s"] * model.n_tokens(len(STAINS)),
        "memory_gib": _peak_gib(device),
        "compiled": {True: "whole blocks", False: "without attention", None: "no"}[one_shape],
        "compile_s": compile_s,
        "graphs": _graphs(),
        "loss": loss,
        "eager_loss": eager_loss,
    }
    _show(row, peak)
    if device.type == "cuda" and size in ("l8", "g8"):
        row["kernels_ms"] = _kernels(step)
    objective.eval()
    batch = views[0].crops

    @torch.no_grad()
    def infer(_: int) -> None:
        with half(device):
            objective.encoder.features(batch)

    _reset_peak(device)
    seconds_of(infer, 3, device)
    infer_times = seconds_of(infer, plan.repeats, device)
    inference = _row(f"{size} inference", n_crops, infer_times, inference_flops(model, len(STAINS)), peak)
    inference["memory_gib"] = _peak_gib(device)
    _show(inference, peak)
    return {**row, "inference": inference}


def _step_of(loss_of: Callable[[int], Tensor], module: nn.Module, device: torch.device) -> Callable[[int], Tensor]:
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=device.type == "cuda"
    )

    def step(i: int) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with half(device):
            loss = loss_of(i)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


# --- ChAda-ViT ---------------------------------------------------------------------------------------------------


def measure_chada(plan: Plan, peak: float) -> list[dict[str, Any]]:
    """Packed in one call of attention, packed run by run, and padded to 10 channels, for two mixes of channels."""
    channels = tuple(f"stain {i}" for i in range(PADDED_TO))
    model = plan.model("s16", architecture="chada_vit", channels=channels, drop_path=0.0)
    n_crops = 4 if plan.is_dry else CHADA_CROPS
    rng = np.random.default_rng(0)
    mixes = {
        "1 to 10 channels": [rng.integers(1, PADDED_TO + 1, n_crops).tolist() for _ in range(3)],
        "channels of real screens": [real_mix(3 * n_crops // 2, seed) for seed in range(3)],
    }
    encoder = build_encoder(model, 0).to(plan.device).train()
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    compile_blocks(encoder, backend=plan.compiler)
    rows = []
    for mix, counts in mixes.items():
        batches = [resident_crops(own, model.crop_size, plan.device, seed) for seed, own in enumerate(counts)]
        flops = statistics.mean(3 * sum(inference_flops(model, n) for n in own) for own in counts) / len(counts[0])
        found = {}
        for form, kernels in (
            ("packed, one call", ["flash", "efficient", "math"]),
            ("packed, run by run", ["flash", "efficient", "math"]),
            ("padded, efficient", ["math"] if plan.is_dry else ["efficient"]),
            ("padded, cudnn", ["math"] if plan.is_dry else ["cudnn"]),
        ):
            try:
                with attention_by(kernels):
                    encoder.load_state_dict(weights)
                    found[form] = _timed_chada(plan, encoder, batches, form, f"chada s16, {mix}, {form}", flops, peak)
                rows.append(found[form])
            except Exception as error:  # one form less says less, but something
                print(f"chada {form}: {type(error).__name__}: {str(error)[:300]}")
        losses = [row["loss"] for row in found.values()]
        if max(losses) - min(losses) > 0.02 * max(losses):
            raise RuntimeError(f"packed and padded losses differ: {losses}")
        packed = [row["crops_per_s"] for form, row in found.items() if form.startswith("packed")]
        padded = [row["crops_per_s"] for form, row in found.items() if form.startswith("padded")]
        if packed and padded:
            padded_flops = 3 * inference_flops(model, PADDED_TO)
            print(
                f"chada s16, {mix}: packed {max(packed) / max(padded):.2f} times as fast as padded, "
                f"FLOP ratio {padded_flops / flops:.2f}"
            )
    return rows


def _timed_chada(
    plan: Plan, encoder: VisionTransformer, batches: list[CropBatch], form: str, name: str, flops: float, peak: float
) -> dict[str, Any]:
    device = plan.device
    is_packed = form.startswith("packed")

    def loss_of(i: int) -> Tensor:
        batch = batches[i % len(batches)]
        return packed_loss(encoder, batch) if is_packed else padded_loss(encoder, batch)

    is_by_run = form == "packed, run by run"
    attention = transformer_module.attend_run_by_run if is_by_run else transformer_module.attend_in_one_call
    with mock.patch.object(transformer_module, "attend_in_one_call", attention):
        step = _step_of(loss_of, encoder, device)
        _reset_peak(device)
        compiling = time.monotonic()
        loss = float(step(0))
        compile_s = time.monotonic() - compiling
        seconds_of(step, len(batches), device)
        each = seconds_of(step, len(batches) * (1 if plan.is_dry else 4), device)
    rounds = [sum(each[i : i + len(batches)]) / len(batches) for i in range(0, len(each), len(batches))]
    row = _row(name, len(batches[0]), rounds, flops, peak)
    row |= {"memory_gib": _peak_gib(device), "compile_s": compile_s, "graphs": _graphs(), "loss": loss}
    _show(row, peak)
    return row


# --- rows --------------------------------------------------------------------------------------------------------


def _row(name: str, n_crops: int, times: Sequence[float], flops: float, peak: float) -> dict[str, Any]:
    median = statistics.median(times)
    reached = flops * n_crops / median
    return {
        "name": name,
        "minibatch": n_crops,
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(times),
        "max_ms": 1e3 * max(times),
        "crops_per_s": n_crops / median,
        "gflop_per_crop": flops / 1e9,
        "tflop_per_s": reached / 1e12,
        "mfu": reached / DECLARED_PEAK,
        "share_of_measured_peak": reached / peak,
    }


def _show(row: dict[str, Any], peak: float) -> None:
    extra = "".join(
        f", {text.format(row[key])}"
        for key, text in (
            ("tokens_per_s", "{:.0f} tokens/s"),
            ("memory_gib", "{:.1f} GiB"),
            ("compiled", "compiled: {}"),
            ("compile_s", "first step {:.0f} s"),
            ("graphs", "{} graphs"),
            ("loss", "loss {:.4f}"),
        )
        if key in row
    )
    print(
        f"{row['name']}: minibatch {row['minibatch']}, {row['median_ms']:.1f} ms ({row['min_ms']:.1f} to "
        f"{row['max_ms']:.1f}), {row['crops_per_s']:.0f} crops/s, {row['gflop_per_crop']:.0f} GFLOP/crop, "
        f"{row['tflop_per_s']:.0f} TFLOP/s, MFU {row['mfu']:.3f}, "
        f"{row['share_of_measured_peak']:.3f} of a product's {peak / 1e12:.0f}{extra}",
        flush=True,
    )


def _kernels(step: Callable[[int], object]) -> dict[str, float]:
    """Milliseconds of a step by kernel, and a table of the longest by what they do."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            step(0)
            torch.cuda.synchronize()
        found = {event.key: (event.self_device_time_total / 1e3, event.count) for event in profiler.key_averages()}
    except Exception as error:  # the profile explains the figure, but the figure stands without it
        print(f"no profile: {type(error).__name__}: {error}")
        return {}
    total = sum(ms for ms, _ in found.values()) or 1.0
    groups: dict[str, float] = {}
    for name, (ms, _) in found.items():
        groups[_group(name)] = groups.get(_group(name), 0.0) + ms
    print("kernels: " + ", ".join(f"{name} {ms:.1f} ms ({ms / total:.0%})" for name, ms in sorted(groups.items())))
    for name, (ms, count) in sorted(found.items(), key=lambda each: -each[1][0])[:24]:
        print(f"  {ms:8.2f} ms {count:5d} x {name[:95]}")
    return {name[:200]: ms for name, (ms, _) in found.items()}


def _group(kernel: str) -> str:
    name = kernel.lower()
    if any(part in name for part in ("flash", "fmha", "cudnn", "attention", "softmax")):
        return "attention"
    if any(part in name for part in ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk")):
        return "products"
    if "triton" in name:
        return "fused by the compiler"
    return "optimiser" if "multi_tensor" in name or "adam" in name else "other"


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _graphs() -> int:
    """Compiled since the last `_forget`: many mean that something compiles again and again."""
    return int(_counters()["stats"]["unique_graphs"])


def _counters() -> Any:
    """What torch's compiler counts. Its import takes seconds, and tests import this file for its formulas."""
    from torch._dynamo.utils import counters

    return counters


def _forget(plan: Plan) -> None:
    """Free compiled functions and memory, so that each measurement starts alike."""
    torch.compiler.reset()
    _counters().clear()
    gc.collect()
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dry", action="store_true", help="every part on a CPU with tiny shapes, and no figure")
    names = ("l8", "chada", "s16", "l16", "g8", "l8-half")
    parser.add_argument("--only", nargs="+", choices=names, help="these parts alone")
    parser.add_argument("--budget-s", type=float, default=390, help="start no part that would end later")
    parser.add_argument("--max-autotune", action="store_true", help="let the compiler try its own products: minutes")
    parser.add_argument("--compiler", help="backend of torch.compile; aot_eager where dry, else inductor")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        print("gpu: this benchmark needs a CUDA GPU and found none. --dry tries the script on a CPU.", file=sys.stderr)
        return 2
    plan = Plan(
        device=torch.device("cpu" if arguments.dry else "cuda"),
        is_dry=arguments.dry,
        compiler=arguments.compiler or ("aot_eager" if arguments.dry else "inductor"),
        repeats=2 if arguments.dry else 12,
        budget_s=float("inf") if arguments.dry else arguments.budget_s,
    )
    if arguments.max_autotune:
        from torch._inductor import config as compiler_config

        compiler_config.max_autotune = True
        compiler_config.coordinate_descent_tuning = True
    torch.set_float32_matmul_precision("high")  # the loss's fp32 products in tf32
    counted, by_formula = counted_flops()
    print(f"FLOPs of a small step: {counted} by torch's counter, {by_formula} by formula")
    if counted != by_formula:
        raise RuntimeError("the formula for FLOPs is wrong: no figure would mean anything")
    name = "CPU, dry run" if plan.is_dry else torch.cuda.get_device_name()
    peak = measured_peak(plan)
    print(f"{name}, torch {torch.__version__}, product of 8192^3 in bf16: {peak / 1e12:.0f} TFLOP/s", flush=True)
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "measured_peak": peak, "rows": []}
    kernels = fastest_attention(plan, report)
    print(f"attention by {kernels[0]}; {plan.elapsed_s:.0f} s so far", flush=True)
    parts: dict[str, tuple[float, Callable[[], Any]]] = {  # seconds that it probably takes
        "l8": (0, lambda: measure_mae(plan, "l8", kernels, peak)),
        "chada": (60, lambda: measure_chada(plan, peak)),
        "s16": (50, lambda: measure_mae(plan, "s16", kernels, peak)),
        "l16": (50, lambda: measure_mae(plan, "l16", kernels, peak)),
        "g8": (120, lambda: measure_mae(plan, "g8", kernels, peak)),
        "l8-half": (60, lambda: measure_mae(plan, "l8", kernels, peak, share=0.5)),
    }
    n_failed = 0
    for part, (likely_s, measure) in parts.items():
        if arguments.only and part not in arguments.only:
            continue
        if plan.elapsed_s + likely_s > plan.budget_s:
            print(f"{part}: left out, as {plan.elapsed_s:.0f} s of {plan.budget_s:.0f} s are over")
            continue
        try:
            rows = measure()
            report["rows"] += rows if isinstance(rows, list) else [rows]
        except Exception:  # the other parts must be measured whatever happens to one
            print(traceback.format_exc()[-1500:])
            n_failed += 1
        _forget(plan)
        print(f"{part}: done, {plan.elapsed_s:.0f} s so far", flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(report, indent=1))
    if plan.is_dry:
        print(f"gpu: dry run, {len(report['rows'])} measurements, {n_failed} parts failed; a figure needs a GPU")
        return 1 if n_failed else 0
    figure = max((row["mfu"] for row in report["rows"] if row["name"] == "l8 mae"), default=0.0)
    is_ok = figure >= BAR and not n_failed
    print(f"gpu: figure={figure:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
