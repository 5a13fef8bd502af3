"""The artefact detector: from a few labelled sites to a probability that a channel of a site is spoilt, and how.

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
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from cytolake.catalog.qc.labels import NORMAL

Numbers = NDArray[np.float64]
Head = Literal["logistic", "knn", "mahalanobis", "knn_distance"]
ONE_CLASS: tuple[str, ...] = ("mahalanobis", "knn_distance")
ARTEFACT = "artefact"
"""The one class beside normal of a binary or one-class detector."""

_KIND, _VERSION = "cytolake-artefact-detector", "1"
_MIN_SITES_TO_CHOOSE = 5  # fewer labels of a class cannot say which strength is best


class DetectorError(ValueError):
    """Examples that no detector can be fitted to, or a file or features that are not this detector's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """How the head is fitted."""

    head: Head = "logistic"
    """`logistic`: multinomial regression. `knn`: votes of the nearest labelled channels. Two need sound sites only:
    `mahalanobis`, the distance under a covariance shrunk after Ledoit and Wolf 2004, and `knn_distance`."""
    is_binary: bool = False
    """Tell normal from spoilt, and no kinds."""
    strengths: tuple[float, ...] = (0.003, 0.03, 0.3)
    """Inverse strengths of the logistic head's L2 penalty. One is chosen by cross-validation where every class has at
    least 5 labelled sites; the middle one is taken elsewhere."""
    n_neighbours: int = 5
    """Of `knn` and `knn_distance`."""
    prevalence: float = 0.03
    """Share of sites that are expected to be spoilt. Probabilities are corrected to it, for labelled sites are picked
    to hold as many of each kind, and plates do not."""
    threshold: float = 0.5
    """A channel whose artefact probability is above this fails."""

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, expected: str) -> None:
            if not is_good:
                raise ValueError(f"detector.{name}: found {getattr(self, name)!r}, expected {expected}.")

        check("head", self.head in get_args(Head), f"one of {', '.join(get_args(Head))}")
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
    """(C,) which channels are spoilt; None where that was not said."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detector says of one site."""

    of_channels: Numbers
    """(C, K) probability of each class, normal first, for each channel; rows add up to 1."""
    of_site: Numbers
    """(K,) the same for the site: as normal as its worst channel."""

    @property
    def artefact_of_channels(self) -> Numbers:
        """(C,) probability that a channel is spoilt."""
        return np.asarray(1 - self.of_channels[:, 0])

    @property
    def artefact(self) -> float:
        """Probability that any channel is spoilt: that of the worst."""
        return float(1 - self.of_site[0])


class ArtefactDetector:
    """A fitted head, with what is needed to say whether features are the ones it was fitted to."""

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
        """`normal`, then kinds."""
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
            config: Head and settings.
            features_key: How the features are measured.

        Raises:
            DetectorError: No normal example, no spoilt one where the head needs it, or features that do not fit.
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
        with threadpool_limits(limits=1):  # matrices this small gain nothing from a second thread
            normal_MD = _squeeze(np.concatenate([example.deviations for example in normal]))
            normal_site_M = np.repeat(np.arange(len(normal)), [len(example.deviations) for example in normal])
            if is_one_class:
                arrays = _fit_one_class(normal_MD, normal_site_M, config)
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
            if config.head == "logistic":
                arrays = _fit_logistic(train_MD, label_M, site_M, config)
            else:
                mean, scale = _mean_and_scale(train_MD)
                arrays = {
                    "mean": mean,
                    "scale": scale,
                    "train": (train_MD - mean) / scale,
                    "label": label_M.astype(float),
                }
        return cls(config, classes, tuple(features), features_key, arrays)

    def predict(self, sites: Sequence[Numbers]) -> list[Verdict]:
        """Judge sites.

        Args:
            sites: (C, D) deviations of each, of any number of channels.

        Raises:
            DetectorError: Another number of features than the detector was fitted to.
        """
        if not sites:
            return []
        for i, site in enumerate(sites):
            if site.ndim != 2 or site.shape[1] != len(self.features):
                raise DetectorError(
                    f"site {i}: features of shape {site.shape}, expected (channels, {len(self.features)}): "
                    f"{', '.join(self.features[:4])}, ... Measure it as this detector's examples were."
                )
        with threadpool_limits(limits=1):
            probability_MK = self._channels(_squeeze(np.concatenate(sites)))
        ends = np.cumsum([len(site) for site in sites])[:-1]
        return [_verdict(channel_CK) for channel_CK in np.split(probability_MK, ends)]

    def artefact_probabilities(self, sites: Sequence[Numbers]) -> Numbers:
        """(N,) probability that a site is spoilt."""
        return np.array([verdict.artefact for verdict in self.predict(sites)])

    @property
    def detector_id(self) -> str:
        """32 hex digits over everything that decides a verdict."""
        digest = hashlib.blake2b(json.dumps(self._metadata(), sort_keys=True).encode(), digest_size=16)
        for name, values in sorted(self._arrays.items()):
            digest.update(f"{name} {values.shape} ".encode() + np.ascontiguousarray(values, "<f8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> str:
        """Write the detector to one safetensors file, whole or not at all, and return its id."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        arrays = {name: np.ascontiguousarray(values, np.float64) for name, values in self._arrays.items()}
        save_file(arrays, unfinished, {**self._metadata(), "detector_id": self.detector_id})
        unfinished.chmod(0o644)  # safetensors makes it the owner's alone; detectors are shared
        unfinished.replace(path)
        return self.detector_id

    @classmethod
    def load(cls, path: str | Path) -> ArtefactDetector:
        """Read a file of `save`.

        Raises:
            DetectorError: No such file, a file that is not a detector, or one that has changed since it was saved.
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
            distance = _one_class_distance(channels_MD, arrays, config)
            return _beyond(distance, float(arrays["limit"][0]))
        values_MD = _both_sides(channels_MD) if config.head == "logistic" else channels_MD
        scaled = (values_MD - arrays["mean"]) / arrays["scale"]
        if config.head == "logistic":
            logits = scaled @ arrays["weight"].T + arrays["bias"]
        else:
            logits = np.log(_votes(scaled, arrays["train"], arrays["label"].astype(int), len(self.classes), config))
        # Training saw every class equally often (weights), plates do not: Bayes' rule with the other prior.
        n_kinds = len(self.classes) - 1
        logits = logits + np.log([1 - config.prevalence, *[config.prevalence / n_kinds] * n_kinds])
        return _softmax(logits)


def _verdict(channel_CK: Numbers) -> Verdict:
    normal = float(channel_CK[:, 0].min())
    spoilt_CK = channel_CK[:, 1:]
    # Channels speak on the kind in proportion to how spoilt they are, so that eight good ones do not outvote the bad.
    weight_C = (1 - channel_CK[:, 0]) + 1e-12
    kinds = weight_C @ spoilt_CK + 1e-12
    return Verdict(channel_CK, np.array([normal, *((1 - normal) * kinds / kinds.sum())]))


def _squeeze(deviations_MD: Numbers) -> Numbers:
    """Logarithmic in the tails, where 100 deviations and 1,000 say the same."""
    return np.asarray(np.arcsinh(deviations_MD))


def _both_sides(squeezed_MD: Numbers) -> Numbers:
    """Numbers and their sizes: a linear head can then fail what is too low and what is too high."""
    return np.concatenate([squeezed_MD, np.abs(squeezed_MD)], axis=1)


def _remoteness(squeezed_MD: Numbers) -> Numbers:
    """(M,) how far a channel is from its plate; the fourth power lets one feature speak, as a seam does."""
    return np.asarray((squeezed_MD**4).mean(axis=1) ** 0.25)


def _spoilt_channels(squeezed_CD: Numbers, limit: float) -> NDArray[np.bool_]:
    """(C,) channels farther from their plate than 99 in 100 of normal sites, and the farthest in any case."""
    remoteness = _remoteness(squeezed_CD)
    return np.asarray((remoteness > limit) | (remoteness == remoteness.max()))


def _mean_and_scale(values_MD: Numbers) -> tuple[Numbers, Numbers]:
    mean, sd = values_MD.mean(axis=0), values_MD.std(axis=0)
    return mean, np.where(sd > 1e-6 * np.abs(mean) + 1e-12, sd, np.inf)  # a constant feature has no say


def _fit_logistic(
    train_MD: Numbers, label_M: NDArray[np.intp], site_M: NDArray[np.intp], config: DetectorConfig
) -> dict[str, Numbers]:
    from sklearn.model_selection import StratifiedGroupKFold

    both = _both_sides(train_MD)
    n_sites = min(len(np.unique(site_M[label_M == label])) for label in np.unique(label_M))
    chosen = sorted(config.strengths)[len(config.strengths) // 2]
    if n_sites >= _MIN_SITES_TO_CHOOSE and len(config.strengths) > 1:
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        losses = dict.fromkeys(config.strengths, 0.0)
        for fit_on, score_on in folds.split(both, label_M, site_M):
            if len(np.unique(label_M[fit_on])) < len(np.unique(label_M)):
                continue
            weight_S = 1 / np.bincount(label_M)[label_M[score_on]]
            for strength in config.strengths:
                fitted = _logistic(both[fit_on], label_M[fit_on], strength)
                scaled = (both[score_on] - fitted["mean"]) / fitted["scale"]
                probability = _softmax(scaled @ fitted["weight"].T + fitted["bias"])
                at_label = np.maximum(probability[np.arange(len(score_on)), label_M[score_on]], 1e-12)
                losses[strength] -= float(weight_S @ np.log(at_label))
        chosen = min(sorted(losses), key=lambda strength: losses[strength])
    return _logistic(both, label_M, chosen)


def _logistic(both_MD: Numbers, label_M: NDArray[np.intp], strength: float) -> dict[str, Numbers]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = _mean_and_scale(both_MD)
    model = LogisticRegression(C=strength, max_iter=500, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit cut short by the limit is still one with a penalty
        model.fit((both_MD - mean) / scale, label_M)
    weight, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weight) == 1:  # two classes: scikit-learn keeps only the second's log odds
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return {"mean": mean, "scale": scale, "weight": weight, "bias": bias}


def _votes(
    scaled_MD: Numbers, train_ND: Numbers, label_N: NDArray[np.intp], n_classes: int, config: DetectorConfig
) -> Numbers:
    """(M, K) share of the votes, near neighbours counting more; a class votes as if all had as many examples."""
    distance, nearest = _nearest(scaled_MD, train_ND, config.n_neighbours)
    votes = np.full((len(scaled_MD), n_classes), 0.0)
    weight = 1 / np.maximum(distance, 1e-6) / np.bincount(label_N, minlength=n_classes)[label_N[nearest]]
    for k in range(n_classes):
        votes[:, k] = (weight * (label_N[nearest] == k)).sum(axis=1)
    shares = votes / votes.sum(axis=1, keepdims=True)
    smoothing = 0.1 / (config.n_neighbours + 0.1)  # five of five neighbours are no proof, but more than a rare prior
    return np.asarray((1 - smoothing) * shares + smoothing / n_classes)


def _nearest(scaled_MD: Numbers, train_ND: Numbers, k: int) -> tuple[Numbers, NDArray[np.intp]]:
    """Distance over the root of the number of features, and place, of the k nearest."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=min(k, len(train_ND))).fit(train_ND)
    distance, nearest = model.kneighbors(scaled_MD)
    return np.asarray(distance / np.sqrt(train_ND.shape[1]), np.float64), np.asarray(nearest, np.intp)


def _fit_one_class(normal_MD: Numbers, site_M: NDArray[np.intp], config: DetectorConfig) -> dict[str, Numbers]:
    """Fit to all normal channels; the limit is what the worst channel of 1 normal site in 100 exceeds when left out."""
    n_folds = min(5, len(np.unique(site_M)))
    worst_S = np.zeros(site_M.max() + 1)
    for fold in range(n_folds):
        is_out = site_M % n_folds == fold
        kept = normal_MD[~is_out] if n_folds > 1 else normal_MD
        np.maximum.at(worst_S, site_M[is_out], _one_class_distance(normal_MD[is_out], _one_class(kept, config), config))
    return _one_class(normal_MD, config) | {"limit": np.array([max(float(np.quantile(worst_S, 0.99)), 1e-9)])}


def _one_class(normal_MD: Numbers, config: DetectorConfig) -> dict[str, Numbers]:
    if config.head == "knn_distance":
        mean, scale = _mean_and_scale(normal_MD)
        return {"mean": mean, "scale": scale, "train": (normal_MD - mean) / scale}
    from sklearn.covariance import ledoit_wolf

    # Features are deviations of the plate already: their own sd is not taken out, for it is uncertain with few sites.
    covariance, _ = ledoit_wolf(normal_MD)
    floor = 1e-3 * max(float(np.trace(covariance)) / len(covariance), 1e-9)
    precision = np.linalg.inv(covariance + floor * np.eye(len(covariance)))
    return {"mean": normal_MD.mean(axis=0), "precision": precision}


def _one_class_distance(channels_MD: Numbers, arrays: dict[str, Numbers], config: DetectorConfig) -> Numbers:
    if config.head == "knn_distance":
        scaled = (channels_MD - arrays["mean"]) / arrays["scale"]
        return np.asarray(_nearest(scaled, arrays["train"], config.n_neighbours)[0].mean(axis=1))
    centred = channels_MD - arrays["mean"]
    squared = np.einsum("md,de,me->m", centred, arrays["precision"], centred, optimize=True)
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def _beyond(distance_M: Numbers, limit: float) -> Numbers:
    """(M, 2) probabilities: a half at the limit, 0.996 at twice of it. A ranking on a common scale, not a frequency."""
    odds = np.minimum(np.maximum(distance_M, 1e-12) / limit, 1e6) ** 8
    return np.stack([1 / (1 + odds), odds / (1 + odds)], axis=1)


def _softmax(logits_MK: Numbers) -> Numbers:
    shifted = np.exp(logits_MK - logits_MK.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def describe(detector: ArtefactDetector) -> dict[str, Any]:
    """What people may want to know of a detector, as plain values."""
    return {
        "detector_id": detector.detector_id,
        "head": detector.config.head,
        "classes": list(detector.classes),
        "n_features": len(detector.features),
        "threshold": detector.config.threshold,
        "prevalence": detector.config.prevalence,
    }
