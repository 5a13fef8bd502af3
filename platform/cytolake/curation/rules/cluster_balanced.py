"""Rule `cluster_balanced`: samples crops evenly over clusters of embeddings, perturbations and plates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cytolake.catalog.representations import find_representation
from cytolake.catalog.tables import Catalog
from cytolake.curation.balanced_sampling import balanced_choice
from cytolake.curation.near_duplicates import cluster_centres, standardised, two_nearest, unit_rows
from cytolake.curation.rules.contract import Candidates, Exclusions, Rule, check_field
from cytolake.qc.verdicts import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterBalancedStep(Rule):
    """Keep a number of crops, spread evenly over kinds of images, clusters, perturbations and plates.

    Every group contributes equally until it is exhausted; see `balanced_sampling`. Clusters alone are not balanced:
    k-means places most of its centres where most images are. Centres of centres are more even (Vo et al. 2024).
    """

    rule: ClassVar[str] = "cluster_balanced"
    tables: ClassVar[tuple[str, ...]] = ("embeddings", "representations")
    representation: str = "pixel_statistics"
    of: str = ""
    """Name of the curation whose pack `pixel_statistics` means; empty means the newest of another curation."""
    n_clusters: int = 100
    """Clusters of k-means on standardised vectors of length 1."""
    n_kinds: int = 10
    """Clusters of k-means on the cluster centres, called kinds of images; `max_crops` is divided over kinds first."""
    max_crops: int | None = None
    """Maximum number of crops kept; None for no limit."""
    max_crops_per_cluster: int | None = None
    balance: tuple[str, ...] = ("perturbation", "plate")
    """Columns of crops and wells to balance: the first within a cluster, the next within the first, and so on."""

    def __post_init__(self) -> None:
        for name in ("n_clusters", "n_kinds"):
            check_field(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("max_crops", "max_crops_per_cluster"):
            limit = getattr(self, name)
            check_field(self, name, limit is None or limit >= 1, "1 or more, or nothing for no limit")
        some = self.max_crops is not None or self.max_crops_per_cluster is not None
        check_field(self, "max_crops", some, "a number here or in max_crops_per_cluster")

    def resolved(self, catalog: Catalog, curation: str) -> ClusterBalancedStep:
        found = find_representation(catalog, self.representation, of=self.of, not_of=curation)
        return replace(self, representation=found["representation_id"])

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        candidates.check_columns(self.balance, "cluster_balanced.balance")
        found, without = candidates.vectors(self.representation)
        unit = unit_rows(standardised(found.vectors))
        centres = cluster_centres(unit, self.n_clusters, candidates.seed)
        kinds = two_nearest(centres, cluster_centres(centres, self.n_kinds, candidates.seed))[:, 0]
        clusters = two_nearest(unit, centres)[:, 0]
        levels = [clusters, *(candidates.groups([column])[0][found.rows] for column in self.balance)]
        random_order = candidates.random_numbers("crop_id")[found.rows]
        rank = np.argsort(np.lexsort((found.rows, random_order)), kind="stable")
        chosen = balanced_choice(levels, rank, per_group=self.max_crops_per_cluster)
        of_all = [level[chosen] for level in (kinds[clusters], *levels)]
        chosen[chosen] = balanced_choice(of_all, rank[chosen], self.max_crops)
        rows = np.concatenate([found.rows[~chosen], without])
        return Exclusions(
            rows=rows,
            reasons=["cluster_balanced: beyond the cluster's share"] * int((~chosen).sum())
            + ["cluster_balanced: no embedding"] * len(without),
            details=[*(f"cluster {cluster}" for cluster in clusters[~chosen].tolist()), *[""] * len(without)],
        )
