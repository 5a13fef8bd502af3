"""Reconstruction in streams against the whole matrices, and structural integrity on known answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse, stats

from cytolake.benchmark.transcriptomics.decoder import DecoderConfig, learning_rate_factor, make_decoder, train_decoder
from cytolake.benchmark.transcriptomics.embeddings import principal_components
from cytolake.benchmark.transcriptomics.perturbation_split import split_screen
from cytolake.benchmark.transcriptomics.reconstruction import judge, no_skill, structural_integrity
from cytolake.benchmark.transcriptomics.screen import Screen

QUICK = DecoderConfig(epochs=4, warm_up_epochs=1, learning_rate=3e-3, minibatch_size=64)


@pytest.fixture
def matrices():
    """Truth of three batches with shifts of their own, their controls, and the truth without effects."""
    random = np.random.default_rng(0)
    batches, is_control = np.repeat([0, 1, 2], [20, 35, 50]), np.arange(105) % 5 == 0
    centre = random.normal(size=(3, 7))[batches] * 4
    effects = random.normal(size=(105, 7))
    for batch in range(3):
        effects[batches == batch] -= effects[(batches == batch) & is_control].mean(axis=0)
    return centre, effects, batches, is_control


def test_integrity_is_1_for_the_truth_half_for_no_effect_and_0_for_the_opposite(matrices):
    centre, effects, batches, is_control = matrices
    truth = centre + effects
    for factor, expected in ((1.0, 1.0), (0.0, 0.5), (-1.0, 0.0), (-2.0, -0.5)):
        predicted = centre + factor * effects
        assert structural_integrity(predicted, truth, batches, is_control) == pytest.approx(expected)
        elsewhere = predicted + 9 * batches[:, None]  # a shift of a whole batch is no difference
        assert structural_integrity(elsewhere, truth, batches, is_control) == pytest.approx(expected)


def integrity_by_loop(predicted, truth, batches, is_control):
    distances, norms = [], []
    for batch in sorted(set(batches.tolist())):
        p, t = predicted[batches == batch].copy(), truth[batches == batch].copy()
        of_batch = is_control[batches == batch]
        if of_batch.any():
            p, t = p - p[of_batch].mean(axis=0), t - t[of_batch].mean(axis=0)
        distances.append(np.sqrt(((p - t) ** 2).sum()) / len(p))
        norms.append(np.sqrt((t**2).sum()) / len(p))
    return 1 - np.mean(distances) / (2 * np.mean(norms))


def test_integrity_is_that_of_a_loop_also_with_a_batch_without_controls(matrices):
    centre, effects, batches, is_control = matrices
    truth = centre + effects
    predicted = truth + np.random.default_rng(1).normal(size=truth.shape)
    for controls in (is_control, is_control & (batches != 1)):
        expected = integrity_by_loop(predicted, truth, batches, controls)
        assert structural_integrity(predicted, truth, batches, controls) == pytest.approx(expected)


def noisy(screen: Screen):
    """A prediction of each row that needs no training: the truth, shrunk and disturbed; the last gene is constant."""
    truth = screen.features.toarray()
    predicted = 0.6 * truth + np.random.default_rng(2).normal(size=truth.shape).astype(np.float32)
    predicted[:, -1] = 3
    return truth.astype(np.float64), predicted, lambda rows, genes: predicted[rows][:, genes]


@pytest.mark.parametrize("minibatch_size", [7, 10_000])
def test_figures_in_streams_are_those_of_the_whole_matrices(screen, minibatch_size):
    truth, predicted, predict = noisy(screen)
    rows = split_screen(screen, 0).test2
    config = DecoderConfig(minibatch_size=minibatch_size, block_bytes=24 * len(rows) * 13)
    found = judge(screen, predict, rows, config)
    t, p = truth[rows], predicted[rows].astype(np.float64)
    assert found.mse == pytest.approx(np.square(p - t).mean())
    assert found.mae == pytest.approx(np.abs(p - t).mean())
    assert found.r2 == pytest.approx(1 - np.square(p - t).sum() / np.square(t - t.mean()).sum())
    for gene in range(0, t.shape[1] - 1, 6):
        assert found.pearson[gene] == pytest.approx(stats.pearsonr(p[:, gene], t[:, gene]).statistic)
        assert found.spearman[gene] == pytest.approx(stats.spearmanr(p[:, gene], t[:, gene]).statistic)
    assert found.pearson[-1] == found.spearman[-1] == 0  # a constant prediction has no information
    batches, is_control = screen.batch_of_row[rows], screen.is_control[rows]
    assert found.integrity == pytest.approx(integrity_by_loop(p, t, batches, is_control))
    keys = sorted(set(zip(batches.tolist(), screen.perturbation_of_row[rows].tolist(), strict=True)))
    members = [(batches == batch) & (screen.perturbation_of_row[rows] == place) for batch, place in keys]
    assert found.profile_integrity == pytest.approx(
        integrity_by_loop(
            np.stack([p[each].mean(axis=0) for each in members]),
            np.stack([t[each].mean(axis=0) for each in members]),
            np.asarray([batch for batch, _ in keys]),
            np.asarray([place < 0 for _, place in keys]),
        )
    )


def test_every_test_row_counts(screen):
    """The published figures read one of a hundred minibatches: a change of the others would not show."""
    _, predicted, predict = noisy(screen)
    rows = split_screen(screen, 0).test2
    before = judge(screen, predict, rows, DecoderConfig(minibatch_size=4))
    for row in rows[:: len(rows) // 9]:
        predicted[row] += 2
        after = judge(screen, predict, rows, DecoderConfig(minibatch_size=4))
        assert after.mse != before.mse
        assert after.integrity != before.integrity
        before = after


def test_a_gene_that_does_not_vary_has_no_correlation(screen):
    features = screen.features.tolil()
    features[:, 2] = 1.5
    constant = dataclasses.replace(screen, features=sparse.csr_matrix(features, dtype=np.float32))
    _, _, predict = noisy(screen)
    found = judge(constant, predict, np.arange(screen.n_rows), DecoderConfig())
    assert np.isnan(found.pearson[2])
    assert np.isnan(found.spearman[2])
    assert np.isfinite(np.delete(found.pearson, 2)).all()


def test_sparse_in_streams_and_dense_in_one_piece_train_the_same_decoder(screen):
    split = split_screen(screen, 0)
    whole = dataclasses.replace(screen, features=screen.features.toarray())
    vectors = screen.embeddings["model"]
    predictions = []
    for given in (screen, whole):
        predict = train_decoder(given, vectors, split.train, QUICK, seed=3)
        predictions.append(predict(split.test2, slice(0, 60)))
        np.testing.assert_allclose(predict(split.test2, slice(11, 23)), predictions[-1][:, 11:23], atol=1e-5)
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)


@dataclasses.dataclass(frozen=True)
class Recorded(Screen):
    """Keeps which rows became dense."""

    read: list[np.ndarray] = dataclasses.field(default_factory=list)

    def dense_rows(self, rows):
        self.read.append(rows)
        return dataclasses.replace(self).features[rows].toarray()


@pytest.mark.parametrize("minibatch_size", [50, 100_000])
def test_each_epoch_reads_every_row_and_never_more_than_a_minibatch_at_once(screen, minibatch_size):
    recorded = Recorded(**{field.name: getattr(screen, field.name) for field in dataclasses.fields(Screen)})
    rows = split_screen(screen, 0).train
    config = dataclasses.replace(QUICK, minibatch_size=minibatch_size)
    train_decoder(recorded, screen.embeddings["model"], rows, config, seed=0)
    assert max(map(len, recorded.read)) == min(minibatch_size, len(rows))
    read = np.concatenate(recorded.read).reshape(config.epochs, len(rows))
    for epoch in read:
        np.testing.assert_array_equal(np.sort(epoch), rows)
    assert not np.array_equal(read[0], read[1])


def test_training_learns_where_the_embedding_knows_and_not_where_it_does_not(screen):
    split = split_screen(screen, 0)
    known = principal_components(screen.features, 20)
    config = DecoderConfig(epochs=15, warm_up_epochs=2, learning_rate=3e-3, minibatch_size=64)
    scores = []
    for vectors in (known, known[np.random.default_rng(0).permutation(len(known))]):
        found = judge(screen, train_decoder(screen, vectors, split.train, config, 0), split.test2, config)
        scores.append((found.r2, float(found.pearson.mean()), found.integrity, found.profile_integrity))
    informed, scrambled = scores
    assert all(a > b for a, b in zip(informed, scrambled, strict=True))
    assert informed[1] > 0.2
    assert abs(scrambled[1]) < 0.1


def test_the_same_seed_trains_the_same_decoder_and_leaves_torch_as_it_was(screen):
    import torch

    rows = np.arange(60)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, b, c = (train_decoder(screen, screen.embeddings["model"], rows, QUICK, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(a(rows, slice(0, 60)), b(rows, slice(0, 60)))
    assert not np.array_equal(a(rows, slice(0, 60)), c(rows, slice(0, 60)))


def test_layers_lie_on_the_line_from_embedding_to_features():
    linear = [layer for layer in make_decoder(20, 100) if hasattr(layer, "weight")]
    assert [tuple(layer.weight.shape) for layer in linear] == [(40, 20), (60, 40), (80, 60), (100, 80)]


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate_factor(step, 10, 50) for step in range(51)]
    assert rates[0] == pytest.approx(0.03)
    assert rates[10] == max(rates) == 1
    assert rates[50] == pytest.approx(0)
    assert rates[30] == pytest.approx(0.5)
    assert np.diff(rates[:11]).min() > 0 > np.diff(rates[10:]).max()


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("warm_up_epochs", 30), ("block_bytes", 0)])
def test_a_decoder_that_cannot_be_trained_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"decoder\.{field}"):
        DecoderConfig(**{field: value})


def test_no_skill_is_the_mean_of_the_training_rows_judged_as_any_prediction(screen):
    """Features differ in their means, so even that explains much of the deviation from the mean of all values."""
    split = split_screen(screen, 0)
    mean = screen.dense_rows(split.train).astype(np.float64).mean(axis=0)
    found = judge(screen, lambda rows, block: np.tile(mean[block], (len(rows), 1)), split.test2, DecoderConfig())
    guess = no_skill(screen, split.train, split.test2, DecoderConfig(minibatch_size=7))
    assert (guess.mse, guess.mae, guess.r2) == pytest.approx((found.mse, found.mae, found.r2))
    assert guess.r2 > 0.1
