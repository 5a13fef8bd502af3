"""The artefact detector: fitted to a few labelled sites, it predicts the probability of each artefact per channel.

It looks at one channel at a time, so that it says which one failed, works for any number of stains, and learns from a
fibre in one channel what a fibre is in all. A site is as bad as its worst channel. Labels may be of whole sites: then
the channels that are farthest from their plate are taken for the spoilt ones (multiple-instance learning, where a bag
is labelled and not its members).

Source: the two steps, frozen features and a light head on few labels, are those of Masud, Cohen, Bendidi, Bollot and
Genovesio 2022, arXiv 2208.04592. Features, heads and per-channel verdicts here are ours.

Letters: N sites, C channels, M channels of all sites, D features, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cytolake.qc.detector.heads import beyond, class_logits, fit_classes, fit_one_class, one_class_distance, softmax
from cytolake.qc.labels import NORMAL
from cytolake.statistics.threads import limited_threads
from cytolake.storage.atomic_write import atomic_file

Numbers = NDArray[np.float64]
Head = Literal["logistic", "svm", "knn", "mahalanobis", "knn_distance", "isolation_forest"]
HEADS: tuple[str, ...] = get_args(Head)
ONE_CLASS: tuple[str, ...] = ("mahalanobis", "knn_distance", "isolation_forest")
ARTEFACT = "artefact"
"""Class of spoilt sites of a binary or one-class detector."""

_KIND, _VERSION = "cytolake-artefact-detector", "1"


class DetectorError(ValueError):
    """Unsuitable examples, or a file or features of another detector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """Settings of the head."""

    head: Head = "logistic"
    """`logistic`: multinomial regression. `svm`: a linear support vector machine for each class. `knn`: votes of the
    nearest labelled channels. Three need sound sites only: `mahalanobis`, the distance under a covariance shrunk after
    Ledoit and Wolf 2004; `knn_distance`; `isolation_forest`, after Liu et al. 2008."""
    is_binary: bool = False
    """Separate normal from spoilt only, not kinds of artefacts."""
    strengths: tuple[float, ...] = (0.003, 0.03, 0.3)
    """Inverse strengths of the L2 penalty of the linear heads. Cross-validation chooses one if every class has at least
    5 labelled sites; otherwise the middle one is used."""
    n_neighbours: int = 5
    """Of `knn` and `knn_distance`."""
    prevalence: float = 0.03
    """Expected share of spoilt sites. Probabilities are corrected to it, because labelled sites have equal numbers of
    each kind, unlike plates."""
    threshold: float = 0.5
    """A channel with an artefact probability above this fails."""

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, expected: str) -> None:
            if not is_good:
                raise ValueError(f"detector.{name}: found {getattr(self, name)!r}, expected {expected}.")

        check("head", self.head in HEADS, f"one of {', '.join(HEADS)}")
        check("strengths", bool(self.strengths) and min(self.strengths) > 0, "one or more numbers above 0")
        check("n_neighbours", self.n_neighbours >= 1, "1 or more")
        check("prevalence", 0 < self.prevalence < 1, "between 0 and 1")
        check("threshold", 0 < self.threshold < 1, "between 0 and 1")


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled site."""

    deviations: Numbers
    """(C, D) of `qc_features.PlateReference.deviations`."""
    label: str
    """`normal`, or a kind of artefact."""
    is_spoilt: NDArray[np.bool_] | None = None
    """(C,) spoilt channels; None if not specified."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Prediction for one site."""

    of_channels: Numbers
    """(C, K) probability of each class, normal first, per channel; rows sum to 1."""
    of_site: Numbers
    """(K,) probabilities of the site, of which normal is that of its worst channel."""

    @property
    def artefact_of_channels(self) -> Numbers:
        """(C,) probability that a channel is spoilt."""
        return np.asarray(1 - self.of_channels[:, 0])

    @property
    def artefact(self) -> float:
        """Probability that any channel is spoilt: that of the worst channel."""
        return float(1 - self.of_site[0])


class ArtefactDetector:
    """A fitted head and the key of the features that it was fitted to."""

    def __init__(
        self,
        config: DetectorConfig,
        classes: tuple[str, ...],
        features: tuple[str, ...],
        features_key: str,
        arrays: dict[str, Numbers],
    ) -> None:
        """Use `fit` or `load`."""
        self.config = config
        self.classes = classes
        """`normal`, then kinds of artefacts."""
        self.features = features
        """Names of the D features."""
        self.features_key = features_key
        """How the features are measured: `qc_encoders.features_key`."""
        self._arrays = arrays

    @classmethod
    def fit(
        cls,
        examples: Sequence[Example],
        features: Sequence[str],
        config: DetectorConfig | None = None,
        *,
        features_key: str = "",
    ) -> ArtefactDetector:
        """Fit a detector.

        Args:
            examples: Labelled sites; some normal, and for a head that is not one-class some that are not.
            features: Names of the columns of their deviations.

        Raises:
            DetectorError: No normal example, no spoilt one although the head needs it, or features of another length.
        """
        config = config or DetectorConfig()
        for i, example in enumerate(examples):
            if example.deviations.ndim != 2 or example.deviations.shape[1] != len(features):
                raise DetectorError(
                    f"example {i}: features of shape {example.deviations.shape}, expected (channels, "
                    f"{len(features)}). Measure it with the extractors that the names are of."
                )
            if not np.isfinite(example.deviations).all():
                raise DetectorError(f"example {i}: a feature is not finite. Leave the site out, or mend its file.")
        normal = [example for example in examples if example.label == NORMAL]
        spoilt = [example for example in examples if example.label != NORMAL]
        is_one_class = config.head in ONE_CLASS
        if not normal or not (spoilt or is_one_class):
            raise DetectorError(
                f"a {config.head} detector from {len(normal)} normal and {len(spoilt)} spoilt sites: expected at least "
                f"one normal{'' if is_one_class else ' and one spoilt'} site. Label more sites: cytolake qc label."
            )
        with limited_threads():  # matrices this small gain nothing from a second thread
            normal_MD = _squeeze(np.concatenate([example.deviations for example in normal]))
            normal_site_M = np.repeat(np.arange(len(normal)), [len(example.deviations) for example in normal])
            if is_one_class:
                arrays = fit_one_class(normal_MD, normal_site_M, config)
                return cls(config, (NORMAL, ARTEFACT), tuple(features), features_key, arrays)
            rows, labels, sites = [normal_MD], [NORMAL] * len(normal_MD), [*normal_site_M.tolist()]
            limit = float(np.quantile(_remoteness(normal_MD), 0.99))
            for number, example in enumerate(spoilt, start=len(normal)):
                channels_CD = _squeeze(example.deviations)
                chosen = _spoilt_channels(channels_CD, limit) if example.is_spoilt is None else example.is_spoilt
                rows.append(channels_CD[chosen])
                labels += [ARTEFACT if config.is_binary else example.label] * int(chosen.sum())
                sites += [number] * int(chosen.sum())
            classes = (NORMAL, *sorted(set(labels) - {NORMAL}))
            if len(classes) == 1:
                raise DetectorError(
                    f"{len(spoilt)} spoilt sites without a spoilt channel: expected at least one channel in each."
                )
            label_M = np.array([classes.index(label) for label in labels])
            train_MD, site_M = np.concatenate(rows), np.array(sites)
            arrays = fit_classes(train_MD, label_M, site_M, config)
        return cls(config, classes, tuple(features), features_key, arrays)

    def predict(self, sites: Sequence[Numbers]) -> list[Verdict]:
        """Predictions for sites.

        Args:
            sites: (C, D) deviations of each, of any number of channels.

        Raises:
            DetectorError: The number of features differs from that of the training.
        """
        if not sites:
            return []
        for i, site in enumerate(sites):
            if site.ndim != 2 or site.shape[1] != len(self.features):
                raise DetectorError(
                    f"site {i}: features of shape {site.shape}, expected (channels, {len(self.features)}): "
                    f"{', '.join(self.features[:4])}, ... Measure it as this detector's examples were."
                )
        with limited_threads():
            probability_MK = self._channels(_squeeze(np.concatenate(sites)))
        ends = np.cumsum([len(site) for site in sites])[:-1]
        return [_verdict(channel_CK) for channel_CK in np.split(probability_MK, ends)]

    def artefact_probabilities(self, sites: Sequence[Numbers]) -> Numbers:
        """(N,) probability that a site is spoilt."""
        return np.array([verdict.artefact for verdict in self.predict(sites)])

    @property
    def detector_id(self) -> str:
        """Hash, 32 hex digits, of everything that determines a verdict."""
        digest = hashlib.blake2b(json.dumps(self._metadata(), sort_keys=True).encode(), digest_size=16)
        for name, values in sorted(self._arrays.items()):
            digest.update(f"{name} {values.shape} ".encode() + np.ascontiguousarray(values, "<f8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> str:
        """Write the detector to one safetensors file atomically, and return its id."""
        path = Path(path)
        arrays = {name: np.ascontiguousarray(values, np.float64) for name, values in self._arrays.items()}
        with atomic_file(path) as part:
            save_file(arrays, part, {**self._metadata(), "detector_id": self.detector_id})
        return self.detector_id

    @classmethod
    def load(cls, path: str | Path) -> ArtefactDetector:
        """Read a file written by `save`.

        Raises:
            DetectorError: No such file, no detector, or a file changed since it was saved.
        """
        path = Path(path)
        if not path.is_file():
            raise DetectorError(f"{path}: no such file. Expected a detector that `cytolake qc train` wrote.")
        try:
            with safe_open(path, framework="np") as file:
                metadata: dict[str, str] = dict(file.metadata() or {})
                arrays = {name: np.asarray(file.get_tensor(name), np.float64) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DetectorError(
                f"{path}: not a whole safetensors file ({error}). Copy it again, or train again."
            ) from error
        if metadata.get("kind") != _KIND or metadata.get("version") != _VERSION:
            raise DetectorError(
                f"{path}: found a safetensors file of kind {metadata.get('kind', 'unknown')!r}, version "
                f"{metadata.get('version', 'unknown')!r}; expected {_KIND!r}, version {_VERSION!r}. Train the detector "
                "again with this version."
            )
        settings = json.loads(metadata["config"])
        config = DetectorConfig(**settings | {"strengths": tuple(settings["strengths"])})
        detector = cls(
            config, tuple(json.loads(metadata["classes"])), tuple(json.loads(metadata["features"])),
            metadata["features_key"], arrays,
        )  # fmt: skip
        if detector.detector_id != metadata.get("detector_id"):
            raise DetectorError(
                f"{path}: changed since it was saved: found detector {detector.detector_id}, expected "
                f"{metadata.get('detector_id')}. Copy it again, or train again."
            )
        return detector

    def _metadata(self) -> dict[str, str]:
        return {
            "kind": _KIND,
            "version": _VERSION,
            "config": json.dumps(asdict(self.config), sort_keys=True),
            "classes": json.dumps(self.classes),
            "features": json.dumps(self.features),
            "features_key": self.features_key,
        }

    def _channels(self, channels_MD: Numbers) -> Numbers:
        """(M, K) probabilities."""
        arrays, config = self._arrays, self.config
        if config.head in ONE_CLASS:
            return beyond(one_class_distance(channels_MD, arrays, config), float(arrays["limit"][0]))
        logits = class_logits(channels_MD, arrays, len(self.classes), config)
        # Training weights classes equally, plates do not: Bayes' rule with the expected prevalence.
        n_kinds = len(self.classes) - 1
        logits = logits + np.log([1 - config.prevalence, *[config.prevalence / n_kinds] * n_kinds])
        return softmax(logits)


def _verdict(channel_CK: Numbers) -> Verdict:
    normal = float(channel_CK[:, 0].min())
    spoilt_CK = channel_CK[:, 1:]
    # Channels are weighted by their artefact probability, so that eight good ones do not outvote the spoilt one.
    weight_C = (1 - channel_CK[:, 0]) + 1e-12
    kinds = weight_C @ spoilt_CK + 1e-12
    return Verdict(channel_CK, np.array([normal, *((1 - normal) * kinds / kinds.sum())]))


def _squeeze(deviations_MD: Numbers) -> Numbers:
    """Deviations, compressed logarithmically in the tails."""
    return np.asarray(np.arcsinh(deviations_MD))


def _remoteness(squeezed_MD: Numbers) -> Numbers:
    """(M,) distance of a channel from its plate; the fourth power lets one feature dominate, such as a seam."""
    return np.asarray((squeezed_MD**4).mean(axis=1) ** 0.25)


def _spoilt_channels(squeezed_CD: Numbers, limit: float) -> NDArray[np.bool_]:
    """(C,) channels farther from their plate than 99 of 100 normal sites, and always the farthest."""
    remoteness = _remoteness(squeezed_CD)
    return np.asarray((remoteness > limit) | (remoteness == remoteness.max()))


def describe(detector: ArtefactDetector) -> dict[str, Any]:
    """Description of a detector as plain values."""
    return {
        "detector_id": detector.detector_id,
        "head": detector.config.head,
        "classes": list(detector.classes),
        "n_features": len(detector.features),
        "threshold": detector.config.threshold,
        "prevalence": detector.config.prevalence,
    }
