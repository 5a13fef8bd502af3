"""Statistics of controls: collected in chunks and merged in any way, they are those of all rows."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolake.embed.alignment.control_statistics import ControlStatistics
from cytolake.embed.alignment.fit import fit_alignment, fit_from_statistics
from cytolake.embed.alignment.moments import Moments, merge_moments
from cytolake.embed.alignment.variants import AlignmentConfig

ADDING_UP = ("none", "centre", "centre_scale", "standardize", "pca_cs", "tvn_efaar_v1", "tvn_vcb", "sphering")


def make_rows(seed: int, n: int, n_features: int, offset: float = 0.0):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(n, n_features)) * np.geomspace(1, 5, n_features) + offset
    return vectors, random.choice(["a", "b", "c"], size=n), random.random(n) < 0.6


def collected(chunks, **settings) -> ControlStatistics:
    statistics = ControlStatistics(chunks[0][0].shape[1], **settings)
    for chunk in chunks:
        statistics.add(*chunk)
    return statistics


def cut(rows, places: list[int]):
    return [tuple(part) for part in zip(*(np.split(each, sorted(places)) for each in rows), strict=True)]


def assert_same(got: ControlStatistics, want: ControlStatistics) -> None:
    assert got.n_wells == want.n_wells
    for ours, theirs in ((got.controls, want.controls), (got.other_wells, want.other_wells)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].n == theirs[name].n
            size = 1 + np.abs(theirs[name].mean).max() + theirs[name].squares.max()
            np.testing.assert_allclose(ours[name].mean, theirs[name].mean, rtol=0, atol=1e-12 * size)
            np.testing.assert_allclose(ours[name].squares, theirs[name].squares, rtol=1e-10, atol=1e-12 * size)
            if ours[name].root is not None:
                np.testing.assert_allclose(ours[name].scatter, theirs[name].scatter, rtol=1e-10, atol=1e-12 * size)


chunkings = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 6),
    st.lists(st.integers(0, 70), max_size=6),
    st.sampled_from([0.0, -300.0]),
)


@settings(deadline=None)
@given(chunkings, st.booleans(), st.booleans())
def test_chunks_in_any_order_and_grouping_make_the_whole(chunking, full, keep):
    seed, n, n_features, places, offset = chunking
    rows = make_rows(seed, n, n_features, offset)
    parts = [collected([chunk], full=full, keep_other_wells=keep) for chunk in cut(rows, places)]
    whole = collected([rows], full=full, keep_other_wells=keep)
    from_left = reduce(ControlStatistics.merge, parts)
    from_right = reduce(lambda right, left: left.merge(right), reversed(parts))
    shuffled = reduce(ControlStatistics.merge, [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))])
    for merged in (from_left, from_right, shuffled, collected(cut(rows, places), full=full, keep_other_wells=keep)):
        assert_same(merged, whole)


@settings(deadline=None)
@given(chunkings)
def test_merged_moments_are_those_of_numpy(chunking):
    seed, n, n_features, places, offset = chunking
    rows = make_rows(seed, n, n_features, offset)[0]
    parts = [Moments.of_rows(part, full=True) for part in np.split(rows, sorted(places)) if len(part)]
    merged = merge_moments(parts)
    deviations = rows - rows.mean(axis=0)
    assert merged.n == n
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), atol=1e-11)
    np.testing.assert_allclose(merged.scatter, deviations.T @ deviations, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(merged.squares, np.diag(merged.scatter), rtol=1e-10, atol=1e-9)


def test_merging_changes_neither_part():
    left, right = collected([make_rows(0, 30, 3)]), collected([make_rows(1, 30, 3)])
    before = left.controls["a"].scatter, right.controls["a"].scatter, dict(left.n_wells)
    left.merge(right)
    np.testing.assert_array_equal(left.controls["a"].scatter, before[0])
    np.testing.assert_array_equal(right.controls["a"].scatter, before[1])
    assert left.n_wells == before[2]


@pytest.mark.parametrize("variant", ADDING_UP)
@pytest.mark.parametrize("missing", ["error", "all_wells"])
def test_every_variant_fits_from_chunks_as_from_all_rows(variant, missing):
    vectors, batches, is_control = make_rows(3, 900, 7, offset=40)
    if missing == "all_wells":
        is_control = is_control & (batches != "b")
    config = AlignmentConfig(variant=variant, missing_controls=missing)
    statistics = ControlStatistics.for_config(config, 7)
    for chunk in cut((vectors, batches, is_control), [1, 2, 100, 450, 450, 700]):
        statistics.add(*chunk)
    fitted = fit_from_statistics(statistics, config)
    in_memory = fit_alignment(vectors, batches, is_control, config)
    assert fitted.batches == in_memory.batches
    np.testing.assert_allclose(fitted.apply(vectors, batches), in_memory.apply(vectors, batches), rtol=0, atol=1e-8)


def test_digits_survive_a_large_offset_and_features_that_nearly_depend_on_each_other():
    """The covariance of these rows, squared spreads of 1 and 1e-14, would lose the smallest direction."""
    random = np.random.default_rng(0)
    common = random.normal(size=(400, 1))
    vectors = 1e3 + common + 1e-7 * random.normal(size=(400, 3))
    batches, is_control = ["a"] * 400, np.ones(400, bool)
    config = AlignmentConfig(variant="sphering", sphering_method="ZCA", epsilon=0)
    statistics = collected(cut((vectors, np.asarray(batches), is_control), [37, 111, 290]))
    sphered = fit_from_statistics(statistics, config).apply(vectors, batches)
    np.testing.assert_allclose(np.cov(sphered, rowvar=False), np.eye(3), atol=1e-5)


def test_a_constant_stays_constant_over_chunks_and_long_sums():
    """The plain mean of so many equal numbers is off by 1e-11 of them, which would pass for a spread."""
    values = np.full((100_000, 2), 12345.678)
    assert np.abs(values.mean(axis=0) - 12345.678).max() > 1e-8
    chunk = values, np.full(100_000, "a"), np.ones(100_000, bool)
    statistics = collected([chunk, cut(chunk, [7])[0], chunk], full=False)
    fitted = fit_from_statistics(statistics, AlignmentConfig(variant="centre_scale"))
    assert fitted.batches[0].constant_features == (0, 1)
    np.testing.assert_allclose(fitted.apply([[12346.678, 12345.678]], ["a"]), [[1.0, 0.0]], atol=1e-8)


def test_memory_does_not_grow_with_rows():
    vectors, batches, is_control = make_rows(0, 5000, 4)
    for chunks in (cut((vectors, batches, is_control), list(range(50, 5000, 50))), [(vectors, batches, is_control)]):
        for moments in collected(chunks).controls.values():
            assert moments.root is not None
            assert len(moments.root) <= 2 * 4
    variances = ControlStatistics.for_config(AlignmentConfig(variant="centre_scale"), 4)
    variances.add(vectors, batches, is_control)
    assert all(moments.root is None for moments in variances.controls.values())
    assert not variances.other_wells


@pytest.mark.parametrize("variant", ["robustize", "mad_robustize"])
def test_medians_do_not_add_up_and_say_so(variant):
    config = AlignmentConfig(variant=variant)
    for refused in (
        lambda: ControlStatistics.for_config(config, 4),
        lambda: fit_from_statistics(ControlStatistics(4), config),
    ):
        with pytest.raises(ValueError, match=rf"{variant} takes medians, which need all control rows at once"):
            refused()


def test_statistics_of_different_kinds_do_not_mix():
    with pytest.raises(ValueError, match="cannot be merged"):
        ControlStatistics(4).merge(ControlStatistics(5))
    with pytest.raises(ValueError, match="cannot be merged"):
        ControlStatistics(4).merge(ControlStatistics(4, full=False))
    variances = collected([make_rows(0, 50, 4)], full=False)
    with pytest.raises(ValueError, match=r"variant pca_cs .* needs full=True"):
        fit_from_statistics(variances, AlignmentConfig(variant="pca_cs"))
    with pytest.raises(ValueError, match="hold variances alone"):
        _ = variances.controls["a"].scatter
    with pytest.raises(ValueError, match="needs full=False, keep_other_wells=True"):
        fit_from_statistics(variances, AlignmentConfig(variant="centre", missing_controls="all_wells"))


def test_a_chunk_with_a_bad_row_counts_for_nothing():
    vectors, batches, is_control = make_rows(0, 50, 4)
    statistics = collected([(vectors, batches, is_control)])
    before = dict(statistics.n_wells)
    with pytest.raises(ValueError, match="rows 7"):
        statistics.add(np.where(np.arange(50)[:, None] == 7, np.nan, vectors), batches, is_control)
    assert statistics.n_wells == before


def test_batches_without_controls_are_named_from_statistics_too():
    vectors, batches, is_control = make_rows(0, 60, 4)
    statistics = collected([(vectors, batches, is_control & (batches != "b"))])
    with pytest.raises(ValueError, match=rf"b \(0 of {int((batches == 'b').sum())} wells\)"):
        fit_from_statistics(statistics, AlignmentConfig(variant="centre"))
    with pytest.raises(ValueError, match="no rows to fit"):
        fit_from_statistics(ControlStatistics(4), AlignmentConfig(variant="centre"))
