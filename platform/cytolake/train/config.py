"""Config of a pretraining run: model, objective, length, optimiser, and how it is carried out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal, get_args

from cytolake.catalog.declared import channel_vocabulary
from cytolake.models import ModelConfig
from cytolake.models.augment import AugmentConfig
from cytolake.models.objectives import ObjectiveConfig
from cytolake.models.stored_fields import ADDED_LATER, stored_fields
from cytolake.train.optimiser import Schedule

Precision = Literal["auto", "bf16", "fp32"]
Optimiser = Literal["adamw", "lion"]
Parallel = Literal["ddp", "fsdp"]
SecondView = Literal["crop", "well"]

# Settings of execution, which change none of the crops that a run sees: not part of its identity.
OPERATION = (
    "workers", "min_workers", "parallel", "compile", "recompute", "use_gpu", "threads", "prefetch", "log_every",
    "checkpoint_every", "keep_checkpoints", "evaluate_every", "max_failures", "record_ids", "device_peak_tflops",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """One pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """A `chada_vit` without `channels` takes the names of catalog/channels.yaml."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The training objective."""
    epochs: int = 20
    """Passes over the pack; every crop is seen once in each."""
    steps: int | None = None
    """Optimiser steps of `minibatch_size` crops; None means as many as `epochs` takes."""
    minibatch_size: int = 128
    """Crops of one optimiser step, all workers together."""
    minibatch_tokens: int | None = None
    """Patch tokens of one optimiser step, all workers together: crops are added in order while their tokens fit, at
    most `minibatch_size`. For crops of mixed channel counts, whose steps then cost alike. None means no limit."""
    optimiser: Optimiser = "adamw"
    """`adamw`: Loshchilov & Hutter 2019. `lion`: Chen et al. 2023, arXiv 2302.06675, with a third to a tenth of AdamW's
    learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the optimiser's moments. He et al. 2022, table 8."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    schedule: Schedule = field(default="linear_warmup", metadata=ADDED_LATER)
    """`linear_warmup`: a straight line up from nearly 0, then half a cosine down to 0 (Kenyon-Dean et al. 2024).
    `one_cycle`: half a cosine up from peak / 25, then half a cosine down to peak / 250,000, as torch's
    `OneCycleLR(anneal_strategy="cos")`, which the public config of Kraus et al. 2024 names with 0.1 warm-up."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all weights."""
    second_view: SecondView = "crop"
    """Content of the views beyond the first, where the objective takes several: `crop` is the same crop with another
    augmentation and mask; `well` is another crop of the same well, so that features that a well's cells share are
    learned."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentations of every view of a crop; new random numbers in every epoch."""
    seed: int = 0
    """Decides the initial weights, the order of the crops, their masks and augmentations."""
    precision: Precision = "auto"
    """`auto`: bf16 where the processor multiplies it natively, else fp32."""
    workers: int = 2
    """Ray Train workers; 0 trains in this process, without Ray."""
    min_workers: int | None = None
    """Continue with as few workers as this while machines are missing; None waits for all `workers`."""
    parallel: Parallel = "ddp"
    """`ddp`: every worker holds the whole model. `fsdp`: each holds its share of weights, gradients and optimiser state
    (FSDP2), for models that do not fit."""
    compile: bool = False
    """Compile the blocks with torch.compile: faster after a minute or two."""
    recompute: bool = False
    """Recompute the activations of a block in the backward pass: less memory, a third more time."""
    use_gpu: bool | None = None
    """One GPU for each worker, with nccl; None means where Ray has that many."""
    threads: int = 0
    """CPU threads of one worker; 0 means its share of its machine's CPUs, or torch's own choice without Ray."""
    prefetch: int = 3
    """Minibatches read ahead."""
    log_every: int = 10
    """Steps between two rows of the history and of MLflow."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    evaluate_every: int | None = None
    """Steps between two evaluations of the encoder while it is trained, in tasks that training does not wait for; a
    multiple of `checkpoint_every`. None means never."""
    max_failures: int = 3
    """Times that lost workers are replaced; each time training continues from the newest checkpoint."""
    record_ids: bool = False
    """Record the crops of every step in `seen/` of the run's folder, for `read_seen`."""
    device_peak_tflops: float | None = None
    """Dense bf16 peak of one worker's device, for the share of it that training reaches (MFU). None means the declared
    one where the GPU is known, and no such share on a CPU."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"pretrain.precision is {self.precision!r}: choose one of {', '.join(get_args(Precision))}."
            )
        for name, kind in (("optimiser", Optimiser), ("parallel", Parallel), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"pretrain.{name} is {getattr(self, name)!r}: choose one of {', '.join(get_args(kind))}."
                )
        if self.second_view not in get_args(SecondView):
            raise ValueError(
                f"pretrain.second_view is {self.second_view!r}: choose one of {', '.join(get_args(SecondView))}."
            )
        for name in ("minibatch_size", "prefetch", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} is {getattr(self, name)}: expected 1 or more.")
        if self.evaluate_every is not None and (self.evaluate_every < 1 or self.evaluate_every % self.checkpoint_every):
            raise ValueError(
                f"pretrain.evaluate_every is {self.evaluate_every}, checkpoint_every {self.checkpoint_every}: expected "
                "a multiple of it, since checkpoints are evaluated."
            )
        for name in ("workers", "threads", "max_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"pretrain.{name} is {getattr(self, name)}: expected 0 or more.")
        if self.epochs < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"pretrain.epochs is {self.epochs}, pretrain.steps is {self.steps}: expected 1 or more.")
        self.augment.check_model(self.model)
        self.objective.check_model(self.model)
        if self.model.is_convolutional and (self.parallel == "fsdp" or self.compile or self.recompute):
            raise ValueError(
                f"pretrain.parallel is {self.parallel}, compile {self.compile}, recompute {self.recompute}: those are "
                "for transformer blocks, and a resnet has none. Expected ddp, false and false."
            )
        self._check_shares()
        if self.learning_rate <= 0 or self.gradient_clip <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"pretrain.learning_rate {self.learning_rate} and gradient_clip {self.gradient_clip} must be more than "
                f"0, weight_decay {self.weight_decay} 0 or more."
            )
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"pretrain.warmup_share is {self.warmup_share}: expected 0 <= warmup_share < 1.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"pretrain.betas are {self.betas}: expected 0 <= beta < 1 for both.")

    def n_samples(self, n_crops: int) -> int:
        """Crops of the whole run on a pack of `n_crops`, counted as often as they are seen."""
        n = self.steps * self.minibatch_size if self.steps else self.epochs * n_crops
        return n - n % self.minibatch_size if self.objective.compares_crops else n

    def _check_shares(self) -> None:
        fewest = self.workers if self.min_workers is None else self.min_workers
        if not min(1, self.workers) <= fewest <= self.workers:
            raise ValueError(
                f"pretrain.min_workers is {self.min_workers}, pretrain.workers {self.workers}: expected 1 to workers."
            )
        if not self.objective.compares_crops:
            return
        for workers in range(max(1, fewest), self.workers + 1):
            if self.minibatch_size % workers:
                raise ValueError(
                    f"a minibatch of {self.minibatch_size} crops cannot be shared equally by {workers} workers, which "
                    "an objective that compares crops with each other needs. Make pretrain.minibatch_size a multiple "
                    "of every number of workers from min_workers to workers."
                )
        if self.minibatch_tokens is not None:
            raise ValueError(
                "pretrain.minibatch_tokens makes minibatches of different numbers of crops, which an objective that "
                "compares crops with each other cannot share equally. Set it to null, or take a plain mae."
            )


def with_vocabulary(config: PretrainConfig) -> PretrainConfig:
    """The config with the channels that the model has in training: the declared ones where it accepts any."""
    if config.model.is_fused or config.model.channels:
        return config
    names = tuple(channel_vocabulary().names)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, channels=names))


def run_key(pack_id: str, config: PretrainConfig) -> str:
    """32 hex digits over the pack and the settings that affect training: the name of the run's folder."""
    fields = {name: value for name, value in stored_fields(config).items() if name not in OPERATION}
    fields["model"] = config.model.fields()
    text = json.dumps({"pack_id": pack_id, "config": fields}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
