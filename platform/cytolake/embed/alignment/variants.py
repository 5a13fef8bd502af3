"""Variants of the alignment on negative controls, and the statistics that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Variant = Literal[
    "none", "centre", "centre_scale", "standardize", "robustize", "mad_robustize", "pca_cs", "tvn_efaar_v1", "tvn_vcb",
    "sphering",
]  # fmt: skip
Scope = Literal["batch", "all"]
SpheringMethod = Literal["ZCA", "ZCA-cor", "PCA", "PCA-cor"]
MissingControls = Literal["error", "all_wells"]
ConstantFeatures = Literal["unscaled", "zero", "error"]

DEFAULT_SCOPE: dict[Variant, Scope] = {
    "centre": "batch", "centre_scale": "batch", "standardize": "batch", "robustize": "batch", "mad_robustize": "batch",
    "sphering": "all",
}  # fmt: skip
"""Default scope of the variants whose scope can be set."""
ROBUST = frozenset[Variant]({"robustize", "mad_robustize"})
"""Medians and quantiles: they need every control row at once, no statistics that add up."""
WITH_PCA = frozenset[Variant]({"pca_cs", "tvn_efaar_v1", "tvn_vcb"})


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentConfig:
    """What is done to each vector. "Controls" are the negative controls; standard deviations have ddof 0.

    | variant | steps |
    | --- | --- |
    | `none` | nothing |
    | `centre` | minus the mean of the batch's controls |
    | `centre_scale` | the same, over their standard deviation |
    | `standardize` | as `centre_scale`, under its name in pycytominer |
    | `robustize` | minus the median of the batch's controls, over their interquartile range |
    | `mad_robustize` | minus the median, over 1.4826 times the median absolute deviation |
    | `pca_cs` | one PCA on all controls; then `centre_scale` per batch |
    | `tvn_efaar_v1` | `centre_scale` on all controls; PCA on them; `centre_scale` on all of them; per batch whitening |
    | `tvn_vcb` | `centre_scale` per batch; PCA on all controls; `centre_scale` per batch; per batch CORAL |
    | `sphering` | whitening on all controls, four methods |

    Whitening multiplies by (C_b + shrinkage I)^(-1/2), C_b being the covariance (ddof 1) of the batch's controls; CORAL
    then by (C + shrinkage I)^(1/2), C being that of all controls. `tvn_efaar_v1` never centres a batch: where batches
    differ in their means they still do so afterwards. It is here to repeat published numbers.

    Source: EFAAR_benchmarking (Celik et al. 2024, doi:10.1371/journal.pcbi.1012463) for `centre_scale`, `tvn_efaar_v1`;
    the OpenPhenom model card for `pca_cs`; Sun et al. 2016, arXiv 1511.05547 (CORAL) and Ando et al. 2017,
    doi:10.1101/161422 (TVN) for `tvn_vcb`; pycytominer (Serrano et al. 2025) and Kessy et al. 2018,
    doi:10.1080/00031305.2016.1277159 for the others.
    """

    variant: Variant
    scope: Scope | None = None
    """Whose controls fit a vector: those of its own batch or all of them. None: as the table says. Only the variants of
    one step take it."""
    n_components: int | None = None
    """Principal components to keep. None: every direction in which the controls vary."""
    shrinkage: float = 0.5
    """Added to the diagonal of the covariances of `tvn_*`, whose features have variance 1 by then."""
    sphering_method: SpheringMethod = "ZCA-cor"
    """ZCA turns the whitened axes back to the input's, PCA does not; `-cor` first scales each feature to variance 1."""
    epsilon: float = 1e-6
    """Added to the singular values of the centred controls in `sphering`."""
    min_controls: int = 2
    """Refuse a batch with fewer. 1 is for `centre` alone: one control has no spread."""
    missing_controls: MissingControls = "error"
    """For a batch with fewer than `min_controls`. `all_wells`: all its wells count as its controls, and the fitted
    transform lists it."""
    constant_features: ConstantFeatures = "unscaled"
    """For a feature on which the controls that scale it do not differ. `unscaled`: centred only, as scikit-learn's
    scalers do; `zero`: it becomes 0 for all wells; `error`: refuse."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("variant", Variant),
            ("sphering_method", SpheringMethod),
            ("missing_controls", MissingControls),
            ("constant_features", ConstantFeatures),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"alignment.{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}."
                )
        if self.scope is not None and (self.scope not in get_args(Scope) or self.variant not in DEFAULT_SCOPE):
            raise ValueError(
                f"alignment.scope is {self.scope!r} with variant {self.variant}. Expected batch or all, and only for "
                f"{', '.join(DEFAULT_SCOPE)}; leave it out otherwise."
            )
        if self.n_components is not None and (self.n_components < 1 or self.variant not in WITH_PCA):
            raise ValueError(
                f"alignment.n_components is {self.n_components} with variant {self.variant}. Expected 1 or more, and "
                f"only for {', '.join(sorted(WITH_PCA))}; leave it out otherwise."
            )
        for name in ("shrinkage", "epsilon"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"alignment.{name} is {getattr(self, name)}, expected a number from 0 up.")
        least = 1 if self.variant in ("none", "centre") else 2
        if self.min_controls < least:
            raise ValueError(
                f"alignment.min_controls is {self.min_controls}, expected {least} or more for {self.variant}: "
                "the spread of one control is undefined."
            )

    @property
    def each_batch_needs_controls(self) -> bool:
        """Whether some step is fitted on the controls of one batch."""
        if self.variant in DEFAULT_SCOPE:
            return (self.scope or DEFAULT_SCOPE[self.variant]) == "batch"
        return self.variant != "none"

    @property
    def needs_scatter(self) -> bool:
        """Whether covariances between features are needed, not just their variances."""
        return self.variant in WITH_PCA or self.variant == "sphering"
