"""What the genes of an arm share is taken out, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.embed.alignment.chromosome_arms import fit_chromosome_arms

N_ARMS, GENES_EACH, D = 4, 30, 12


class Map:
    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.genes = [f"G{i:03d}" for i in range(N_ARMS * GENES_EACH)]
        self.arm_of_gene = {gene: f"{i // GENES_EACH + 1}p" for i, gene in enumerate(self.genes)}
        self.own = random.normal(size=(len(self.genes), D))
        self.arm_effect = np.repeat(random.normal(scale=5, size=(N_ARMS, D)), GENES_EACH, axis=0)
        self.vectors = self.own + self.arm_effect
        self.arm = np.repeat(np.arange(N_ARMS), GENES_EACH)


@pytest.fixture
def genome() -> Map:
    return Map()


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def test_genes_of_one_arm_look_alike_before_and_not_after(genome):
    arms = fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene)
    same = (genome.arm[:, None] == genome.arm) & ~np.eye(len(genome.arm), dtype=bool)
    assert cosines(genome.vectors)[same].mean() > 0.8
    assert abs(cosines(arms.apply(genome.vectors, genome.genes))[same].mean()) < 0.05
    assert arms.arms == ("1p", "2p", "3p", "4p")
    assert arms.n_genes == (GENES_EACH,) * 4
    assert arms.skipped == {}


def test_any_shift_of_an_arm_is_undone(genome):
    arms = fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene)
    plain = fit_chromosome_arms(genome.own, genome.genes, genome.arm_of_gene)
    np.testing.assert_allclose(
        arms.apply(genome.vectors, genome.genes), plain.apply(genome.own, genome.genes), atol=1e-12
    )


def test_the_mean_is_that_of_the_unexpressed_genes_of_the_arm(genome):
    unexpressed = [gene for i, gene in enumerate(genome.genes) if i % 10 < 3] + ["not in the screen"]
    arms = fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene, unexpressed=unexpressed, min_genes=9)
    corrected = arms.apply(genome.vectors, genome.genes)
    for i in range(len(genome.genes)):
        others = [j for j in range(len(genome.genes)) if genome.arm[j] == genome.arm[i] and j % 10 < 3]
        np.testing.assert_allclose(corrected[i], genome.vectors[i] - genome.vectors[others].mean(axis=0), atol=1e-12)
    assert arms.n_genes == (9,) * 4


def test_a_gene_counts_once_however_many_guides_it_has(genome):
    guides = [0, *range(len(genome.genes)), 0, 0]
    genes = [genome.genes[i] for i in guides]
    arms = fit_chromosome_arms(genome.vectors[guides], genes, genome.arm_of_gene)
    once = fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene)
    np.testing.assert_allclose(arms.means, once.means, atol=1e-12)


def test_rows_without_a_gene_and_arms_with_few_genes_stay_as_they_are(genome):
    arm_of_gene = {**genome.arm_of_gene, **dict.fromkeys(genome.genes[:10], "Yq")}
    genes = [*genome.genes, None, ""]
    vectors = np.concatenate([genome.vectors, np.ones((2, D))])
    arms = fit_chromosome_arms(vectors, genes, arm_of_gene, min_genes=20)
    assert arms.skipped == {"Yq": 10}
    assert arms.arms == ("1p", "2p", "3p", "4p")
    corrected = arms.apply(vectors, genes)
    stays = ~arms.is_corrected(genes)
    np.testing.assert_array_equal(np.flatnonzero(stays), [*range(10), 120, 121])
    np.testing.assert_array_equal(corrected[stays], vectors[stays])
    assert (np.abs(corrected - vectors).max(axis=1)[~stays] > 0).all()


def test_twenty_genes_are_too_few_by_default(genome):
    chosen = [*range(20), *range(30, 51)]
    arms = fit_chromosome_arms(genome.vectors[chosen], [genome.genes[i] for i in chosen], genome.arm_of_gene)
    assert (arms.arms, arms.skipped) == (("2p",), {"1p": 20})


def test_a_gene_without_an_arm_is_named_or_kept(genome):
    arms = fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene)
    genes = ["C7orf26", *genome.genes[1:]]
    with pytest.raises(ValueError, match="1 genes have no chromosome arm: C7orf26"):
        arms.apply(genome.vectors, genes)
    kept = arms.apply(genome.vectors, genes, without_arm="keep")
    np.testing.assert_array_equal(kept[0], genome.vectors[0])


def test_integers_are_cast_and_the_input_stays(genome):
    whole = np.rint(genome.vectors * 10).astype(np.int16)
    before = whole.copy()
    arms = fit_chromosome_arms(whole, genome.genes, genome.arm_of_gene)
    corrected = arms.apply(whole, genome.genes)
    np.testing.assert_array_equal(whole, before)
    np.testing.assert_allclose([corrected[genome.arm == arm].mean(axis=0) for arm in range(N_ARMS)], 0, atol=1e-12)


def test_no_arm_with_enough_genes_is_an_error(genome):
    with pytest.raises(ValueError, match=r"no chromosome arm has 21 genes .*no gene has an arm"):
        fit_chromosome_arms(genome.vectors, genome.genes, {"TP53": "17p"})
    with pytest.raises(ValueError, match=r"no chromosome arm has 31 genes .*has the most, 30"):
        fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene, min_genes=31)


def test_bad_rows_and_lengths_are_refused(genome):
    with pytest.raises(ValueError, match="119 genes for 120 vectors"):
        fit_chromosome_arms(genome.vectors, genome.genes[1:], genome.arm_of_gene)
    arms = fit_chromosome_arms(genome.vectors, genome.genes, genome.arm_of_gene)
    genome.vectors[5, 5] = np.nan
    with pytest.raises(ValueError, match="1 of 120 vectors are not finite: rows 5"):
        arms.apply(genome.vectors, genome.genes)
    with pytest.raises(ValueError, match="min_genes is 0"):
        fit_chromosome_arms(genome.own, genome.genes, genome.arm_of_gene, min_genes=0)
