"""Alignment on synthetic screens whose batches and controls are known.

Letters: N wells, D features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from scipy.stats import median_abs_deviation, ortho_group
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import RobustScaler, StandardScaler

from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.fitted import Whitening
from cytolake.embed.alignment.variants import AlignmentConfig, Variant

CENTRING: tuple[Variant, ...] = ("centre", "centre_scale", "standardize", "pca_cs", "tvn_vcb")
ALL: tuple[Variant, ...] = (*CENTRING, "none", "robustize", "mad_robustize", "tvn_efaar_v1", "sphering")


@dataclasses.dataclass(frozen=True)
class Screen:
    vectors: np.ndarray
    batches: np.ndarray
    is_control: np.ndarray

    def fit(self, variant: Variant, **settings):
        return fit_alignment(self.vectors, self.batches, self.is_control, AlignmentConfig(variant=variant, **settings))

    def aligned(self, variant: Variant, **settings) -> np.ndarray:
        return self.fit(variant, **settings).apply(self.vectors, self.batches)

    def but(self, **changes) -> Screen:
        return dataclasses.replace(self, **changes)

    def control_means(self, aligned: np.ndarray) -> np.ndarray:
        return np.stack([aligned[self.of(batch) & self.is_control].mean(axis=0) for batch in np.unique(self.batches)])

    def of(self, batch: str) -> np.ndarray:
        return self.batches == batch


def make_screen(n_batches: int = 5, wells_each: int = 120, n_features: int = 16, controls_each: int = 40) -> Screen:
    """Batches differ by an offset with sd 2 in every feature, of correlated features on scales from 1 to 10."""
    random = np.random.default_rng(0)
    mixing_DD = random.normal(size=(n_features, n_features)) * np.geomspace(1, 10, n_features)
    noise_ND = random.normal(size=(n_batches * wells_each, n_features))
    offsets_ND = np.repeat(random.normal(scale=2, size=(n_batches, n_features)), wells_each, axis=0)
    return Screen(
        vectors=(noise_ND + offsets_ND) @ mixing_DD + 30,
        batches=np.repeat([f"B{i}" for i in range(n_batches)], wells_each),
        is_control=np.tile(np.arange(wells_each) < controls_each, n_batches),
    )


@pytest.fixture(scope="module")
def screen() -> Screen:
    return make_screen()


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("variant", CENTRING)
def test_the_controls_of_each_batch_end_at_zero(screen, variant):
    assert np.abs(screen.control_means(screen.aligned(variant))).max() < 1e-8


def test_tvn_efaar_v1_leaves_batches_apart(screen):
    residual = np.linalg.norm(screen.control_means(screen.aligned("tvn_efaar_v1")), axis=1)
    assert residual.min() > 1


def test_a_batch_can_be_recognised_after_tvn_efaar_v1_and_not_after_the_others(screen):
    wells = ~screen.is_control
    predicted = {
        variant: cross_val_score(
            LogisticRegression(max_iter=2000),
            StandardScaler().fit_transform(screen.aligned(variant)[wells]),
            screen.batches[wells],
            cv=3,
        ).mean()
        for variant in ("none", "tvn_efaar_v1", "centre_scale", "pca_cs", "tvn_vcb")
    }
    assert predicted["none"] > 0.99
    assert predicted["tvn_efaar_v1"] > 0.99
    for variant in ("centre_scale", "pca_cs", "tvn_vcb"):
        assert predicted[variant] < 0.35, variant  # chance is 0.20; means of 40 controls leave a little


@pytest.mark.parametrize(
    "variant", ["centre_scale", "robustize", "mad_robustize", "tvn_efaar_v1", "tvn_vcb", "sphering"]
)
def test_units_of_the_features_do_not_matter(screen, variant):
    units = np.geomspace(1e-3, 1e3, screen.vectors.shape[1])
    rescaled = screen.but(vectors=screen.vectors * units + 5 * units)
    np.testing.assert_allclose(cosines(rescaled.aligned(variant)), cosines(screen.aligned(variant)), atol=1e-8)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("centre", {}),
        ("pca_cs", {}),
        ("sphering", {"sphering_method": "PCA"}),
        ("sphering", {"sphering_method": "ZCA"}),
    ],
)
def test_a_rotation_of_the_input_does_not_matter(screen, variant, settings):
    turned = screen.but(vectors=screen.vectors @ ortho_group.rvs(screen.vectors.shape[1], random_state=1))
    expected = cosines(screen.aligned(variant, **settings))
    np.testing.assert_allclose(cosines(turned.aligned(variant, **settings)), expected, atol=1e-8)


@pytest.mark.parametrize("variant", ["centre", "centre_scale", "tvn_vcb"])  # pca_cs: its PCA sees the offsets
def test_an_offset_of_a_whole_batch_does_not_matter(screen, variant):
    shifted = screen.vectors + 50 * screen.of("B3")[:, None]
    np.testing.assert_allclose(screen.but(vectors=shifted).aligned(variant), screen.aligned(variant), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["ZCA", "ZCA-cor", "PCA", "PCA-cor"])
def test_sphered_controls_have_identity_covariance(screen, method):
    controls = screen.aligned("sphering", sphering_method=method, epsilon=0)[screen.is_control]
    np.testing.assert_allclose(np.cov(controls, rowvar=False), np.eye(16), atol=1e-9)


def test_zca_moves_vectors_less_than_pca(screen):
    """Of all ways to sphere, ZCA stays closest to the input (Kessy et al. 2018)."""
    scaled = screen.but(vectors=screen.aligned("centre_scale", scope="all"))
    moved = {
        method: np.square(scaled.aligned("sphering", sphering_method=method) - scaled.vectors)[screen.is_control].sum()
        for method in ("ZCA", "PCA")
    }
    assert moved["ZCA"] < moved["PCA"]


def test_pca_cs_is_a_pca_and_scalers_of_scikit_learn(screen):
    expected = PCA().fit(screen.vectors[screen.is_control]).transform(screen.vectors)
    for batch in np.unique(screen.batches):
        rows = screen.of(batch)
        expected[rows] = StandardScaler().fit(expected[rows & screen.is_control]).transform(expected[rows])
    np.testing.assert_allclose(screen.aligned("pca_cs"), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(screen.aligned("pca_cs", n_components=5), expected[:, :5], rtol=0, atol=1e-8)


@pytest.mark.parametrize("controls_each", [40, 6], ids=["many_controls", "fewer_controls_than_features"])
def test_tvn_vcb_is_its_four_steps_written_out(controls_each):
    screen = make_screen(controls_each=controls_each)

    def scaled_per_batch(rows: np.ndarray) -> np.ndarray:
        out = rows.copy()
        for batch in np.unique(screen.batches):
            here = screen.of(batch)
            out[here] = StandardScaler().fit(rows[here & screen.is_control]).transform(rows[here])
        return out

    expected = scaled_per_batch(screen.vectors)
    expected = scaled_per_batch(PCA().fit(expected[screen.is_control]).transform(expected))
    half = 0.5 * np.eye(16)
    target = fractional_matrix_power(np.cov(expected[screen.is_control], rowvar=False) + half, 0.5)
    for batch in np.unique(screen.batches):
        here = screen.of(batch)
        own = np.cov(expected[here & screen.is_control], rowvar=False) + half
        expected[here] = expected[here] @ fractional_matrix_power(own, -0.5).real @ target  # SciPy may give 0j
    np.testing.assert_allclose(screen.aligned("tvn_vcb"), expected, rtol=0, atol=1e-8)


def test_robust_variants_are_those_of_scikit_learn_and_scipy_in_each_batch(screen):
    for batch in np.unique(screen.batches):
        rows, controls = screen.vectors[screen.of(batch)], screen.vectors[screen.of(batch) & screen.is_control]
        quartiles = RobustScaler().fit(controls).transform(rows)
        np.testing.assert_allclose(screen.aligned("robustize")[screen.of(batch)], quartiles, atol=1e-10)
        mad = median_abs_deviation(controls, scale=1 / 1.4826)
        expected = (rows - np.median(controls, axis=0)) / mad
        np.testing.assert_allclose(screen.aligned("mad_robustize")[screen.of(batch)], expected, atol=1e-10)


def test_a_pca_of_few_controls_keeps_the_directions_in_which_they_vary():
    """10 controls vary in 9 directions. scikit-learn's tenth is rounding; scaled to variance 1 it drowns the rest."""
    few = make_screen(n_batches=1, wells_each=600, controls_each=10)
    reference = PCA().fit(few.vectors[few.is_control]).transform(few.vectors)
    reference = StandardScaler().fit(reference[few.is_control]).transform(reference)
    assert reference.shape == (600, 10)
    assert np.abs(reference[:, 9]).max() > 1e9 * np.abs(reference[:, :9]).max()
    aligned = few.aligned("pca_cs")
    np.testing.assert_allclose(aligned, reference[:, :9], rtol=0, atol=1e-8)
    assert few.aligned("tvn_vcb").shape == few.aligned("tvn_efaar_v1").shape == (600, 9)
    with pytest.raises(ValueError, match=r"n_components is 10, but the 10 negative controls vary in 9 directions"):
        few.fit("pca_cs", n_components=10)


@pytest.mark.parametrize("variant", ["tvn_vcb", "tvn_efaar_v1"])
def test_batches_with_few_controls_are_whitened_by_small_matrices(variant):
    few = make_screen(controls_each=6)
    fitted = few.fit(variant)
    aligned = fitted.apply(few.vectors, few.batches)
    assert aligned.shape == (600, 16)
    assert np.abs(aligned).max() < 100
    assert [stage.basis.shape for stage in fitted.stages if isinstance(stage, Whitening)] == [(5, 6, 16)]


def test_sphering_by_few_controls_gives_the_rest_the_smallest_spread():
    few = make_screen(n_batches=1, controls_each=10)
    centred = few.vectors - few.vectors[few.is_control].mean(axis=0)
    _, singular, directions = np.linalg.svd(centred[few.is_control], full_matrices=False)
    along = centred @ directions[:9].T
    rest = centred - along @ directions[:9]
    gram = 9 * ((along / singular[:9] ** 2) @ along.T + rest @ rest.T / singular[8] ** 2)
    sphered = few.aligned("sphering", sphering_method="PCA", epsilon=0)
    np.testing.assert_allclose(sphered @ sphered.T, gram, rtol=1e-8, atol=1e-8 * np.abs(gram).max())
    with pytest.raises(ValueError, match=r"10 negative controls for 16 features\. ZCA-cor needs .* Use PCA-cor"):
        few.fit("sphering")


@pytest.mark.parametrize("variant", ALL)
def test_the_input_stays_as_it_was_and_integers_are_not_rounded_to(screen, variant):
    whole = np.rint(screen.vectors * 10).astype(np.int32)
    integers, floats = screen.but(vectors=whole.copy()), screen.but(vectors=whole.astype(np.float64))
    aligned = integers.aligned(variant)
    np.testing.assert_array_equal(aligned, floats.aligned(variant))
    np.testing.assert_array_equal(integers.vectors, whole)
    np.testing.assert_array_equal(floats.vectors, whole)
    assert aligned.dtype == np.float64
    assert not np.shares_memory(aligned, floats.vectors)


@pytest.mark.parametrize("variant", ALL)
def test_a_row_is_aligned_by_itself_in_any_order(screen, variant):
    fitted, order = screen.fit(variant), np.random.default_rng(1).permutation(600)[:50]
    some = fitted.apply(screen.vectors[order], screen.batches[order])
    np.testing.assert_allclose(some, screen.aligned(variant)[order], rtol=0, atol=1e-10)
    assert fitted.apply(screen.vectors[:0], []).shape == (0, fitted.n_out)


@pytest.mark.parametrize("variant", ALL)
def test_wells_that_are_no_controls_have_no_say(screen, variant):
    changed = np.where(screen.is_control[:, None], screen.vectors, -7 * screen.vectors[::-1])
    assert screen.but(vectors=changed).fit(variant).id == screen.fit(variant).id


def test_batches_may_be_numbers(screen):
    numbered = screen.but(batches=np.repeat(np.arange(5), 120))
    np.testing.assert_array_equal(numbered.aligned("centre_scale"), screen.aligned("centre_scale"))


def test_a_fit_says_what_it_was_fitted_on(screen):
    is_control = screen.is_control.copy()
    is_control[np.flatnonzero(screen.of("B2") & is_control)[:-7]] = False
    fitted = screen.but(is_control=is_control).fit("centre_scale")
    assert {batch.name: batch.n_controls for batch in fitted.batches} == {
        "B0": 40,
        "B1": 40,
        "B2": 7,
        "B3": 40,
        "B4": 40,
    }
    assert fitted.batches_on_all_wells == ()


@pytest.mark.parametrize("n_controls", [0, 1])
def test_a_batch_without_enough_controls_is_named_or_uses_all_its_wells(screen, n_controls):
    is_control = screen.is_control.copy()
    is_control[np.flatnonzero(screen.of("B2"))[n_controls:]] = False
    poor = screen.but(is_control=is_control)
    with pytest.raises(ValueError, match=rf"1 of 5 batches .* tvn_vcb: B2 \({n_controls} of 120 wells\).*all_wells"):
        poor.fit("tvn_vcb")
    fitted = poor.fit("centre_scale", missing_controls="all_wells")
    assert fitted.batches_on_all_wells == ("B2",)
    here = fitted.batches[2]
    assert (here.n_controls, here.n_reference) == (n_controls, 120)
    aligned = fitted.apply(poor.vectors, poor.batches)
    np.testing.assert_allclose(aligned[poor.of("B2")].mean(axis=0), 0, atol=1e-8)
    others = ~poor.of("B2")
    np.testing.assert_array_equal(aligned[others], screen.aligned("centre_scale")[others])


def test_one_control_can_centre_but_not_scale(screen):
    one = screen.but(is_control=np.tile(np.arange(120) == 0, 5))
    np.testing.assert_allclose(one.aligned("centre", min_controls=1)[one.is_control], 0, atol=1e-10)
    with pytest.raises(ValueError, match="5 of 5 batches have too few negative controls for centre"):
        one.fit("centre")
    with pytest.raises(ValueError, match=r"min_controls is 1, expected 2 or more for centre_scale"):
        AlignmentConfig(variant="centre_scale", min_controls=1)


def test_no_controls_at_all_is_an_error_and_a_batch_of_one_well_too(screen):
    none = screen.but(is_control=np.zeros(600, bool))
    with pytest.raises(ValueError, match="0 negative controls in 5 batches, expected at least 2"):
        none.fit("sphering")
    np.testing.assert_array_equal(none.aligned("none"), screen.vectors)
    alone = none.but(batches=np.where(np.arange(600) == 17, "lone", "rest"))
    with pytest.raises(ValueError, match=r"lone \(0 of 1 wells\).*too few as well"):
        alone.fit("centre_scale", missing_controls="all_wells")


@pytest.mark.parametrize("variant", ["centre_scale", "robustize", "mad_robustize"])
def test_a_feature_that_is_constant_among_controls_is_what_the_config_says(screen, variant):
    vectors = screen.vectors.copy()
    vectors[:, 3] = np.where(screen.is_control, 12345.678, 12347.678)
    constant = screen.but(vectors=vectors)
    unscaled = constant.fit(variant)
    assert all(batch.constant_features == (3,) for batch in unscaled.batches)
    wells = ~screen.is_control
    np.testing.assert_allclose(unscaled.apply(vectors, screen.batches)[wells, 3], 2, atol=1e-8)
    zero = constant.aligned(variant, constant_features="zero")
    np.testing.assert_array_equal(zero[:, 3], 0)
    others = np.arange(16) != 3
    np.testing.assert_array_equal(zero[:, others], constant.aligned(variant)[:, others])
    with pytest.raises(ValueError, match=r"B0: 1 of 16 features have no spread .*: features 3\."):
        constant.fit(variant, constant_features="error")


def test_features_without_spread_or_that_depend_on_others(screen):
    constant = screen.vectors.copy()
    constant[:, 3] = 5
    dependent = screen.vectors.copy()
    dependent[:, 3] = dependent[:, 4] - 2 * dependent[:, 7]
    for vectors in (constant, dependent):
        changed = screen.but(vectors=vectors)
        for variant in ("pca_cs", "tvn_efaar_v1", "tvn_vcb"):
            aligned = changed.aligned(variant)
            # Scaling in each batch by itself undoes the dependence over all of them.
            assert aligned.shape == (600, 16 if vectors is dependent and variant == "tvn_vcb" else 15)
            assert np.abs(aligned).max() < 100
    with pytest.raises(ValueError, match=r"all batches: 1 of 16 features have no spread among the 200 .*features 3"):
        screen.but(vectors=constant).fit("sphering")
    with pytest.raises(ValueError, match=r"200 negative controls vary in 15 directions, expected 16"):
        screen.but(vectors=dependent).fit("sphering")
    with pytest.raises(ValueError, match="the 200 negative controls are all alike"):
        screen.but(vectors=np.ones_like(constant)).fit("pca_cs")


def test_rows_that_are_not_finite_are_named(screen):
    vectors = screen.vectors.copy()
    vectors[[4, 17], 2] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 600 vectors are not finite: rows 4, 17"):
        screen.but(vectors=vectors).fit("none")
    with pytest.raises(ValueError, match="2 of 600 vectors are not finite: rows 4, 17"):
        screen.fit("centre").apply(vectors, screen.batches)


def test_a_batch_that_was_not_fitted_is_an_error_unless_all_batches_are_aligned_alike(screen):
    batches = np.where(screen.of("B1"), "B9", screen.batches)
    with pytest.raises(ValueError, match=r"1 of 5 batches were not in the fit: B9\. .*B0, B1, B2, B3, B4"):
        screen.fit("tvn_efaar_v1").apply(screen.vectors, batches)
    fitted = screen.fit("sphering")
    np.testing.assert_array_equal(fitted.apply(screen.vectors, batches), screen.aligned("sphering"))


def test_a_batch_variant_fitted_on_one_batch_takes_no_other():
    one = make_screen(n_batches=1)
    with pytest.raises(ValueError, match="not in the fit: other"):
        one.fit("centre").apply(one.vectors, ["other"] * len(one.vectors))


def test_inputs_of_another_shape_or_type_are_refused(screen):
    config = AlignmentConfig(variant="centre")
    vectors, batches, is_control = screen.vectors, screen.batches, screen.is_control
    with pytest.raises(ValueError, match=r"vectors have shape \(600,\)"):
        fit_alignment(vectors[:, 0], batches, is_control, config)
    with pytest.raises(ValueError, match="of type complex128"):
        fit_alignment(vectors * 1j, batches, is_control, config)
    with pytest.raises(ValueError, match=r"batches have shape \(599,\), expected \(600,\)"):
        fit_alignment(vectors, batches[1:], is_control, config)
    with pytest.raises(ValueError, match=r"is_control has shape \(600,\) and type int64"):
        fit_alignment(vectors, batches, is_control.astype(np.int64), config)
    with pytest.raises(ValueError, match="3 rows have no batch: rows 1, 5, 9"):
        fit_alignment(vectors, [{1: None, 5: "", 9: float("nan")}.get(i, "B") for i in range(600)], is_control, config)
    with pytest.raises(ValueError, match="no rows to fit an alignment on"):
        fit_alignment(vectors[:0], [], is_control[:0], config)
    with pytest.raises(ValueError, match="vectors have 15 features, the alignment was fitted on 16"):
        screen.fit("centre").apply(vectors[:, 1:], batches)


def test_without_shrinkage_directions_without_spread_cannot_be_whitened(screen):
    few = make_screen(controls_each=6)
    with pytest.raises(ValueError, match=r"6 negative controls .*shrinkage above 0"):
        few.fit("tvn_vcb", shrinkage=0)
    controls = screen.but(vectors=screen.aligned("tvn_efaar_v1", shrinkage=0)).vectors
    own = np.cov(controls[screen.of("B1") & screen.is_control], rowvar=False)
    np.testing.assert_allclose(own, np.eye(16), atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"variant": "tvn"}, "variant"),
        ({"variant": "pca_cs", "scope": "all"}, "scope"),
        ({"variant": "centre", "scope": "plate"}, "scope"),
        ({"variant": "centre", "n_components": 3}, "n_components"),
        ({"variant": "pca_cs", "n_components": 0}, "n_components"),
        ({"variant": "tvn_vcb", "shrinkage": -0.5}, "shrinkage"),
        ({"variant": "sphering", "epsilon": float("nan")}, "epsilon"),
        ({"variant": "sphering", "sphering_method": "zca"}, "sphering_method"),
        ({"variant": "centre", "min_controls": 0}, "min_controls"),
        ({"variant": "centre", "missing_controls": "skip"}, "missing_controls"),
        ({"variant": "centre", "constant_features": "drop"}, "constant_features"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, field):
    with pytest.raises(ValueError, match=rf"alignment\.{field} is "):
        AlignmentConfig(**settings)
