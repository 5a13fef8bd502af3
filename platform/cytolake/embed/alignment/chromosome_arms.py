"""Subtracts the common part of the genes of a chromosome arm.

A CRISPR cut can cost the cell the rest of the chromosome arm, so knock-outs of one arm look alike whatever the genes do
("proximity bias"). What genes that the cells do not express have in common with their arm is this artefact.

Source: Lazar et al. 2024 (preprint doi:10.1101/2023.04.15.537038): each gene minus the mean of its arm's unexpressed
genes. In their code (proxbias) those have zFPKM below -3, and arms with 20 of them or fewer stay. Arms and expression
are the user's.

Shapes: N rows, D features, A arms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cytolake.embed.alignment.checked_input import Floats, checked_vectors, listed

Genes = Sequence[str | None]
MIN_GENES = 21  # "more than 20"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChromosomeArms:
    """The common part of each arm."""

    arm_of_gene: Mapping[str, str]
    arms: tuple[str, ...]
    """A arms that are corrected, sorted."""
    means: Floats
    """(A, D) mean vector of each arm's genes."""
    n_genes: tuple[int, ...]
    """Genes behind each mean."""
    skipped: Mapping[str, int]
    """Arms with too few genes for a mean, and how many; their genes stay as they are."""

    def is_corrected(self, genes: Genes) -> NDArray[np.bool_]:
        """(N,) True for rows that `apply` changes: a gene whose arm has a mean."""
        return self._arm_index(genes) >= 0

    def apply(self, vectors: ArrayLike, genes: Genes, *, without_arm: Literal["error", "keep"] = "error") -> Floats:
        """Subtract from each row the mean of its gene's arm.

        Args:
            vectors: (N, D) one row for each gene, guide or well; never written to.
            genes: (N,) gene of each row; None or "" where it has none, as controls, which stay as they are.
            without_arm: Whether a gene that the mapping lacks is an error or stays as it is.

        Returns:
            (N, D) float64.

        Raises:
            ValueError: Wrong shapes, a row that is not finite, or a gene without an arm.
        """
        vectors_ND = checked_vectors(vectors, self.means.shape[1])
        _check_length(genes, len(vectors_ND))
        unplaced = sorted({gene for gene in genes if gene and gene not in self.arm_of_gene})
        if unplaced and without_arm == "error":
            raise ValueError(
                f"{len(unplaced)} genes have no chromosome arm: {listed(unplaced)}. Expected one for each. Add them to "
                'the mapping (gene symbols change: try their aliases), or pass without_arm="keep".'
            )
        arm_N = self._arm_index(genes)
        corrected_ND = vectors_ND.astype(np.float64)
        corrected_ND[arm_N >= 0] -= self.means[arm_N[arm_N >= 0]]
        return corrected_ND

    def _arm_index(self, genes: Genes) -> NDArray[np.intp]:
        index_of = {arm: i for i, arm in enumerate(self.arms)}
        found = [index_of.get(self.arm_of_gene.get(gene, ""), -1) if gene else -1 for gene in genes]
        return np.asarray(found, np.intp)


def fit_chromosome_arms(
    vectors: ArrayLike,
    genes: Genes,
    arm_of_gene: Mapping[str, str],
    *,
    unexpressed: Collection[str] | None = None,
    min_genes: int = MIN_GENES,
) -> ChromosomeArms:
    """Mean vector of each chromosome arm, every gene counting once however many rows it has.

    Args:
        vectors: (N, D) aligned vectors, one row for each gene, guide or well.
        genes: (N,) gene of each row; None or "" where it has none, as controls.
        arm_of_gene: Such as `{"TP53": "17p"}`; genes that are not there take no part.
        unexpressed: Genes to average over. None: all, which also takes out what the expressed genes of an arm share.
        min_genes: Arms with fewer genes to average over are not corrected.

    Raises:
        ValueError: Wrong shapes, a row that is not finite, or no arm with enough genes.
    """
    vectors_ND = checked_vectors(vectors)
    _check_length(genes, len(vectors_ND))
    if min_genes < 1:
        raise ValueError(f"min_genes is {min_genes}, expected 1 or more.")
    allowed = None if unexpressed is None else set(unexpressed)
    is_used = [bool(gene) and gene in arm_of_gene and (allowed is None or gene in allowed) for gene in genes]
    used = np.asarray(is_used, bool)
    gene_of_row = [str(gene) for gene, is_one in zip(genes, is_used, strict=True) if is_one]
    of_gene = pd.DataFrame(vectors_ND[used].astype(np.float64)).groupby(gene_of_row).mean()
    arms = [arm_of_gene[gene] for gene in of_gene.index]
    means = of_gene.groupby(arms).mean()
    counts = pd.Series(arms, dtype=object).value_counts()
    kept = [arm for arm in means.index if counts[arm] >= min_genes]
    if not kept:
        most = f"{counts.index[0]} has the most, {counts.iloc[0]}" if len(counts) else "no gene has an arm"
        raise ValueError(
            f"no chromosome arm has {min_genes} genes to average over ({most}). Check that the gene symbols of the "
            "vectors, of the arms and of the unexpressed genes are of one kind, or lower min_genes."
        )
    return ChromosomeArms(
        arm_of_gene=dict(arm_of_gene),
        arms=tuple(kept),
        means=means.loc[kept].to_numpy(np.float64),
        n_genes=tuple(int(counts[arm]) for arm in kept),
        skipped={arm: int(counts[arm]) for arm in means.index if counts[arm] < min_genes},
    )


def _check_length(genes: Genes, n_rows: int) -> None:
    if len(genes) != n_rows:
        raise ValueError(f"{len(genes)} genes for {n_rows} vectors, expected one for each row.")
