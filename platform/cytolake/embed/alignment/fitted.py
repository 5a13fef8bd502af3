"""A fitted alignment: applied to vectors, saved and loaded; its id is a hash of its content.

Shapes: M rows, B batches, D features in, K features out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cytolake.catalog.ids import content_id
from cytolake.embed.alignment.checked_input import Batches, Floats, batch_codes, checked_vectors, listed, rows_of_each
from cytolake.embed.alignment.variants import AlignmentConfig
from cytolake.storage.atomic_write import atomic_file, write_text

ARRAYS, DESCRIPTION, FORMAT = "alignment.safetensors", "alignment.json", "cytolake.alignment/1"


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One step: ((x - shift) / scale) @ matrix. The first axis is 1 where all batches share it, else B."""

    shift: Floats
    """(1 or B, D)"""
    scale: Floats
    """(1 or B, D), above 0; infinite for a feature that becomes 0."""
    matrix: Floats | None = None
    """(1 or B, D, K); None: the identity."""

    def of_batch(self, batch: int) -> tuple[Floats, Floats, Floats | None]:
        """Shift, scale and matrix of one batch."""
        matrix_DK = None if self.matrix is None else self.matrix[batch if len(self.matrix) > 1 else 0]
        return (
            self.shift[batch if len(self.shift) > 1 else 0],
            self.scale[batch if len(self.scale) > 1 else 0],
            matrix_DK,
        )

    def apply(self, rows_MD: Floats, batch: int) -> Floats:
        """(M, K) rows of one batch."""
        shift_D, scale_D, matrix_DK = self.of_batch(batch)
        scaled_MD = (rows_MD - shift_D) / scale_D
        return scaled_MD if matrix_DK is None else np.asarray(scaled_MD @ matrix_DK)

    @property
    def n_out(self) -> int:
        """K, features that come out."""
        return int(self.shift.shape[1] if self.matrix is None else self.matrix.shape[2])

    def arrays(self) -> dict[str, Floats]:
        """Its numbers by name, for a file."""
        own = {"shift": self.shift, "scale": self.scale}
        return own if self.matrix is None else {**own, "matrix": self.matrix}


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """x @ (rest I + basis^T diag(gain) basis), the matrix of each batch held by what its few controls span.

    For 32 controls and 1664 features this is 52 times smaller than the matrix, and as much faster.
    """

    basis: Floats
    """(B, R, D) orthonormal rows; batches with fewer than R directions end in zeros."""
    gain: Floats
    """(B, R)"""
    rest: Floats
    """(1,) for directions outside the basis."""

    @property
    def n_out(self) -> int:
        """Features that come out, as many as go in."""
        return int(self.basis.shape[2])

    def apply(self, rows_MD: Floats, batch: int) -> Floats:
        """(M, D) rows of one batch."""
        basis_RD = self.basis[batch]
        return np.asarray(self.rest * rows_MD + (rows_MD @ basis_RD.T * self.gain[batch]) @ basis_RD)

    def arrays(self) -> dict[str, Floats]:
        """Its numbers by name, for a file."""
        return {"basis": self.basis, "gain": self.gain, "rest": self.rest}


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFit:
    """The rows of one batch that the fit used."""

    name: str
    n_controls: int
    """Its negative controls."""
    n_reference: int
    """Rows it was fitted on: its controls, or all its wells."""
    used_all_wells: bool
    """Too few controls: all its wells counted as such."""
    constant_features: tuple[int, ...]
    """Features that had no spread among these rows; counted for two rows or more."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedAlignment:
    """A map from vectors to aligned vectors, for the batches it was fitted on."""

    config: AlignmentConfig
    n_features: int
    """D"""
    batches: tuple[BatchFit, ...]
    """B, sorted by name."""
    stages: tuple[Stage | Whitening, ...]
    """Applied in this order."""

    @property
    def id(self) -> str:
        """Hash of the config, the batches and every number: alignments of one id are equal."""
        return content_id(
            FORMAT, json.dumps(self._description(), sort_keys=True), *(f"{n}:{_digest(a)}" for n, a in self._named())
        )

    @property
    def n_out(self) -> int:
        """K, features of an aligned vector; below D where a PCA left directions out."""
        return self.stages[-1].n_out if self.stages else self.n_features

    @property
    def batches_on_all_wells(self) -> tuple[str, ...]:
        """Batches that had too few controls, so that all their wells counted as such."""
        return tuple(batch.name for batch in self.batches if batch.used_all_wells)

    def apply(self, vectors: ArrayLike, batches: Batches) -> Floats:
        """Align vectors.

        Args:
            vectors: (M, D) integers or floats; never written to.
            batches: (M,) batch of each row.

        Returns:
            (M, K) float64, each row by itself: other rows do not matter.

        Raises:
            ValueError: Another number of features, a row that is not finite, or a batch that was not fitted.
        """
        vectors_MD = checked_vectors(vectors, self.n_features)
        names, codes_M = batch_codes(batches, len(vectors_MD))
        index_of = {batch.name: i for i, batch in enumerate(self.batches)}
        unseen = [name for name in names if name not in index_of]
        if unseen and self.config.each_batch_needs_controls:
            raise ValueError(
                f"{len(unseen)} of {len(names)} batches were not in the fit: {listed(unseen)}. Expected batches among "
                f"its {len(self.batches)}: {listed(list(index_of))}. Fit again with the controls of all batches."
            )
        aligned_MK = np.empty((len(vectors_MD), self.n_out))
        for name, rows in zip(names, rows_of_each(codes_M, len(names)), strict=True):
            aligned_MK[rows] = self._apply_to_batch(vectors_MD[rows].astype(np.float64), index_of.get(name, 0))
        return aligned_MK

    def save(self, folder: str | Path) -> None:
        """Write `alignment.safetensors`, the numbers, and `alignment.json`, which says what they are, into a folder."""
        from safetensors.numpy import save_file

        path = Path(folder)
        description = {"format": FORMAT, "id": self.id, **self._description()}
        # Each file appears whole or not at all, and both hold the id, so that files of two fits are recognised.
        with atomic_file(path / ARRAYS) as part:
            save_file({name: np.ascontiguousarray(array) for name, array in self._named()}, part)
        write_text(path / DESCRIPTION, json.dumps(description, indent=1) + "\n")

    @staticmethod
    def load(folder: str | Path) -> FittedAlignment:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: A file is not there.
            ValueError: A file is damaged, of another format, or the two files are of different fits.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(folder)
        for name in (ARRAYS, DESCRIPTION):
            if not (path / name).is_file():
                raise FileNotFoundError(
                    f"{path / name}: no such file. Expected a folder that FittedAlignment.save wrote."
                )
        try:
            description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
            arrays: dict[str, Floats] = load_file(path / ARRAYS)
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']!r}, expected {FORMAT!r}")
            fitted = _from_parts(description, arrays)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{path}: not a saved alignment ({type(error).__name__}: {error}). Expected {ARRAYS} and {DESCRIPTION} "
                "as FittedAlignment.save wrote them. Copy the folder again, or fit again."
            ) from error
        if fitted.id != description["id"]:
            raise ValueError(
                f"{path}: {DESCRIPTION} says id {description['id']}, the content has {fitted.id}. They were edited or "
                "are of two fits. Copy the folder again, or fit again."
            )
        return fitted

    def _apply_to_batch(self, rows_MD: Floats, batch: int) -> Floats:
        for stage in self.stages:
            rows_MD = stage.apply(rows_MD, batch)
        return rows_MD

    def _description(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "n_features": self.n_features,
            "n_stages": len(self.stages),
            "batches": [asdict(batch) for batch in self.batches],
        }

    def _named(self) -> Iterator[tuple[str, Floats]]:
        for i, stage in enumerate(self.stages):
            yield from ((f"{i}.{name}", array) for name, array in stage.arrays().items())


def _from_parts(description: dict[str, Any], arrays: dict[str, Floats]) -> FittedAlignment:
    return FittedAlignment(
        config=AlignmentConfig(**description["config"]),
        n_features=description["n_features"],
        batches=tuple(
            BatchFit(**{**batch, "constant_features": tuple(batch["constant_features"])})
            for batch in description["batches"]
        ),
        stages=tuple(
            Whitening(arrays[f"{i}.basis"], arrays[f"{i}.gain"], arrays[f"{i}.rest"])
            if f"{i}.basis" in arrays
            else Stage(arrays[f"{i}.shift"], arrays[f"{i}.scale"], arrays.get(f"{i}.matrix"))
            for i in range(description["n_stages"])
        ),
    )


def _digest(array: Floats) -> str:
    little_endian = np.ascontiguousarray(array, dtype="<f8")
    shape: Sequence[int] = array.shape
    return f"{shape}:{hashlib.blake2b(little_endian.tobytes(), digest_size=16).hexdigest()}"
