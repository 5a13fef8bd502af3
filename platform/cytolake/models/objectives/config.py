"""Settings of each self-supervised objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cytolake.models.config import check_width

DecoderKind = Literal["shared", "per_channel"]
Pooling = Literal["cls", "mean"]

N_GLOBAL_VIEWS = 2
"""Large views of DINO, which its teacher sees too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaeConfig:
    """The masked autoencoder: hide most tokens of a crop, reconstruct their pixels."""

    mask_ratio: float = 0.75
    """Share of a crop's tokens hidden from the encoder. He et al. 2022, fig. 5."""
    fourier_weight: float = 0.01
    """Weight a of the Fourier loss: (1 - a) * mse + a * fourier. Kraus et al. 2024."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive term between two views of a crop, added to the loss; 0 is a plain masked autoencoder.
    Mishra et al. 2022."""
    decoder: DecoderKind = "shared"
    """`shared`: one decoder for all tokens. `per_channel`: one for each stain of `model.channels`, and one for unknown
    stains, for `ca_mae_vit` and `chada_vit` (Kraus et al. 2024)."""
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        if self.decoder not in get_args(DecoderKind):
            raise ValueError(
                f"mae decoder {self.decoder!r} is not known: choose one of {', '.join(get_args(DecoderKind))}."
            )
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"mae {name} is {getattr(self, name)}: expected 1 or more.")
        check_width(self.decoder_width, self.decoder_heads, "mae decoder_width", "decoder_heads")
        for name in ("mask_ratio", "fourier_weight"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"mae {name} is {getattr(self, name)}: expected 0 <= {name} < 1.")
        if self.mask_ratio == 0:
            raise ValueError("mae mask_ratio is 0: nothing would be hidden, so there is nothing to learn.")
        if self.contrastive_weight < 0:
            raise ValueError(f"mae contrastive_weight is {self.contrastive_weight}: expected 0 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoConfig:
    """A student agrees with its teacher about large and small views. Caron et al. 2021, arXiv 2104.14294."""

    n_local_views: int = 8
    """Small views in addition to the two large ones. Caron et al. 2021's code."""
    local_size: int = 32
    """Side of a small view in pixels, a multiple of the model's patch_size; half of a crop of 64 px, where Caron et al.
    2021 have 96 of 224."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Least and largest share of the crop's area that a large view shows. Caron et al. 2021's code."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """The same for a small view."""
    pooling: Pooling = "cls"
    """Final tokens of a crop that enter the head: `cls`, as published, or the `mean` of its patch tokens."""
    hidden_width: int = 2048
    """Of the head's MLP. Caron et al. 2021, appendix C."""
    bottleneck_width: int = 256
    """Of the unit vectors that are compared with prototypes. Caron et al. 2021, appendix C."""
    n_prototypes: int = 4096
    """As Bendidi et al. 2023, arXiv 2304.11718, for data of this size; Caron et al. 2021 and ChAda-ViT have 65,536."""
    student_temperature: float = 0.1
    """Temperature: divisor of cosines. Caron et al. 2021, section 3.1."""
    first_teacher_temperature: float = 0.04
    """The teacher's at the first step. Caron et al. 2021, section 3.1."""
    teacher_temperature: float = 0.07
    """The teacher's after the warm-up. Caron et al. 2021, section 3.1."""
    warmup_share: float = 0.125
    """Share of the steps in which the teacher's temperature rises. Bourriez et al. 2024: 50 of 400 epochs."""
    centre_momentum: float = 0.9
    """Momentum of the centre in each step. Caron et al. 2021's code."""
    momentum: float = 0.9995
    """Momentum of the teacher in the first step; rises to 1. Bourriez et al. 2024, and 0.996 at first."""
    freeze_last_layer_share: float = 0.01
    """Share of the steps in which prototypes do not move yet. Caron et al. 2021's code: 1 of 100 epochs."""

    def __post_init__(self) -> None:
        if self.n_local_views < 0:
            raise ValueError(f"dino n_local_views is {self.n_local_views}: expected 0 or more.")
        _check_pooling("dino", self.pooling)
        _check_positive(self, "dino", ("local_size", "hidden_width", "bottleneck_width", "n_prototypes"))
        temperatures = ("student_temperature", "first_teacher_temperature", "teacher_temperature")
        _check_positive(self, "dino", temperatures)
        _check_momentum(self, "dino", ("centre_momentum", "momentum"))
        for name in ("warmup_share", "freeze_last_layer_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dino {name} is {getattr(self, name)}: expected 0 to 1, a share of the steps.")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"dino {name} is {low} to {high}: expected 0 < least <= largest <= 1, shares of the crop's area."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class SimClrConfig:
    """A view finds its other view among all crops. Chen et al. 2020, arXiv 2002.05709.

    Widths and temperature as Bendidi et al. 2023, arXiv 2304.11718, for data of this size.
    """

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`."""
    hidden_width: int = 2048
    projected_width: int = 256
    """Of the vectors that are compared. Chen et al. 2020: 128."""
    temperature: float = 0.2
    """Temperature: divisor of cosines. Chen et al. 2020: 0.1 for minibatches of thousands."""

    def __post_init__(self) -> None:
        _check_pooling("simclr", self.pooling)
        _check_positive(self, "simclr", ("hidden_width", "projected_width"))
        _check_positive(self, "simclr", ("temperature",))


@dataclass(frozen=True, kw_only=True, slots=True)
class ByolConfig:
    """Predict a slow teacher's projection of the other view. Grill et al. 2020, arXiv 2006.07733."""

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`."""
    hidden_width: int = 4096
    """Of projector and predictor. Grill et al. 2020, section 3.3."""
    projected_width: int = 256
    """Of predictions and targets. Grill et al. 2020, section 3.3."""
    momentum: float = 0.99
    """Momentum of the teacher in the first step; rises to 1. Grill et al. 2020, for 300 epochs, and
    Bendidi et al. 2023; 0.996 for 1000 epochs."""

    def __post_init__(self) -> None:
        _check_pooling("byol", self.pooling)
        _check_positive(self, "byol", ("hidden_width", "projected_width"))
        _check_momentum(self, "byol", ("momentum",))


@dataclass(frozen=True, kw_only=True, slots=True)
class VicRegConfig:
    """Views agree, features vary and do not repeat each other. Bardes et al. 2022, arXiv 2105.04906."""

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`."""
    hidden_width: int = 2048
    """Of both hidden layers. Bendidi et al. 2023, arXiv 2304.11718; Bardes et al. 2022: 8192."""
    projected_width: int = 2048
    """The same."""
    invariance_weight: float = 25.0
    """Of the squared distance of two views. Bardes et al. 2022, section 4.2."""
    variance_weight: float = 25.0
    """Of what standard deviations lack to 1. Bardes et al. 2022, section 4.2."""
    covariance_weight: float = 1.0
    """Of squared covariances. Bardes et al. 2022, section 4.2."""

    def __post_init__(self) -> None:
        _check_pooling("vicreg", self.pooling)
        _check_positive(self, "vicreg", ("hidden_width", "projected_width"))
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"vicreg {name} is {getattr(self, name)}: expected 0 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class BarlowTwinsConfig:
    """Features correlate with themselves across views, and with no others. Zbontar et al. 2021, arXiv 2103.03230."""

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`."""
    hidden_width: int = 2048
    """Of both hidden layers. Bendidi et al. 2023, arXiv 2304.11718; Zbontar et al. 2021: 8192."""
    projected_width: int = 2048
    """The same."""
    off_diagonal_weight: float = 0.0051
    """Of squared correlations between different features. Zbontar et al. 2021's code."""

    def __post_init__(self) -> None:
        _check_pooling("barlow_twins", self.pooling)
        _check_positive(self, "barlow_twins", ("hidden_width", "projected_width"))
        if self.off_diagonal_weight < 0:
            raise ValueError(f"barlow_twins off_diagonal_weight is {self.off_diagonal_weight}: expected 0 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoV2PlusConfig:
    """A view finds its other view among the keys of a queue. He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020,
    arXiv 2003.04297; v2+, with a symmetric loss: Chen & He 2021, arXiv 2011.10566.

    Widths, temperature, queue and momenta as Bendidi et al. 2023, arXiv 2304.11718.
    """

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`."""
    hidden_width: int = 2048
    """Of the projector. Chen et al. 2020, section 3; Bendidi et al. 2023."""
    projected_width: int = 256
    """Of queries and keys. Bendidi et al. 2023; He et al. 2020: 128."""
    temperature: float = 0.2
    """Temperature: divisor of cosines. Chen et al. 2020, table 2; Bendidi et al. 2023."""
    queue_size: int = 32_768
    """Keys that are kept of each view. Bendidi et al. 2023; He et al. 2020: 65,536, of 1.28 million images. On a pack
    of fewer crops a run shortens its queue to the crops that fill whole minibatches, and logs so: a longer one would
    hold older keys of every crop itself as negatives."""
    momentum: float = 0.99
    """Momentum of the teacher in the first step. Bendidi et al. 2023; He et al. 2020: 0.999 throughout."""
    last_momentum: float = 0.999
    """The same in the last step, reached along half a cosine. Bendidi et al. 2023."""

    def __post_init__(self) -> None:
        _check_pooling("moco_v2_plus", self.pooling)
        _check_positive(self, "moco_v2_plus", ("hidden_width", "projected_width", "temperature", "queue_size"))
        _check_momentum(self, "moco_v2_plus", ("momentum", "last_momentum"))


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoV3Config:
    """Predict a slow teacher's projection of the other view, and of no other crop. Chen et al. 2021, arXiv
    2104.02057."""

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`, as published."""
    hidden_width: int = 4096
    """Of projector and predictor. Chen et al. 2021, section 4.3."""
    projected_width: int = 256
    """Of queries and keys. Chen et al. 2021, section 4.3."""
    projector_layers: int = 3
    """Linear layers of the projector. Chen et al. 2021, section 4.3; 2 for ResNet-50 in their code."""
    temperature: float = 0.2
    """Temperature: divisor of cosines. Chen et al. 2021's code, for vision transformers; 1.0 for ResNet-50."""
    momentum: float = 0.99
    """Momentum of the teacher in the first step; rises to 1. Chen et al. 2021, section 4.3 and code."""

    def __post_init__(self) -> None:
        _check_pooling("moco_v3", self.pooling)
        _check_positive(self, "moco_v3", ("hidden_width", "projected_width", "projector_layers", "temperature"))
        _check_momentum(self, "moco_v3", ("momentum",))


@dataclass(frozen=True, kw_only=True, slots=True)
class SimSiamConfig:
    """Predict the projection of the other view, without a teacher. Chen & He 2021, arXiv 2011.10566."""

    pooling: Pooling = "mean"
    """Final tokens of a crop that enter the projector: the `mean` of its patch tokens, or `cls`."""
    hidden_width: int = 2048
    """Of the projector. Chen & He 2021, section 3; Bendidi et al. 2023."""
    projected_width: int = 2048
    """Of predictions and targets. Chen & He 2021, section 3; Bendidi et al. 2023."""
    projector_layers: int = 3
    """Linear layers of the projector. Chen & He 2021, section 3; 2 for CIFAR in their appendix D."""
    predictor_width: int = 512
    """Of the predictor's hidden layer, a bottleneck. Chen & He 2021, section 3; Bendidi et al. 2023."""

    def __post_init__(self) -> None:
        _check_pooling("simsiam", self.pooling)
        names = ("hidden_width", "projected_width", "projector_layers", "predictor_width")
        _check_positive(self, "simsiam", names)


def _check_pooling(objective: str, pooling: str) -> None:
    if pooling not in get_args(Pooling):
        raise ValueError(f"{objective} pooling {pooling!r} is not known: choose one of {', '.join(get_args(Pooling))}.")


def _check_positive(config: object, objective: str, names: Sequence[str]) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{objective} {name} is {getattr(config, name)}: expected more than 0.")


def _check_momentum(config: object, objective: str, names: Sequence[str]) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{objective} {name} is {getattr(config, name)}: expected 0 <= {name} < 1.")
