"""Mechanism of action by the nearest neighbour: the protocols NSC and NSCB of BBBC021.

Each treatment (a compound at a concentration) gets the mechanism of the treatment with the nearest profile by cosine,
never one of the same compound (NSC) and, in NSCB, never one that shares a batch. A treatment is not scored where none
of its allowed neighbours has its mechanism; it remains a neighbour of others. Of BBBC021's 103 treatments, NSC scores
all and NSCB 92: Cholesterol-lowering (6) and Kinase inhibitors (5) are in one batch each.

The normalisation of the profiles changes these numbers more than the encoder does, above all NSCB, so it is part of the
result.

Source: Ljosa et al. 2013, doi:10.1177/1087057113503553 (NSC); Ando et al. 2017, doi:10.1101/161422 (NSCB).

Shapes: T treatments, D features, K mechanisms.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.intervals import Interval, mean_of_groups
from cytolake.statistics.unit_vectors import unit_vectors

Protocol = Literal["NSC", "NSCB"]


@dataclass(frozen=True, slots=True)
class MechanismResult:
    """Nearest-neighbour mechanisms under one protocol."""

    protocol: Protocol
    normalisation: str
    """Normalisation of the profiles, as the caller named it."""
    accuracy: Interval
    """Share of the scored treatments with the right mechanism; compounds are resampled for the interval."""
    mechanisms: tuple[str, ...]
    """(K,) sorted."""
    confusion: NDArray[np.int64]
    """(K, K) scored treatments: row is the true mechanism, column that of the neighbour."""
    neighbour: NDArray[np.int64]
    """(T,) number of the nearest allowed treatment; -1 where the treatment is not scored."""
    cosine: NDArray[np.float64]
    """(T,) similarity of the neighbour; NaN where there is none."""
    reason: tuple[str | None, ...]
    """(T,) why a treatment is not scored; None where it is."""

    @property
    def n_scored(self) -> int:
        """Treatments that were scored."""
        return int((self.neighbour >= 0).sum())

    @property
    def recall(self) -> dict[str, float]:
        """Share of correct predictions of each scored mechanism."""
        counts = self.confusion.sum(axis=1)
        return {
            name: float(self.confusion[i, i] / counts[i]) for i, name in enumerate(self.mechanisms) if counts[i] > 0
        }


def nearest_mechanism(
    profiles: NDArray[np.floating],
    compounds: Sequence[str],
    mechanisms: Sequence[str],
    *,
    normalisation: str,
    batches: Sequence[Collection[str]] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> MechanismResult:
    """Score treatments by the mechanism of their nearest neighbour. Of equal cosines, the earlier treatment is nearest.

    Args:
        profiles: (T, D) one for each treatment, such as the median of its wells; only directions count.
        compounds: (T,)
        mechanisms: (T,)
        normalisation: Normalisation of the profiles, such as `none` or `plate controls, TVN`; part of the result.
        batches: (T,) all batches of each treatment's wells, for NSCB; NSC where None.
        n_draws: Resamples of compounds behind the 95 % interval.

    Raises:
        ValueError: Not one entry for each profile, a profile that is not finite or 0, no `normalisation`, a treatment
            without a batch, a compound with several mechanisms, or no treatment that can be scored.
    """
    n_treatments = len(profiles)
    _check(n_treatments, compounds, mechanisms, batches, normalisation)
    unit_TD = unit_vectors(profiles, zero_rows="refuse")
    _, compound_T = np.unique(np.asarray(compounds, dtype=str), return_inverse=True)
    names, mechanism_T = np.unique(np.asarray(mechanisms, dtype=str), return_inverse=True)
    is_allowed_TT = compound_T[:, None] != compound_T[None, :]
    if batches is not None:
        known = {name: i for i, name in enumerate(sorted({each for of in batches for each in of}))}
        in_batch = np.zeros((n_treatments, len(known)), np.int64)
        for treatment, of in enumerate(batches):
            in_batch[treatment, [known[each] for each in of]] = 1
        is_allowed_TT &= in_batch @ in_batch.T == 0
    has_answer = (is_allowed_TT & (mechanism_T[:, None] == mechanism_T[None, :])).any(axis=1)
    why = f"no other compound of its mechanism{'' if batches is None else ' in another batch'}"
    reason = [None if each else why for each in has_answer.tolist()]
    scored = np.flatnonzero(has_answer)
    if not len(scored):
        raise ValueError(
            f"none of {n_treatments} treatments can be scored: there is {why}. Expected mechanisms of several compounds"
            f"{'.' if batches is None else ', in several batches.'}"
        )
    cosine_TT = np.where(is_allowed_TT, unit_TD @ unit_TD.T, -np.inf)
    neighbour, cosine = np.full(n_treatments, -1, np.int64), np.full(n_treatments, np.nan)
    neighbour[scored] = np.argmax(cosine_TT[scored], axis=1)
    cosine[scored] = cosine_TT[scored, neighbour[scored]]
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (mechanism_T[scored], mechanism_T[neighbour[scored]]), 1)
    is_right = (mechanism_T[scored] == mechanism_T[neighbour[scored]]).astype(np.float64)
    return MechanismResult(
        protocol="NSC" if batches is None else "NSCB",
        normalisation=normalisation,
        accuracy=_over_compounds(is_right, compound_T[scored], n_draws, seed),
        mechanisms=tuple(names.tolist()),
        confusion=confusion,
        neighbour=neighbour,
        cosine=cosine,
        reason=tuple(reason),
    )


def _over_compounds(is_right: NDArray[np.float64], compound: NDArray[np.intp], n_draws: int, seed: int) -> Interval:
    """Accuracy with compounds resampled, because doses of one compound are similar and not independent."""
    _, of = np.unique(compound, return_inverse=True)
    counts, right = np.bincount(of), np.bincount(of, is_right)
    return mean_of_groups(
        right.astype(np.float64), counts.astype(np.float64), n_draws, np.random.default_rng(seed), (0.0, 1.0)
    )


def _check(
    n_treatments: int,
    compounds: Sequence[str],
    mechanisms: Sequence[str],
    batches: Sequence[Collection[str]] | None,
    normalisation: str,
) -> None:
    if not normalisation.strip():
        raise ValueError("normalisation is empty: name the normalisation of the profiles, `none` without one.")
    sizes = {"compounds": compounds, "mechanisms": mechanisms, **({} if batches is None else {"batches": batches})}
    for name, each in sizes.items():
        if len(each) != n_treatments:
            raise ValueError(f"{len(each)} {name} for {n_treatments} profiles, expected one for each treatment.")
    of_compound: dict[str, str] = {}
    for treatment, (compound, mechanism) in enumerate(zip(compounds, mechanisms, strict=True)):
        if of_compound.setdefault(compound, mechanism) != mechanism:
            raise ValueError(
                f"treatment {treatment}: compound {compound} has the mechanism {mechanism} here and "
                f"{of_compound[compound]} before. Expected one mechanism a compound: correct the annotation."
            )
    for treatment, of in enumerate(batches or ()):
        if isinstance(of, str) or not of:
            raise ValueError(
                f"treatment {treatment} ({compounds[treatment]}) has the batches {of!r}, expected a list of one or "
                "more names: those of the plates its wells are on."
            )
