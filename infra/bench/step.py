"""A training step: with the real loader against a resident minibatch, and against a plain MAE made of timm's blocks.

The encoder is ViT-S/16 as published (blocks with attention and MLP in parallel, normalised queries and keys, gains),
the decoder 8 blocks of width 512, 75 % of the patches hidden, masked squared error and the Fourier term; crops of
5 x 128 x 128 counts, 16 of them, on as many threads as there are CPUs. Four arms take turns in rounds; each step is
forward, backward, clipping and update.

- loader: minibatches come from a pack through the loop's own feed, which reads, turns and masks ahead in a thread;
- resident: the same step on one minibatch that is already there. The figure is its time over the loader's;
- timm: He et al.'s masked autoencoder of the same size as one would write it with timm's `Block`: fp32, eager, a new
  step on a resident minibatch, no Fourier term. The second figure is its time over the loader's;
- ours in fp32, printed next to it: what is left of that when the arithmetic is the same.

Matrix products in fp32 bound the fp32 arms: their share of what a bare product of matrices reaches is printed too.
Where a processor multiplies bf16 no faster than fp32, our step is in fp32 as well, and that bounds the second figure.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from inputs.simulated_pack import STAINS, write_pack
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cytolake.models import published_size, standardise
from cytolake.models.cost import training_cost
from cytolake.models.objectives import MaeConfig, ObjectiveConfig, build_objective
from cytolake.models.transformer import grid_positions
from cytolake.packs import Pack
from cytolake.train.config import PretrainConfig
from cytolake.train.feed import FeedSettings, Prefetcher, read_minibatches
from cytolake.train.optimiser import build_optimiser
from cytolake.train.step import TrainingStep, uses_bf16

BAR, TIMM_BAR = 0.95, 1.3
ROUNDS = 20
CROP_SIZE, MINIBATCH, N_CROPS = 128, 16, 1024
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 512, 8, 16
CONFIG = PretrainConfig(
    model=published_size("s16", channels=STAINS, crop_size=CROP_SIZE),
    objective=ObjectiveConfig(
        mae=MaeConfig(decoder_width=DECODER_WIDTH, decoder_depth=DECODER_DEPTH, decoder_heads=DECODER_HEADS)
    ),
    epochs=100,
    minibatch_size=MINIBATCH,
    workers=0,
)


class TimmMae(nn.Module):
    """Masked autoencoder of timm's blocks, each part in the plainest way. He et al. 2022, arXiv 2111.06377."""

    def __init__(self) -> None:
        super().__init__()
        model = CONFIG.model
        width, patch, n_stains = model.width, model.patch_size, len(STAINS)
        n_patches = (CROP_SIZE // patch) ** 2
        self.patch = patch
        self.embed = nn.Conv2d(n_stains, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", grid_positions(CROP_SIZE // patch, width)[None])
        self.blocks = nn.Sequential(*(Block(width, model.heads, qkv_bias=True) for _ in range(model.depth)))
        self.norm = nn.LayerNorm(width)
        self.entry = nn.Linear(width, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        self.register_buffer("decoder_positions", grid_positions(CROP_SIZE // patch, DECODER_WIDTH)[None])
        self.decoder = nn.Sequential(
            *(Block(DECODER_WIDTH, DECODER_HEADS, qkv_bias=True) for _ in range(DECODER_DEPTH))
        )
        self.decoder_norm = nn.LayerNorm(DECODER_WIDTH)
        self.pixels = nn.Linear(DECODER_WIDTH, n_stains * patch**2)
        self.n_visible = int(n_patches * (1 - CONFIG.objective.mae.mask_ratio))

    def forward(self, counts: Tensor) -> Tensor:
        images = standardise(counts)
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        n, length, width = tokens.shape
        order = torch.rand(n, length).argsort(dim=1)
        back = order.argsort(dim=1)
        visible = tokens.gather(1, order[:, : self.n_visible, None].expand(-1, -1, width))
        encoded = self.entry(self.norm(self.blocks(torch.cat([self.cls_token.expand(n, -1, -1), visible], dim=1))))
        hidden = self.mask_token.expand(n, length - self.n_visible, -1)
        whole = torch.cat([encoded[:, 1:], hidden], dim=1).gather(1, back[:, :, None].expand(-1, -1, DECODER_WIDTH))
        whole = torch.cat([encoded[:, :1], whole + self.decoder_positions], dim=1)
        predicted = self.pixels(self.decoder_norm(self.decoder(whole)))[:, 1:]
        side = CROP_SIZE // self.patch
        target = images.reshape(n, -1, side, self.patch, side, self.patch).permute(0, 2, 4, 3, 5, 1).flatten(3)
        error = (predicted - target.flatten(1, 2)).square().mean(dim=-1)
        is_hidden = (back >= self.n_visible).float()
        return (error * is_hidden).sum() / is_hidden.sum()


def timm_step(counts: Tensor) -> Callable[[], float]:
    torch.manual_seed(0)
    model = TimmMae()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step() -> float:
        loss = model(counts)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CONFIG.gradient_clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def our_step(config: PretrainConfig) -> tuple[TrainingStep, int]:
    """The loop's own step, and the number of weights."""
    objective = build_objective(config.model, config.objective, config.seed).train()
    optimiser = build_optimiser(
        objective,
        name=config.optimiser,
        learning_rate=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    step = TrainingStep(objective, optimiser, config, config.n_samples(N_CROPS), torch.device("cpu"))
    return step, sum(each.numel() for each in objective.parameters())


def product_gflops() -> float:
    """10^9 operations a second of a plain matrix product in fp32, the best of some."""
    one, other = torch.randn(2048, 2048), torch.randn(2048, 2048)
    found = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(one, other)
        found.append(2 * 2048**3 / (time.perf_counter() - started) / 1e9)
    return max(found)


def main() -> int:
    console = Console(width=120)
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="bench-step-") as temporary:
        pack = Pack.open(write_pack(Path(temporary) / "pack", N_CROPS, CROP_SIZE))
        feed = FeedSettings(
            model=CONFIG.model, objective=CONFIG.objective, seed=0, minibatch_size=MINIBATCH, rank=0, world_size=1,
            first_sample=0, end_sample=None,
        )  # fmt: skip
        loader_step, n_weights = our_step(CONFIG)
        resident_step, _ = our_step(CONFIG)
        fp32_step, _ = our_step(dataclasses.replace(CONFIG, precision="fp32"))
        with Prefetcher(read_minibatches(pack, feed), CONFIG.prefetch) as prefetcher:
            resident = next(prefetcher)
            plain_step = timm_step(resident.views[0].crops.pixels)
            n_timm = sum(each.numel() for each in TimmMae().parameters())
            arms: dict[str, Callable[[], float]] = {
                "with the loader": lambda: loader_step(next(prefetcher)).losses["loss"].item(),
                "resident minibatch": lambda: resident_step(resident).losses["loss"].item(),
                "resident, fp32": lambda: fp32_step(resident).losses["loss"].item(),
                "timm, eager, fp32": plain_step,
            }
            for step in arms.values():
                step()
            seconds: dict[str, list[float]] = {name: [] for name in arms}
            for turn in range(ROUNDS):
                names = list(arms)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    started = time.perf_counter()
                    arms[name]()
                    seconds[name].append(time.perf_counter() - started)
    console.print(
        f"ViT-S/16 MAE, {n_weights / 1e6:.1f} M weights with the decoder (timm's: {n_timm / 1e6:.1f} M), "
        f"{MINIBATCH} crops of {len(STAINS)} x {CROP_SIZE} x {CROP_SIZE}, {torch.get_num_threads()} threads, "
        f"bf16 {'on' if uses_bf16(CONFIG.precision, torch.device('cpu')) else 'off'}"
    )
    shown = Table("step", "seconds", "all rounds", "crops/s", box=None)
    for name, found in seconds.items():
        middle = statistics.median(found)
        spread = f"{min(found):.2f} to {max(found):.2f}"
        shown.add_row(name, f"{middle:.2f}", spread, f"{MINIBATCH / middle:.1f}")
    console.print(shown)
    operations = MINIBATCH * training_cost(CONFIG.model, CONFIG.objective, len(STAINS)).training_flops
    of_step, of_product = operations / statistics.median(seconds["with the loader"]) / 1e9, product_gflops()
    console.print(
        f"a bare fp32 product of 2048 x 2048 matrices: {of_product:.0f} GFLOP/s; products of our step alone: "
        f"{of_step:.0f} GFLOP/s, {of_step / of_product:.0%} of it"
    )
    figure = _ratio(seconds["resident minibatch"], seconds["with the loader"])
    against_timm = _ratio(seconds["timm, eager, fp32"], seconds["with the loader"])
    is_ok = figure >= BAR and against_timm >= TIMM_BAR
    print(
        f"step: figure={figure:.3f} bar={BAR} against_timm={against_timm:.2f} timm_bar={TIMM_BAR} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


def _ratio(slower: list[float], faster: list[float]) -> float:
    """Median over the rounds, each a pair measured within seconds of each other."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))


if __name__ == "__main__":
    sys.exit(main())
