"""A perturbation screen as input of the tasks: features, embeddings, perturbations, batches; read from AnnData.

Rows are cells, wells or images. Features are log-normalised expression, or any matrix of numbers such as CellProfiler
features; the tasks treat them in the same way.

Shapes: N rows, G features (genes), D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cytolake.benchmark.transcriptomics.screen_rows import Excluded, Several, exclusion, labelled_rows
from cytolake.statistics.threads import limited_threads

Values = Literal["counts", "features", "scaled"]
Codes = NDArray[np.intp]
CONTROL = -1
"""Code of the control in `Screen.perturbation_of_row`."""
NORMALISED_TOTAL = 1e4  # counts of each cell before the logarithm; scanpy's and the published benchmark's habit


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenSpec:
    """Names of columns, layers and embeddings in an AnnData."""

    perturbation: str
    """Column of `obs` with the perturbation of each row."""
    control: str
    """Value of controls in that column."""
    batch: str
    """Column of `obs` with the batch: rows that were measured together."""
    values: Values = "counts"
    """Kind of the matrix. `counts` become log(1 + 1e4 count / total of the row); `features` do not change; `scaled` are
    features of several units, which are standardised."""
    layer: str | None = None
    """Layer with the matrix; `X` where None."""
    matrix_key: str | None = None
    """Key of `obsm` that is used as the matrix, such as `pixel_statistics` in an export of images."""
    gene_name: str | None = None
    """Column of `var` with the features' names; its index where None."""
    embeddings: tuple[str, ...] = ()
    """Keys of `obsm` that are scored."""
    more_perturbations: tuple[str, ...] = ()
    """Further columns of `obs` with perturbations, for rows with several (such as a second guide)."""
    separator: str = ""
    """Separator of several perturbations in one value, such as `|`; empty where a value is one perturbation."""
    several: Several = "exclude"
    """Rows with several perturbations: `exclude` them (the number is reported), treat each combination as a
    perturbation (`combination`), or count the row for `each`."""

    def __post_init__(self) -> None:
        for name in ("perturbation", "control", "batch"):
            if not getattr(self, name):
                raise ValueError(f"spec.{name} is empty, expected a name in the data.")
        if self.values not in get_args(Values):
            raise ValueError(f"spec.values is {self.values!r}, expected one of {', '.join(get_args(Values))}.")
        if self.several not in get_args(Several):
            raise ValueError(f"spec.several is {self.several!r}, expected one of {', '.join(get_args(Several))}.")
        if self.layer is not None and self.matrix_key is not None:
            raise ValueError(
                f"spec.layer is {self.layer!r} and spec.matrix_key is {self.matrix_key!r}, expected one matrix. Leave "
                "one of them out."
            )


@dataclass(frozen=True, slots=True)
class Screen:
    """Complete rows of a screen, in the order of the AnnData."""

    features: Any
    """(N, G) float32, scipy CSR for sparse data, else an array; None for data with embeddings and no matrix."""
    counts: Any
    """(N, G) raw counts, CSR or an array; None where the data are no counts."""
    feature_names: tuple[str, ...]
    """(G,)"""
    perturbations: tuple[str, ...]
    """(P,) sorted, without the control."""
    perturbation_of_row: Codes
    """(N,) index into `perturbations`; -1 is the control."""
    batches: tuple[str, ...]
    """(B,) sorted."""
    batch_of_row: Codes
    """(N,) index into `batches`."""
    embeddings: dict[str, NDArray[np.float32]]
    """(N, D) for each key of `obsm` in the spec."""
    excluded: tuple[Excluded, ...] = ()
    """Rows of the AnnData that are left out, with reasons."""
    notes: tuple[str, ...] = ()
    """Notes on the labels."""

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """(N,)"""
        return np.asarray(self.perturbation_of_row == CONTROL)

    @property
    def n_rows(self) -> int:
        """N"""
        return len(self.perturbation_of_row)

    def dense_rows(self, rows: Codes) -> NDArray[np.float32]:
        """(n, G) features of some rows, dense; all other code leaves sparse features sparse."""
        return dense(self.features[rows])


def load_screen(data: Any, spec: ScreenSpec) -> Screen:
    """Read and check a screen; sparse matrices stay sparse, and the AnnData is not changed.

    A row without a perturbation, a batch or a count, or with a value or vector that is not finite, is left out and
    reported in `Screen.excluded`.

    Args:
        data: AnnData, or the path of a `.h5ad`.
        spec: Names of columns, layers and embeddings.

    Raises:
        ImportError: scanpy is missing and the values are counts.
        ValueError: A missing column, layer or embedding; no control; a single perturbation or batch; values of most
            rows that are not finite, or counts that are not whole numbers; no matrix. Without a matrix, a spec with
            embeddings and without counts is accepted: only tasks and embeddings of features are then not possible.
    """
    if isinstance(data, str | Path):
        import anndata

        path, where = Path(data), str(data)
        if not path.is_file():
            raise ValueError(f"{where}: no such file, expected a .h5ad. Correct the path.")
        data = anndata.read_h5ad(path)
    else:
        where = "the AnnData"
    names = [str(name) for name in data.obs_names]
    columns = {each: _column(data.obs, each, "--perturbation", where)
               for each in (spec.perturbation, *spec.more_perturbations)}  # fmt: skip
    batch_of_all = _column(data.obs, spec.batch, "--batch", where)
    batch_of_all = ["" if value is None or value != value else str(value).strip() for value in batch_of_all]
    labelled = labelled_rows(columns, names, spec.control, spec.separator, spec.several)
    matrix = _matrix(data, spec, where)
    vectors = {key: _vectors(data, key, "--obsm", where) for key in spec.embeddings}
    has_no_batch = np.asarray([not value for value in batch_of_all])
    is_bad = ~np.isin(np.arange(len(names)), labelled.rows)
    lacking = []
    for reason, which in (
        (f"no value in {spec.batch}", has_no_batch),
        *_unusable(matrix, vectors, spec, where),
    ):
        lacking.append(exclusion(reason, which & ~is_bad, names))  # a row counts for its first reason only
        is_bad |= which
    is_complete = ~is_bad[labelled.rows]
    rows, perturbation_N = labelled.rows[is_complete], labelled.labels[is_complete]
    is_control = perturbation_N == spec.control
    if not is_control.any():
        raise ValueError(
            f"{where}, column {spec.perturbation}: no row is {spec.control!r}, found "
            f"{_likely(spec.control, perturbation_N)}. Expected controls to compare with: give the "
            "value of their rows as --control (ScreenSpec.control)."
        )
    perturbations = tuple(np.unique(perturbation_N[~is_control]).tolist())
    batches, batch_of_row = np.unique([batch_of_all[row] for row in rows.tolist()], return_inverse=True)
    if len(perturbations) < 2:
        raise ValueError(
            f"{where}, column {spec.perturbation}: {len(perturbations)} perturbations and the control, expected 2 "
            "or more. Correct --perturbation."
        )
    codes = np.where(is_control, CONTROL, np.searchsorted(np.asarray(perturbations), perturbation_N))
    if not np.array_equal(rows, np.arange(len(names))):
        matrix = None if matrix is None else matrix[rows]
        vectors = {key: each[rows] for key, each in vectors.items()}
    screen = Screen(
        features=matrix,
        counts=None,
        feature_names=() if matrix is None else _feature_names(data, spec, where, matrix.shape[1]),
        perturbations=perturbations,
        perturbation_of_row=codes.astype(np.intp),
        batches=tuple(batches.tolist()),
        batch_of_row=batch_of_row.astype(np.intp),
        embeddings=vectors,
        excluded=(*labelled.excluded, *(each for each in lacking if each.n)),
        notes=labelled.notes,
    )
    if spec.values == "features" or matrix is None:
        return screen
    if spec.values == "scaled":
        return replace(screen, features=scale_features(matrix))
    return replace(screen, features=log_normalise(matrix, where), counts=matrix)


def need_features(screen: Screen, what: str) -> None:
    """Raise ValueError where the screen has no features; `what` names the task or embedding that needs them."""
    if screen.features is None:
        raise ValueError(
            f"{what} needs features of the rows, and X is empty. Name a layer in --layer, or a key of obsm in "
            "--matrix-key: `cytolake export --representation` writes pixel statistics with an encoder's blocks."
        )


def scale_features(matrix: Any) -> NDArray[np.float32]:
    """(N, G) standardised features; 0 where a feature is constant."""
    values = dense(matrix)
    mean_G, sd_G = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scale_G = np.where(sd_G > 1e-6 * np.abs(mean_G) + 1e-30, sd_G, np.inf)  # below it is rounding
    return np.asarray((values - mean_G) / scale_G, np.float32)


def log_normalise(counts: Any, where: str = "the counts") -> Any:
    """log(1 + 1e4 count / total of the row), by scanpy.

    Args:
        counts: (N, G) CSR or array, float32.
        where: Name of the data in errors.

    Raises:
        ImportError: scanpy is missing.
        ValueError: A negative count, one that is no whole number, or a row without any.
    """
    values = counts.data if sparse.issparse(counts) else counts
    if values.size and (values.min() < 0 or not np.array_equal(values, np.rint(values))):
        bad = values[(values < 0) | (values != np.rint(values))].flat[0]
        raise ValueError(
            f"{where}: the value {bad} is no count, expected whole numbers from 0 up. Name the layer that holds counts "
            "in --layer, or set --values features for values that are already normalised."
        )
    totals = np.asarray(counts.sum(axis=1)).ravel()
    if not totals.all():
        raise ValueError(
            f"{where}: {int((totals == 0).sum())} rows have no counts at all, the first is row "
            f"{int(np.flatnonzero(totals == 0)[0])}. Expected at least one count a row: leave them out."
        )
    import anndata

    scanpy = import_scanpy()
    # scanpy changes X in place.
    normalised = anndata.AnnData(counts.copy())
    # numba's loops in scanpy set the threads of OpenMP, and so of torch, to all cores for the rest of the process: on a
    # busy machine small networks then train 10 times slower. The context restores the numbers.
    with limited_threads(None):
        scanpy.pp.normalize_total(normalised, target_sum=NORMALISED_TOTAL)
        scanpy.pp.log1p(normalised)
    return normalised.X


def dense(matrix: Any) -> NDArray[np.float32]:
    """The rows as a float32 array."""
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, np.float32)


def group_sums(values: Any, groups: Codes, n_groups: int) -> NDArray[np.float64]:
    """(K, D) sums of the rows of each group, exact in float64; rows of a negative group do not count.

    Args:
        values: (N, D) array or CSR.
        groups: (N,) 0 .. K - 1, or negative.
        n_groups: K.
    """
    counted = np.flatnonzero(groups >= 0)
    ones = np.ones(len(counted))
    indicator_KN = sparse.csr_matrix((ones, (groups[counted], counted)), shape=(n_groups, len(groups)))
    sums = indicator_KN @ values
    return np.asarray(sums.toarray() if sparse.issparse(sums) else sums, np.float64)


def group_means(values: Any, groups: Codes, n_groups: int) -> NDArray[np.float64]:
    """(K, D) means of the rows of each group; NaN for a group without a row."""
    counts_K = np.bincount(groups[groups >= 0], minlength=n_groups).astype(np.float64)
    counts_K[counts_K == 0] = np.nan
    return np.asarray(group_sums(values, groups, n_groups) / counts_K[:, None])


def import_scanpy() -> ModuleType:
    """The module scanpy, which only expression data need.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import scanpy
    except ImportError as error:
        raise ImportError(
            "normalising counts needs scanpy, which is not installed. Run pip install 'cytolake[transcriptomics]', or "
            "use normalised values and set --values features."
        ) from error
    module: ModuleType = scanpy
    return module


def _likely(wanted: str, values_N: NDArray[Any]) -> str:
    """Values of a column that may be the wanted one, with their rows: those of similar names, and the most frequent."""
    names, counts = np.unique(values_N, return_counts=True)
    rows = dict(zip(names.tolist(), counts.tolist(), strict=True))
    folded = {name.casefold(): name for name in rows}
    similar = [folded[each] for each in get_close_matches(wanted.casefold(), folded, n=3)]
    shown = list(dict.fromkeys([*similar, *sorted(rows, key=lambda name: (-rows[name], name))[:5]]))
    more = f" and {len(rows) - len(shown)} more values" if len(rows) > len(shown) else ""
    return ", ".join(f"{name} ({rows[name]:,} rows)" for name in shown) + more


def _column(table: Any, column: str, field: str, where: str) -> list[Any]:
    if column not in table.columns:
        raise ValueError(f"{where}: no column {column!r}, found {', '.join(map(str, table.columns))}. Correct {field}.")
    values: list[Any] = table[column].astype(object).to_numpy().tolist()
    return values


def _unusable(
    matrix: Any, vectors: dict[str, NDArray[np.float32]], spec: ScreenSpec, where: str
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Reasons to leave rows out, each with (N,) the rows.

    Raises:
        ValueError: A reason holds for most rows, which is a fault of the file.
    """
    if matrix is not None:
        values = _finite_rows(matrix)
        if not values.all():
            yield _unless_most(~values, "values of the matrix that are not finite", where, "Correct the matrix.")
        if spec.values == "counts":
            totals = np.asarray(matrix.sum(axis=1)).ravel()
            yield "no counts at all", totals == 0
    for key, each in vectors.items():
        bad = np.asarray(~np.isfinite(each).all(axis=1), np.bool_)
        yield _unless_most(bad, f"vector of {key} not finite", where, "Compute the embedding again.")


def _finite_rows(matrix: Any) -> NDArray[np.bool_]:
    if not sparse.issparse(matrix):
        return np.asarray(np.isfinite(matrix).all(axis=1))
    is_finite = np.ones(matrix.shape[0], bool)
    is_finite[np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[~np.isfinite(matrix.data)]] = False
    return is_finite


def _unless_most(which: NDArray[np.bool_], reason: str, where: str, advice: str) -> tuple[str, NDArray[np.bool_]]:
    if which.mean() > 0.5:
        raise ValueError(
            f"{where}: {int(which.sum())} of {len(which)} rows have {reason}, the first is row "
            f"{int(np.flatnonzero(which)[0])}. Expected few such rows, which are left out. {advice}"
        )
    return reason, which


def _matrix(data: Any, spec: ScreenSpec, where: str) -> Any:
    """The matrix of the data; None where there is none and none is needed."""
    if spec.matrix_key is not None:
        return _vectors(data, spec.matrix_key, "--matrix-key", where)
    if spec.layer is not None and spec.layer not in data.layers:
        raise ValueError(
            f"{where}: no layer {spec.layer!r}, found {', '.join(data.layers) or 'none'}. Correct --layer."
        )
    matrix = data.X if spec.layer is None else data.layers[spec.layer]
    if matrix is None:
        if spec.values != "counts" and spec.embeddings:
            return None
        raise ValueError(
            f"{where}: X is empty, expected a matrix. Name a layer in --layer or a key of obsm in --matrix-key; "
            "or name embeddings in --obsm and set --values features, which scores them without one."
        )
    return sparse.csr_matrix(matrix, dtype=np.float32) if sparse.issparse(matrix) else np.asarray(matrix, np.float32)


def _feature_names(data: Any, spec: ScreenSpec, where: str, n_features: int) -> tuple[str, ...]:
    if spec.matrix_key is not None:
        return tuple(f"{spec.matrix_key}_{i}" for i in range(n_features))
    if spec.gene_name is None:
        return tuple(str(name) for name in data.var_names)
    return tuple(str(name) for name in _column(data.var, spec.gene_name, "spec.gene_name", where))


def _vectors(data: Any, key: str, field: str, where: str) -> NDArray[np.float32]:
    if key not in data.obsm:
        raise ValueError(f"{where}: no obsm {key!r}, found {', '.join(data.obsm) or 'none'}. Correct {field}.")
    return dense(data.obsm[key])
