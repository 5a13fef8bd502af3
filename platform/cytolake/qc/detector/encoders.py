"""Frozen encoders as features of an artefact detector: our checkpoints, or pretrained models of timm.

Both see one channel at a time, cut into windows at the resolution it was imaged at, for blur is lost when an image is
made smaller. Counts are clipped to the range of the plate, never of the image: an empty image stretched to full
contrast looks like a full one. An encoder of ours standardises each window itself, so it is blind to emptiness and
saturation; the statistics vector is not.

Source: transfer from natural images is what Masud et al. 2022, arXiv 2208.04592, found best; the windows are ours.

Letters: C channels, T windows of a channel, S side of a window in pixels, F features of a channel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytolake.qc.detector.features import FeatureExtractor, Numbers, Pixels, PlateScale, SiteStatistics
from cytolake.qc.detector.initial_weights import initial_constants, is_untrained

if TYPE_CHECKING:
    from torch import Tensor

    from cytolake.models import Encoder

Scaled = NDArray[np.float32]

UNTRAINED = "untrained"
"""As `FeatureConfig.timm_weights`: timm's random weights, the same in every process (seed 0)."""
_WINDOWS_AT_ONCE = 16  # of 224 px; the first layer of a VGG16 then takes 0.2 GB


class FeatureError(ValueError):
    """An encoder that cannot be loaded, or does not accept the channels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureConfig:
    """Features of a detector. Relations between channels are always included."""

    statistics: bool = True
    """Include the statistics vector, which needs no encoder and shows most artefacts."""
    checkpoint: str = ""
    """File of `models.save_encoder` whose encoder's features are added."""
    block: int = -1
    """Block of that encoder, from 0; -1 is the last."""
    timm_model: str = ""
    """Name of a timm model whose features are added, such as `resnet18.a1_in1k`."""
    timm_weights: str = ""
    """Its weights: a file of safetensors or of `torch.save`; `untrained` for timm's random weights. Empty: taken from
    the Hugging Face hub, or from its cache."""
    windows_per_side: int = 2
    """Windows along each side of a channel, spread evenly; their features are averaged."""
    reference_sites: int = 64
    """Reference sites per plate, drawn by hashing; all sites if there are fewer."""

    def __post_init__(self) -> None:
        if not (self.statistics or self.checkpoint or self.timm_model):
            raise ValueError("features: found nothing to look at. Set statistics, checkpoint or timm_model.")
        for name in ("windows_per_side", "reference_sites"):
            if getattr(self, name) < 1:
                raise ValueError(f"features.{name}: found {getattr(self, name)}, expected 1 or more.")
        if self.timm_weights and not self.timm_model:
            raise ValueError(f"features.timm_weights: found {self.timm_weights} without timm_model. Name the model.")


def build_extractors(config: FeatureConfig) -> list[FeatureExtractor]:
    """The extractors of a config, in the order of its fields.

    Raises:
        CheckpointError: A checkpoint of ours that cannot be used.
        FeatureError: No such block, no such model of timm, or weights that cannot be loaded.
    """
    extractors: list[FeatureExtractor] = []
    if config.statistics:
        extractors.append(SiteStatistics())
    if config.checkpoint:
        extractors.append(EncoderFeatures(config.checkpoint, config.block, config.windows_per_side))
    if config.timm_model:
        extractors.append(TimmFeatures(config.timm_model, config.timm_weights, config.windows_per_side))
    return extractors


def features_key(config: FeatureConfig, extractors: Sequence[FeatureExtractor]) -> str:
    """Text that identifies how features are measured, for `features_of_key`; differs if the features differ."""
    return json.dumps({"config": asdict(config), "keys": [extractor.key for extractor in extractors]}, sort_keys=True)


def features_of_key(key: str) -> tuple[FeatureConfig, list[FeatureExtractor]]:
    """The config and extractors of a `features_key`.

    Raises:
        CheckpointError, FeatureError: As `build_extractors`; or the encoder has changed since.
    """
    stored = json.loads(key)
    config = FeatureConfig(**stored["config"])
    extractors = build_extractors(config)
    for extractor, expected in zip(extractors, stored["keys"], strict=True):
        if extractor.key != expected:
            raise FeatureError(
                f"features of a detector: found {extractor.key}, expected {expected} as at its training. Put that "
                "encoder's file back, or train the detector again."
            )
    return config, extractors


class EncoderFeatures:
    """An encoder of ours: mean over the patch tokens of one block.

    A `chada_vit` sees each channel by itself. A `mae_vit` or `resnet` must see all its stains at once: what it says of
    the site is then said of every channel.
    """

    def __init__(self, checkpoint: str | Path, block: int = -1, windows_per_side: int = 2) -> None:
        """Load the encoder.

        Raises:
            CheckpointError: A file that cannot be used.
            FeatureError: No such block.
        """
        from cytolake.models import load_encoder, model_id

        self._encoder: Encoder = load_encoder(checkpoint)
        n_blocks = self._encoder.n_blocks
        if not -n_blocks <= block < n_blocks:
            raise FeatureError(
                f"{checkpoint}: block {block} of an encoder with {n_blocks}; expected 0 to {n_blocks - 1}."
            )
        self._block = block % n_blocks
        self._windows = windows_per_side
        self._id = model_id(self._encoder)

    @property
    def key(self) -> str:
        return f"encoder/1/{self._id}/{self._block}/{self._windows}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"encoder_{i}" for i in range(self._encoder.config.block_widths[self._block]))

    def measure(self, sites: Sequence[Pixels], channels: Sequence[tuple[str, ...]], scale: PlateScale) -> list[Numbers]:
        from cytolake.models.crops import collate, range_of

        config, found = self._encoder.config, []
        for pixels, names in zip(sites, channels, strict=True):
            # An encoder with its own scaling takes counts, not shares of the plate's range.
            seen = np.asarray(pixels, np.float32) if config.needs_counts else scale.apply(pixels, names)
            windows_CTSS = _windows(_at_least(seen, config.crop_size), config.crop_size, self._windows)
            identities = config.channel_indices(names)
            if config.is_fused:
                images, alone = list(windows_CTSS.swapaxes(0, 1)), [identities] * windows_CTSS.shape[1]
            else:
                images = [window[None] for windows_TSS in windows_CTSS for window in windows_TSS]
                alone = [(identity,) for identity in identities for _ in range(windows_CTSS.shape[1])]
            ranges = [range_of(pixels)] * len(images) if config.needs_counts else None
            blocks = self._encoder.pooled_blocks(collate(images, alone, ranges), ("mean",))["mean"]
            pooled = blocks[self._block].double().numpy()
            if config.is_fused:
                found.append(np.repeat(pooled.mean(axis=0, keepdims=True), len(names), axis=0))
            else:
                found.append(pooled.reshape(len(names), windows_CTSS.shape[1], -1).mean(axis=1))
        return found


class TimmFeatures:
    """A model of timm, pretrained on natural images or untrained: one channel in the place of red, green and blue.

    Its features are the input of its classifier. Their number is measured on one image, because timm's `num_features`
    is the width before the hidden layers of a head: 512 of 4096 for VGG, 576 of 1024 for MobileNetV3.
    """

    def __init__(self, name: str, weights: str | Path = "", windows_per_side: int = 2) -> None:
        """Load the model.

        Args:
            name: As timm knows it, such as `resnet18.a1_in1k`.
            weights: As `FeatureConfig.timm_weights`.
            windows_per_side: As in `FeatureConfig`.

        Raises:
            FeatureError: No such model, no such file, weights of another model, a hub that cannot be reached, or a
                model that does not map a square image to a vector.
        """
        import timm
        import torch

        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('.')[0][:5]}*")[:5]) or "none"
            raise FeatureError(f"timm model {name!r}: timm {timm.__version__} does not have it. Near to it: {near}.")
        self._name, self._windows_per_side = name, windows_per_side
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                self._model: Any = timm.create_model(name, pretrained=False, num_classes=0).eval()
            except RuntimeError as error:  # pretrained weights that timm does not list for this model
                raise FeatureError(f"timm model {name!r}: {error}") from error
        constants = initial_constants(self._model)
        self._digest = (
            _state_digest(self._model)
            if str(weights) == UNTRAINED
            else _load(self._model, Path(weights) if weights else _from_hub(name), name)
        )
        self.is_untrained = str(weights) == UNTRAINED or is_untrained(self._model, constants)
        config: Any = self._model.pretrained_cfg
        n_planes, height, width = config["input_size"]
        if height != width:
            raise FeatureError(f"timm model {name}: it takes images of {height} x {width} px, expected square ones.")
        self._size, self._n_planes = int(height), int(n_planes)
        self._mean, self._sd = (_of_planes(config[key], self._n_planes) for key in ("mean", "std"))
        self._dim = self._vectors(torch.zeros(1, 1, self._size, self._size)).shape[1]

    @property
    def key(self) -> str:
        return f"timm/1/{self._name}/{self._digest}/{self._windows_per_side}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"timm_{i}" for i in range(self._dim))

    def measure(self, sites: Sequence[Pixels], channels: Sequence[tuple[str, ...]], scale: PlateScale) -> list[Numbers]:
        import torch

        found = []
        for pixels, names in zip(sites, channels, strict=True):
            scaled = _at_least(scale.apply(pixels, names), self._size)
            windows_CTSS = _windows(scaled, self._size, self._windows_per_side)
            grey = torch.from_numpy(windows_CTSS.reshape(-1, 1, self._size, self._size))
            vectors = np.concatenate([self._vectors(part) for part in torch.split(grey, _WINDOWS_AT_ONCE)])
            found.append(vectors.reshape(*windows_CTSS.shape[:2], -1).mean(axis=1))
        return found

    def _vectors(self, grey_B1SS: Tensor) -> Numbers:
        """(B, F) input of the classifier for grey images in 0..1."""
        import torch

        images = (grey_B1SS.expand(-1, self._n_planes, -1, -1) - self._mean) / self._sd
        with torch.inference_mode():
            vectors = self._model.forward_head(self._model.forward_features(images), pre_logits=True)
        if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2:
            shape = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
            raise FeatureError(
                f"timm model {self._name}: found features of shape {shape} before its classifier, expected (images, "
                "features). Choose a model with a pooled head, such as resnet18 or vit_small_patch16_224."
            )
        return np.asarray(vectors.double().numpy())


def _of_planes(values: Sequence[float], n_planes: int) -> Tensor:
    """(n_planes, 1, 1) mean or sd of each plane; their mean if the number of planes differs."""
    import torch

    each = list(values) if len(values) == n_planes else [sum(values) / len(values)] * n_planes
    return torch.tensor(each)[:, None, None]


def _at_least(scaled_CHW: Scaled, size: int) -> Scaled:
    """The site, enlarged if a side is shorter than a window."""
    factor = size / min(scaled_CHW.shape[1:])
    if factor <= 1:
        return scaled_CHW
    import torch
    from torch.nn import functional

    shape = [max(size, round(factor * side)) for side in scaled_CHW.shape[1:]]
    enlarged = functional.interpolate(torch.from_numpy(scaled_CHW[None]), shape, mode="bilinear", align_corners=False)
    return np.asarray(enlarged[0].numpy())


def _windows(scaled_CHW: Scaled, size: int, per_side: int) -> Scaled:
    """(C, T, S, S): windows spread evenly from edge to edge, T no more than differ."""
    rows, columns = (
        sorted({round(start) for start in np.linspace(0, side - size, per_side)})
        if per_side > 1
        else [(side - size) // 2]
        for side in scaled_CHW.shape[1:]
    )
    return np.stack([scaled_CHW[:, y : y + size, x : x + size] for y, x in product(rows, columns)], axis=1)


def _from_hub(name: str) -> Path:
    import timm
    from huggingface_hub import hf_hub_download

    config = timm.get_pretrained_cfg(name)
    source = config.hf_hub_id if config else None
    if not config or not source:
        raise FeatureError(
            f"timm model {name}: timm knows no weights of it on the hub. Give its full name with the training it had, "
            "such as resnet18.a1_in1k, or set timm_weights to a safetensors file."
        )
    try:
        return Path(hf_hub_download(source, config.hf_hub_filename or "model.safetensors"))
    except (OSError, ValueError) as error:
        raise FeatureError(
            f"timm model {name}: its weights {source} are not in the hub's cache and cannot be had from the hub "
            f"({type(error).__name__}). Download model.safetensors where there is a network and set timm_weights to it."
        ) from error


def _load(model: Any, path: Path, name: str) -> str:
    """Load the weights of a file into a model without classifier, and return the digest of the file."""
    if not path.is_file():
        raise FeatureError(
            f"timm model {name}: {path}: no such file. Expected its weights, of safetensors or torch.save."
        )
    weights = _read(path, name)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = sorted(key for key, shape in wanted.items() if key not in weights or tuple(weights[key].shape) != shape)
    if wrong:
        found = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "nothing"
        raise FeatureError(
            f"timm model {name}: {path}: weights of another model: {len(wrong)} of {len(wanted)} differ, first "
            f"{wrong[0]}: found {found}, expected {wanted[wrong[0]]}. Names that differ: {', '.join(wrong[:6])}"
            f"{', ...' if len(wrong) > 6 else ''}. Give the file of this model, with timm's own names."
        )
    model.load_state_dict({key: weights[key] for key in wanted})  # the remaining weights are the classifier's
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `torch.save` of them, also below `state_dict` or `model`."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise FeatureError(
                f"timm model {name}: {path}: not a whole safetensors file ({error}). Copy it again."
            ) from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds here, including those of pickle
        raise FeatureError(
            f"timm model {name}: {path}: not a file of weights alone ({str(error).splitlines()[0]}). Expected "
            "safetensors, or torch.save(model.state_dict(), path)."
        ) from error
    for inner in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(inner), dict):
            saved = saved[inner]
    if not isinstance(saved, dict):
        raise FeatureError(f"timm model {name}: {path}: found a {type(saved).__name__}, expected a dict of weights.")
    return {key.removeprefix("module."): value for key, value in saved.items() if isinstance(value, torch.Tensor)}


def _state_digest(model: Any) -> str:
    """Digest of weights without a file."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()
