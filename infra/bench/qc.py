"""How well ten labels of a kind find each kind of artefact on plates that no label is from.

Simulated plates, every one of a batch of its own. A detector is fitted to 10 normal and 10 spoilt sites of each kind,
labelled as sites (the spoilt channel is not labelled), of any severity from 0.25 to 1. On the held-out plates every
site is looked at as it is and spoilt in each way at each severity: the area under the ROC curve measures how well the
    two are separated. At
severity 0 nothing may be found (the generator leaves no trace), at severity 1 everything should be. The bar holds when
the worst kind has more than 0.95 at severity 1, and none has 0.55 or more at severity 0.

Then the curve by number of labels: normal sites against spoilt ones of all kinds and of any severity, every detector on
plates that none of its labels is from.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process for each core: a second thread of each would only wait

from cytolake.qc.detector.detector import ArtefactDetector, DetectorConfig, Example
from cytolake.qc.detector.features import (
    PlateScale,
    RawFeatures,
    SiteStatistics,
    feature_names,
    measure_sites,
    plate_reference,
)
from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig, Point, label_efficiency
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS, add_artefact
from cytolake.screens.simulated.cells import CHANNELS
from cytolake.screens.simulated.screen import SimulatedScreen, simulated_site, simulated_wells

BAR, BLIND = 0.95, 0.55


@dataclass(frozen=True, kw_only=True, slots=True)
class QcBench:
    """How large, and what."""

    screen: SimulatedScreen = field(
        default_factory=lambda: SimulatedScreen(
            n_plates=6, n_batches=6, genes_per_pathway=2, sites_per_well=1, artefact_share=0.0, seed=20
        )
    )
    n_training_plates: int = 3
    n_labels: int = 10
    """Of each class."""
    kinds: tuple[str, ...] = ARTEFACT_KINDS
    severities: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    curve: LabelEfficiencyConfig = field(
        default_factory=lambda: LabelEfficiencyConfig(held_out_share=1 / 3, seeds=tuple(range(5)))
    )
    sites_per_plate: int = 25
    """Spoilt in each way on each plate for the curve: the four plates that are not held out then have 100."""
    n_processes: int = 2


@dataclass(frozen=True, slots=True)
class Found:
    """What the detector made of the held-out plates."""

    auroc: dict[str, list[float]]
    """Kind to one value for each severity."""
    right_channel: dict[str, float]
    """Kind to the share of its sites at the highest severity whose worst channel is one that was spoilt."""
    false_alarms: float
    """Share of the untouched sites that fail."""


def detect(bench: QcBench) -> Found:
    """Fit a detector on the first plates and look at the others with it."""
    n_training = bench.n_training_plates
    parts = _of_each_plate(_plate, bench)
    examples = []
    for kind in ("normal", *bench.kinds):
        of_kind = [site for part in parts[:n_training] for site in part if site.kind == kind]
        examples += [Example(site.deviations, kind) for site in of_kind[: bench.n_labels]]
    detector = ArtefactDetector.fit(examples, feature_names([SiteStatistics()]), bench.detector)
    held_out: dict[tuple[str, float], list[_Site]] = defaultdict(list)
    for part in parts[n_training:]:
        for site in part:
            held_out[site.kind, site.severity].append(site)
    verdicts = {key: detector.predict([site.deviations for site in sites]) for key, sites in held_out.items()}
    scores = {key: np.array([verdict.artefact for verdict in found]) for key, found in verdicts.items()}
    clean, worst = scores["normal", 0.0], max(bench.severities)
    right = {
        kind: np.mean(
            [
                site.is_spoilt[verdict.artefact_of_channels.argmax()]
                for site, verdict in zip(held_out[kind, worst], verdicts[kind, worst], strict=True)
            ]
        )
        for kind in bench.kinds
    }
    return Found(
        {kind: [area_under_roc(scores[kind, s], clean) for s in bench.severities] for kind in bench.kinds},
        {kind: float(share) for kind, share in right.items()},
        float((clean > bench.detector.threshold).mean()),
    )


def label_curve(bench: QcBench) -> list[Point]:
    """AUROC of normal against spoilt, by rising numbers of labels of each class."""
    parts = _of_each_plate(_labelled, bench)
    examples = [Example(site.deviations, site.kind) for part in parts for site in part]
    plates = [f"plate {number}" for number, part in enumerate(parts) for _ in part]
    config = replace(bench.curve, detector=bench.detector)
    return label_efficiency(examples, plates, feature_names([SiteStatistics()]), config).curve("auroc")


def area_under_roc(spoilt: np.ndarray, clean: np.ndarray) -> float:
    """Share of pairs of a spoilt and a clean site in which the spoilt one scores higher; a tie is half a pair."""
    difference = spoilt[:, None] - clean[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


@dataclass(frozen=True, slots=True)
class _Site:
    kind: str
    severity: float
    deviations: np.ndarray
    is_spoilt: np.ndarray


def _of_each_plate(measure: Callable[[QcBench, int], list[_Site]], bench: QcBench) -> list[list[_Site]]:
    plates = range(bench.screen.n_plates)
    if bench.n_processes == 1:
        return [measure(bench, plate) for plate in plates]
    with ProcessPoolExecutor(bench.n_processes) as pool:
        return list(pool.map(measure, [bench] * len(plates), plates))


def _plate(bench: QcBench, number: int) -> list[_Site]:
    """The sites of one plate, as they are first.

    A plate for training gives its share of the labels, a held-out one every site in every state.
    """
    as_they_are, spoil = _as_they_are(bench, number)
    n_sites = len(as_they_are)
    if number >= bench.n_training_plates:
        return as_they_are + [
            spoil(i, kind, severity, 10_000 * number + 100 * k + i)
            for k, kind in enumerate(bench.kinds)
            for i in range(n_sites)
            for severity in bench.severities
        ]
    rng = np.random.default_rng([bench.screen.seed, number])
    share = -(-bench.n_labels // bench.n_training_plates)
    rows = [as_they_are[i] for i in rng.permutation(n_sites)[:share]]
    for kind in bench.kinds:
        for i in rng.choice(n_sites, share, replace=False):
            rows.append(spoil(i, kind, float(rng.uniform(0.25, 1.0)), int(rng.integers(2**31))))
    return rows


def _labelled(bench: QcBench, number: int) -> list[_Site]:
    """The sites of one plate as they are, and some of them spoilt in each way, of any severity from 0.25 to 1."""
    as_they_are, spoil = _as_they_are(bench, number)
    rng = np.random.default_rng([bench.screen.seed, number, 1])
    n = min(bench.sites_per_plate, len(as_they_are))
    return as_they_are + [
        spoil(i, kind, float(rng.uniform(0.25, 1.0)), int(rng.integers(2**31)))
        for kind in bench.kinds
        for i in rng.choice(len(as_they_are), n, replace=False)
    ]


def _as_they_are(bench: QcBench, number: int) -> tuple[list[_Site], Callable[[int, str, float, int], _Site]]:
    """The sites of one plate, and what spoils one: its place among them, the kind, the severity and a seed."""
    wells = [well for well in simulated_wells(bench.screen) if well.plate_number == number]
    sites = [simulated_site(bench.screen, well, 1) for well in wells]
    raw = [_measured(pixels) for pixels in sites]
    reference = plate_reference(raw)  # of all sites, no label used
    none = np.zeros(len(CHANNELS), bool)

    def spoil(i: int, kind: str, severity: float, seed: int) -> _Site:
        spoilt, is_spoilt = add_artefact(sites[i], kind, severity, seed)
        measured = raw[i] if np.array_equal(spoilt, sites[i]) else _measured(spoilt)
        return _Site(kind, severity, reference.deviations(measured), is_spoilt)

    return [_Site("normal", 0.0, reference.deviations(site), none) for site in raw], spoil


def _measured(pixels: np.ndarray) -> RawFeatures:
    return measure_sites([pixels], [CHANNELS], [SiteStatistics()], PlateScale({}))[0]


def main() -> int:
    bench = QcBench()
    started = time.monotonic()
    found = detect(bench)
    areas = found.auroc
    n_sites = bench.screen.n_wells * (bench.screen.n_plates - bench.n_training_plates)
    print(f"{n_sites} held-out sites in each state, {bench.n_labels} labels of a class, statistics vector, "
          f"{bench.detector.head} head: {time.monotonic() - started:.0f} s")  # fmt: skip
    heads = "".join(f"{severity:8.2f}" for severity in bench.severities)
    print(f"{'AUROC at severity':24}{heads}   right channel")
    for kind, row in areas.items():
        print(f"{kind:24}" + "".join(f"{area:8.3f}" for area in row) + f"{found.right_channel[kind]:16.2f}")
    print(f"untouched sites that fail: {found.false_alarms:.3f}")
    started = time.monotonic()
    points = label_curve(bench)
    print(f"AUROC by labels of a class, mixed kinds and severities, 95 % interval: {time.monotonic() - started:.0f} s")
    for point in points:
        print(f"{point.n_labels:6} labels{point.value:12.3f}   {point.low:.3f} to {point.high:.3f}")
    blind = max(row[bench.severities.index(0.0)] for row in areas.values())
    worst = min(row[bench.severities.index(1.0)] for row in areas.values())
    print(f"highest at severity 0: {blind:.3f}, expected below {BLIND}")
    is_ok = worst > BAR and blind < BLIND
    print(f"qc: figure={worst:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
