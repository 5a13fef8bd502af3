"""Rule `near_duplicates`: excludes sites or crops whose embedding nearly equals that of another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cytolake.catalog.representations import find_representation
from cytolake.catalog.tables import Catalog
from cytolake.curation.near_duplicates import centred, find_duplicates, standardised
from cytolake.curation.rules.contract import Candidates, Exclusions, Rule, check_field
from cytolake.qc.verdicts import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicatesStep(Rule):
    """Exclude sites, or crops, whose embedding nearly equals that of another one that stays.

    The vector of a site is the concatenation of its crops' vectors, so all crops together reveal a field imaged twice.
    A hash of site and seed decides which member of a group stays. Vectors are centred on each plate, then features are
    standardised: cosines measure what differs within plates.
    """

    rule: ClassVar[str] = "near_duplicates"
    tables: ClassVar[tuple[str, ...]] = ("embeddings", "representations")
    representation: str = "pixel_statistics"
    of: str = ""
    """Name of the curation whose pack `pixel_statistics` means; empty means the newest of another curation."""
    level: str = "site"
    """`site` finds fields imaged twice, `crop` any two crops that look alike."""
    min_cosine: float = 0.9
    """Items with this cosine or more are duplicates, 0 to 1."""
    n_clusters: int | None = None
    """None: compare all pairs up to 50,000 items, and within k-means clusters of about 10,000 beyond."""

    def __post_init__(self) -> None:
        check_field(self, "level", self.level in ("site", "crop"), "site or crop")
        check_field(self, "min_cosine", 0 < self.min_cosine <= 1, "more than 0, at most 1")
        check_field(self, "n_clusters", self.n_clusters is None or self.n_clusters >= 1, "1 or more, or nothing")

    def resolved(self, catalog: Catalog, curation: str) -> NearDuplicatesStep:
        found = find_representation(catalog, self.representation, of=self.of, not_of=curation)
        return replace(self, representation=found["representation_id"])

    def exclude(self, candidates: Candidates, progress: Progress | None) -> Exclusions:
        found, without = candidates.vectors(self.representation)
        vectors = standardised(centred(found.vectors, candidates.groups(["plate_id"])[0][found.rows]))
        sites, site_row = candidates.groups(["site_id"])
        items, item = np.unique(sites[found.rows], return_inverse=True)
        if self.level == "site":
            places, _ = candidates.groups(["y", "x", "size"])
            used, place = np.unique(places[found.rows], return_inverse=True)
            concatenated = np.zeros((len(items), len(used), vectors.shape[1]), np.float32)
            concatenated[item, place] = vectors
            vectors, item_rows = concatenated.reshape(len(items), -1), site_row[items]
        else:
            item, item_rows = np.arange(len(found.rows)), found.rows
        random_order = candidates.random_numbers("site_id")[item_rows]
        order = np.lexsort((item_rows, random_order))  # crops of a site are contiguous: the same site stays
        duplicates = find_duplicates(
            vectors[order], self.min_cosine, n_clusters=self.n_clusters, seed=candidates.seed, progress=progress
        )
        gone = np.flatnonzero(duplicates.original >= 0)
        name = candidates.text("site_id" if self.level == "site" else "crop_id")
        detail = np.full(len(item_rows), "", object)
        for position in gone.tolist():
            other = name[int(item_rows[order[duplicates.original[position]]])].as_py()
            detail[order[position]] = f"{self.level} {other}, cosine {duplicates.cosine[position]:.4f}"
        is_gone = detail[item] != ""
        rows = np.concatenate([found.rows[is_gone], without])
        return Exclusions(
            rows=rows,
            reasons=[f"near_duplicates: cosine {self.min_cosine:g} or more to another {self.level}"]
            * int(is_gone.sum())
            + ["near_duplicates: no embedding"] * len(without),
            details=[*detail[item][is_gone].tolist(), *[""] * len(without)],
        )
