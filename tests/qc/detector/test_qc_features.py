from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from cytolake.qc.detector.features import (
    EXTRA_STATISTICS,
    RELATIONS,
    PlateScale,
    RawFeatures,
    SiteStatistics,
    feature_names,
    measure_sites,
    plate_reference,
    plate_scale,
)
from cytolake.qc.metrics import METRICS
from cytolake.screens.simulated.artefacts import add_artefact

STAINS = ("DNA", "ER", "AGP")
NO_SCALE = PlateScale({})
NAMES = feature_names([SiteStatistics()])


def site(seed: int, size: int = 96) -> np.ndarray:
    """(3, S, S) uint16: three views of the same 25 cells, and camera noise."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((size, size))
    cells[tuple(rng.integers(4, size - 4, (2, 25)))] = rng.uniform(0.6, 1, 25)
    views = [ndimage.gaussian_filter(cells, sd) * sd**2 for sd in (2, 3, 5)]
    counts = 200 + 20_000 * np.stack(views) + 15 * rng.standard_normal((3, size, size))
    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16)


def measured(pixels: np.ndarray, channels: tuple[str, ...] = STAINS) -> RawFeatures:
    return measure_sites([pixels], [channels], [SiteStatistics()], NO_SCALE)[0]


@pytest.fixture(scope="module")
def plate() -> list[np.ndarray]:
    return [site(seed) for seed in range(16)]


@pytest.fixture(scope="module")
def raw(plate) -> list[RawFeatures]:
    return [measured(pixels) for pixels in plate]


def test_every_feature_has_a_name_of_its_own(raw):
    taken = tuple(name for name in METRICS if name != "constant_area")  # detectors of before it stay valid
    assert (*taken, *EXTRA_STATISTICS, *RELATIONS) == NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert plate_reference(raw).deviations(raw[0]).shape == (3, len(NAMES))


def test_the_numbers_are_those_of_independent_formulas(plate, raw):
    for pixels, features in zip(plate[:3], raw[:3], strict=True):
        np.testing.assert_allclose(features.correlation, np.corrcoef(pixels.reshape(3, -1).astype(float)), atol=1e-5)
        for c, channel in enumerate(pixels.astype(float)):
            found = dict(zip(SiteStatistics().names, features.values[c], strict=True))
            assert found["p05"] == pytest.approx(np.percentile(channel, 5))
            assert found["p95"] == pytest.approx(np.percentile(channel, 95))
            assert found["skewness"] == pytest.approx(stats.skew(channel, axis=None), rel=1e-3)
            assert found["kurtosis"] == pytest.approx(stats.kurtosis(channel, axis=None, fisher=False), rel=1e-3)


def test_noise_is_measured_on_any_image():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((256, 256)), 8) * 20_000
    for sd in (5.0, 60.0):
        noisy = smooth + sd * np.random.default_rng(1).standard_normal(smooth.shape)
        found = dict(zip(SiteStatistics().names, measured(noisy[None], ("DNA",)).values[0], strict=True))
        assert found["noise_sd"] == pytest.approx(sd, rel=0.05)


def test_a_seam_is_detected_in_its_direction(plate):
    names = SiteStatistics().names
    rows, columns = names.index("seam_rows"), names.index("seam_columns")
    for seed, pixels in enumerate(plate[:6]):
        whole, torn = measured(pixels).values, measured(add_artefact(pixels, "tile_shift", 1.0, seed)[0]).values
        grown = (torn - whole)[:, [rows, columns]].max(axis=0)
        is_across_rows = bool(
            (add_artefact(pixels, "tile_shift", 1.0, seed)[0] != pixels).any(axis=(0, 2))[:20].sum() == 0
        )
        assert grown.max() > 0.3
        assert is_across_rows == (grown[0] > grown[1])


@pytest.mark.parametrize("gain", [0.25, 8.0])
def test_a_gain_on_a_channel_of_the_whole_plate_changes_nothing(plate, gain):
    gains = np.array([1.0, gain, 1.0])[:, None, None]
    counts = [pixels.astype(np.float64) for pixels in plate]
    deviations = []
    for sites in (counts, [pixels * gains for pixels in counts]):
        features = [measured(pixels) for pixels in sites]
        reference = plate_reference(features)
        deviations.append(np.stack([reference.deviations(each) for each in features]))
    np.testing.assert_allclose(deviations[0], deviations[1], rtol=1e-3, atol=0.02)


def test_the_order_of_the_channels_does_not_matter(plate):
    order = [2, 0, 1]
    straight = [measured(pixels) for pixels in plate]
    turned = [measured(pixels[order], tuple(STAINS[c] for c in order)) for pixels in plate]
    np.testing.assert_allclose(
        plate_reference(turned).deviations(turned[0]),
        plate_reference(straight).deviations(straight[0])[order],
        atol=1e-4,
    )


def test_typical_sites_deviate_by_about_one_and_the_median_by_nothing(raw):
    reference = plate_reference(raw)
    deviations = np.stack([reference.deviations(each) for each in raw])
    own = deviations[:, :, : -len(RELATIONS)]
    np.testing.assert_allclose(np.median(own, axis=0), 0, atol=1e-9)
    assert (np.abs(own) < 3).mean() > 0.9


def test_the_reference_does_not_depend_on_a_quarter_of_spoilt_sites(plate, raw):
    spoilt = [measured(add_artefact(pixels, "saturation", 1.0, i, (0, 1, 2))[0]) for i, pixels in enumerate(plate[:4])]
    clean, mixed = plate_reference(raw), plate_reference([*spoilt, *raw[4:]])
    sound = [np.abs(mixed.deviations(each)) for each in raw[4:]]
    assert np.median(sound) < 2 * np.median([np.abs(clean.deviations(each)) for each in raw[4:]])
    assert max(np.median(each) for each in sound) < min(np.median(np.abs(mixed.deviations(each))) for each in spoilt)


def test_a_swap_shows_in_the_relations_of_the_channels_that_were_exchanged(plate, raw):
    reference = plate_reference(raw)
    distance = NAMES.index("correlation_distance")
    usual = max(reference.deviations(each)[:, distance].max() for each in raw)
    for pixels in plate[:4]:
        swapped = measured(add_artefact(pixels, "channel_swap", 1.0, 0, (0, 2))[0])
        assert reference.deviations(swapped)[[0, 2], distance].min() > usual


def test_a_stain_that_the_plate_does_not_know_deviates_by_nothing(raw, plate):
    strange = measured(plate[0], ("DNA", "ER", "new"))
    deviations = plate_reference(raw).deviations(strange)
    assert not deviations[2].any()
    assert deviations[0].any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 5), (3, 17, 16), (2, 40, 64)])
def test_every_feature_is_finite_whatever_the_image(dtype, shape):
    rng = np.random.default_rng(0)
    images = [np.zeros(shape, dtype), np.full(shape, 255, dtype), (200 * rng.random(shape)).astype(dtype)]
    if dtype == "float32":
        images[-1].flat[0], images[-1].flat[-1] = np.nan, np.inf
    names = tuple("abc"[: shape[0]])
    features = [measured(image, names) for image in images]
    reference = plate_reference(features)
    for each in features:
        assert np.isfinite(each.values).all()
        assert np.isfinite(each.correlation).all()
        assert np.isfinite(reference.deviations(each)).all()


def test_the_scale_is_the_plates_and_so_an_empty_site_stays_empty(plate):
    empty = add_artefact(plate[0], "empty", 1.0, 0)[0]
    scale = plate_scale([*plate, empty], [STAINS] * (len(plate) + 1))
    assert scale.apply(empty, STAINS).max() < 0.2
    assert scale.apply(plate[0], STAINS).max() > 0.8
    for c, name in enumerate(STAINS):
        counts = np.concatenate([pixels[c].ravel() for pixels in [*plate, empty]])
        np.testing.assert_allclose(scale.ranges[name], np.percentile(counts, (0.1, 99.9)))
    assert not scale.apply(plate[0], ("x", "y", "z")).any()


def test_pixels_without_their_stains_are_refused(plate):
    with pytest.raises(ValueError, match=r"site 0: pixels of shape \(3, 96, 96\) for 2 stains \(DNA, ER\)"):
        measure_sites(plate[:1], [("DNA", "ER")], [SiteStatistics()], NO_SCALE)
