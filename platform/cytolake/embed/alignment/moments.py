"""Count, mean and scatter of vectors, which can be merged over chunks of rows, workers and batches.

The scatter matrix S, the sum of outer products of the deviations from the mean, is held as a root: rows A with
A^T A = S. Deviations themselves are a root while they are few, and the triangle of their QR decomposition when they are
many. This takes no more memory than S, less for fewer rows than features, and unlike S loses no digits: the singular
values of A are found as exactly as those of the rows.

Source: Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115, for merging means and scatter; Demmel et al.
2012, doi:10.1137/080731992, for merging triangles.

Shapes: N rows, D features, K features after a map, R rows of a root.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cytolake.embed.alignment.checked_input import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of `n` vectors, at least one."""

    n: int
    mean: Floats
    """(D,)"""
    squares: Floats
    """(D,) sum of squared deviations from the mean: the diagonal of the scatter matrix."""
    root: Floats | None
    """(R, D) with root^T root the scatter matrix, R at most 2 D; None where only `squares` are wanted."""

    @staticmethod
    def of_rows(rows_ND: Floats, *, full: bool) -> Moments:
        """Moments of one or more float64 rows, which are left as they are."""
        mean_D = rows_ND.mean(axis=0)
        deviations_ND = rows_ND - mean_D
        # Once more, for the rounding of a long sum: a constant feature then has deviations of a few ulp at most.
        rest_D = deviations_ND.mean(axis=0)
        deviations_ND -= rest_D
        squares_D = np.einsum("nd,nd->d", deviations_ND, deviations_ND)
        if len(rows_ND) == 1:
            deviations_ND = deviations_ND[:0]
        return Moments(len(rows_ND), mean_D + rest_D, squares_D, _short([deviations_ND]) if full else None)

    @property
    def scatter(self) -> Floats:
        """(D, D) sum over rows of the outer product of their deviation from the mean.

        Raises:
            ValueError: Only the diagonal was kept.
        """
        root = self.full_root
        return np.asarray(root.T @ root)

    @property
    def full_root(self) -> Floats:
        """The root, where it was kept.

        Raises:
            ValueError: Only the diagonal was kept.
        """
        if self.root is None:
            raise ValueError(
                "these moments hold variances alone, expected covariances too. Collect them with full=True."
            )
        return self.root

    def mapped(self, shift_D: Floats, scale_D: Floats, matrix_DK: Floats | None) -> Moments:
        """Moments of ((x - shift) / scale) @ matrix, without the rows."""
        mean, squares = (self.mean - shift_D) / scale_D, self.squares / np.square(scale_D)
        root = None if self.root is None else self.root / scale_D
        if matrix_DK is not None:
            mean, root = mean @ matrix_DK, _short([self.full_root / scale_D @ matrix_DK])
            squares = np.einsum("rk,rk->k", root, root)
        return Moments(self.n, mean, squares, root)


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """Moments of all rows of all parts, of which there is at least one."""
    n, mean_D = parts[0].n, parts[0].mean
    between = []
    for part in parts[1:]:
        delta_D, total = part.mean - mean_D, n + part.n
        between.append(delta_D * np.sqrt(n * (part.n / total)))
        mean_D, n = mean_D + delta_D * (part.n / total), total
    between_RD = np.asarray(between).reshape(len(between), len(mean_D))
    squares_D = np.sum([part.squares for part in parts], axis=0) + np.square(between_RD).sum(axis=0)
    if any(part.root is None for part in parts):
        return Moments(n, mean_D, squares_D, None)
    return Moments(n, mean_D, squares_D, _short([*(part.full_root for part in parts), between_RD]))


def _short(blocks: Iterable[Floats]) -> Floats:
    """One root of blocks of rows, at most 2 D rows long: triangles when it would be longer."""
    held: list[Floats] = []
    n_held = 0
    for block in blocks:
        limit = 2 * block.shape[1]
        for start in range(0, len(block), limit):
            held.append(block[start : start + limit])
            n_held += len(held[-1])
            if n_held > limit:
                held = [np.asarray(np.linalg.qr(np.concatenate(held), mode="r"))]
                n_held = len(held[0])
    return np.concatenate(held) if held else np.zeros((0, block.shape[1]))
