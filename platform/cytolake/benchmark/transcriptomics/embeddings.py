"""Baseline embeddings: principal components, scVI, and two kinds of noise.

All are fitted without labels on all rows, as a screen's own representation is. The noise measures the score of a task
without information: `random` has none; the scrambled principal components have the distribution of `pca`, assigned to
random rows, of any batch or of the same one.

Shapes: N rows, G features, D dimensions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cytolake.benchmark.transcriptomics.screen import Screen, import_scanpy, need_features

Vectors = NDArray[np.float32]
BUILT_IN = ("pca", "hvg_pca", "scvi", "random", "scrambled_pca", "scrambled_pca_within_batch")
DRAWN_BY_SEED = frozenset({"random", "scrambled_pca", "scrambled_pca_within_batch"})
"""Embeddings drawn for each seed of a benchmark; the others do not depend on the seed."""
SCVI_GENES, SCVI_LATENT, SCVI_HIDDEN = 8000, 256, 512  # the published setting


@dataclass(frozen=True, kw_only=True, slots=True)
class ScviConfig:
    """Training of scVI. A width of None is the published one times sqrt(genes / 8000), at most the published one."""

    n_latent: int | None = None
    """Published: 256, for 8000 genes."""
    n_hidden: int | None = None
    """Published: 512, for 8000 genes."""
    n_layers: int = 1
    dropout: float = 0.0
    gene_likelihood: str = "zinb"
    """Distribution of the counts."""
    max_genes: int = SCVI_GENES
    """Number of most variable genes that are used."""
    epochs: int = 50
    minibatch_size: int = 512
    learning_rate: float = 1e-3
    """scVI's own default."""
    seed: int = 0
    accelerator: str = "cpu"
    """`cpu`, or `gpu`."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "max_genes", "epochs", "minibatch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"scvi.{name} is {getattr(self, name)}, expected 1 or more.")
        for name in ("n_latent", "n_hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"scvi.{name} is {value}, expected 1 or more, or None.")

    def widths(self, n_genes: int) -> tuple[int, int]:
        """Latent and hidden width for so many genes, at least 8."""
        share = math.sqrt(min(1.0, n_genes / SCVI_GENES))
        latent = self.n_latent if self.n_latent is not None else max(8, round(SCVI_LATENT * share))
        return latent, self.n_hidden if self.n_hidden is not None else max(8, round(SCVI_HIDDEN * share))


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """Settings of the built-in embeddings."""

    n_components: int = 50
    """Number of principal components; fewer where the data have fewer."""
    n_variable: int = 2000
    """Number of genes of `hvg_pca`."""
    random_width: int = 512
    """Width of `random`, as published."""
    scvi: ScviConfig = field(default_factory=ScviConfig)

    def __post_init__(self) -> None:
        for name in ("n_components", "n_variable", "random_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"embedding.{name} is {getattr(self, name)}, expected 1 or more.")


def embed(screen: Screen, name: str, config: EmbeddingConfig, seed: int = 0, *, pca: Vectors | None = None) -> Vectors:
    """(N, D) vectors of all rows.

    Args:
        name: One of `BUILT_IN`, or an embedding of the screen.
        seed: Seed of the noise; the other embeddings do not depend on it.
        pca: The embedding `pca` where it is known; the scrambled ones are made from it.

    Raises:
        ImportError: `scvi` without scvi-tools.
        ValueError: An unknown name, or an embedding of features or counts where there are none.
    """
    check_name(name, screen.embeddings)
    if name in screen.embeddings:
        return screen.embeddings[name]
    rng = np.random.default_rng((seed, 1))
    if name == "random":
        return rng.random((screen.n_rows, config.random_width), dtype=np.float32)
    if name == "scvi":
        return scvi_latent(screen, config.scvi)
    if name == "hvg_pca":
        genes = variable_genes(screen, config.n_variable)
        return principal_components(screen.features[:, genes], config.n_components)
    if pca is None:
        need_features(screen, f"the embedding {name}")
        pca = principal_components(screen.features, config.n_components)
    if name == "pca":
        return pca
    if name == "scrambled_pca":
        return pca[rng.permutation(screen.n_rows)]
    scrambled = np.empty_like(pca)
    for batch in range(len(screen.batches)):
        rows = np.flatnonzero(screen.batch_of_row == batch)
        scrambled[rows] = pca[rng.permutation(rows)]
    return scrambled


def check_name(name: str, brought: Iterable[str]) -> None:
    """Raise ValueError unless the name is one of an embedding.

    Args:
        brought: Keys of `obsm` in the screen's spec.
    """
    known = (*BUILT_IN, *brought)
    if name not in known:
        raise ValueError(
            f"embedding {name!r} is unknown, expected one of {', '.join(known)}. Name a key of obsm in --obsm."
        )


def settings_of(name: str, config: EmbeddingConfig) -> dict[str, Any]:
    """The settings that a built-in embedding depends on, by name; none for one of the screen."""
    if name == "scvi":
        return asdict(config.scvi)
    if name == "random":
        return {"random_width": config.random_width}
    if name == "hvg_pca":
        return {"n_components": config.n_components, "n_variable": config.n_variable}
    return {"n_components": config.n_components} if name in BUILT_IN else {}


def principal_components(features: Any, n_components: int) -> Vectors:
    """(N, D) scores on the first principal components; sparse features are centred without becoming dense.

    D is `n_components`, or the number that N rows of G features can have.
    """
    from sklearn.decomposition import PCA

    n = min(n_components, features.shape[1] - 1, features.shape[0] - 1)
    if n < 1:
        raise ValueError(f"{features.shape[0]} rows of {features.shape[1]} features have no principal components.")
    # The covariance of a few thousand genes takes one pass and is exact; of more genes it would not fit in memory.
    solver = "covariance_eigh" if features.shape[1] <= 4096 else "arpack"
    return np.asarray(PCA(n, svd_solver=solver, random_state=0).fit_transform(features), np.float32)


def variable_genes(screen: Screen, n_genes: int) -> NDArray[np.intp]:
    """Ascending indices of the most variable genes; all where there are no more than `n_genes`.

    Source: scanpy's flavour `seurat`, dispersion of the log-normalised values within bins of their mean.
    """
    _need_counts(screen, "hvg_pca")
    if n_genes >= len(screen.feature_names):
        return np.arange(len(screen.feature_names))
    import anndata

    scanpy = import_scanpy()
    data = anndata.AnnData(screen.features)
    data.uns["log1p"] = {"base": None}
    found = scanpy.pp.highly_variable_genes(data, n_top_genes=n_genes, flavor="seurat", inplace=False)
    return np.flatnonzero(found["highly_variable"].to_numpy())


def scvi_latent(screen: Screen, config: ScviConfig) -> Vectors:
    """(N, D) posterior means of scVI, trained on the counts with the batch as covariate.

    Raises:
        ImportError: scvi-tools is missing.
        ValueError: The screen holds no counts.

    Source: Lopez et al. 2018, doi:10.1038/s41592-018-0229-2.
    """
    _need_counts(screen, "scvi")
    scvi: Any = import_scvi()
    import anndata
    import pandas as pd

    genes = variable_genes(screen, config.max_genes)
    batches = pd.Categorical.from_codes(screen.batch_of_row, list(screen.batches))
    index = np.arange(screen.n_rows).astype(str)
    counts = screen.counts[:, genes]
    data = anndata.AnnData(
        counts if sparse.issparse(counts) else np.array(counts), pd.DataFrame({"batch": batches}, index)
    )
    n_latent, n_hidden = config.widths(len(genes))
    scvi.settings.seed = config.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns of its own deprecations and the number of loading processes
        scvi.model.SCVI.setup_anndata(data, batch_key="batch")
        model = scvi.model.SCVI(
            data,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=config.n_layers,
            dropout_rate=config.dropout,
            gene_likelihood=config.gene_likelihood,
        )
        model.train(
            max_epochs=config.epochs,
            batch_size=config.minibatch_size,
            plan_kwargs={"lr": config.learning_rate},
            accelerator=config.accelerator,
            enable_progress_bar=False,
            logger=False,
        )
        return np.asarray(model.get_latent_representation(), np.float32)


def import_scvi() -> ModuleType:
    """scvi-tools, which one embedding needs.

    Raises:
        ImportError: It is not installed; says how to get it.
    """
    try:
        import scvi  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "the embedding scvi needs scvi-tools, which is not installed. Run pip install 'cytolake[scvi]', or add "
            "its latent space as a key of obsm."
        ) from error
    module: ModuleType = scvi
    return module


def _need_counts(screen: Screen, name: str) -> None:
    if screen.counts is None:
        raise ValueError(
            f"embedding {name} needs counts, and spec.values is 'features' or 'scaled'. Leave it out, or name the "
            "layer of counts."
        )
