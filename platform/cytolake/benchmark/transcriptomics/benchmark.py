"""Six tasks that an embedding of a perturbation screen should solve, from mixing of batches to decoding new biology.

    batch_mixing          T1  how many batches the neighbours of a row are of
    linear_separability   T2  perturbations predicted by a linear map, in unseen batches
    nearest_neighbours    T3  perturbations predicted by the neighbours, in unseen batches
    known_relations       T4  related perturbations are among the most alike or most opposite pairs
    perturbation_signal   T5  perturbations whose rows resemble each other, and differ from the controls
    reconstruction        T6  features decoded, for unseen perturbations in unseen batches

Source: Bendidi et al. 2024, "Benchmarking Transcriptomics Foundation Models for Perturbation Analysis: one PCA still
rules them all", arXiv 2410.13956. DIFFERENCES.md beside this file lists where and why the tasks differ from its code.

Shapes: N rows, D dimensions, P perturbations, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.batch_mixing import PERPLEXITY, ilisi
from cytolake.benchmark.transcriptomics.embeddings import DRAWN_BY_SEED, EmbeddingConfig, Vectors, embed
from cytolake.benchmark.transcriptomics.known_relations import HIGH, LOW, known_relation_recall
from cytolake.benchmark.transcriptomics.perturbation_signal import are_null, consistency, magnitude
from cytolake.benchmark.transcriptomics.perturbation_split import (
    TRAIN_SHARE,
    PerturbationSplit,
    downsample,
    split_screen,
)
from cytolake.benchmark.transcriptomics.post_processing import Alignment, post_process
from cytolake.benchmark.transcriptomics.reconstruction import DecoderConfig, judge, no_skill, train_decoder
from cytolake.benchmark.transcriptomics.resampling import (
    mean_over_seeds,
    percentile_interval,
    resampled_means,
    resampled_pairs,
    resampled_ratio,
    widened,
)
from cytolake.benchmark.transcriptomics.screen import (
    CONTROL,
    Codes,
    Screen,
    ScreenSpec,
    group_means,
    load_screen,
    need_features,
)
from cytolake.benchmark.transcriptomics.separability import (
    NEIGHBOURS,
    Distance,
    knn_scores,
    linear_scores,
    top_credit,
)
from cytolake.benchmark.transcriptomics.signal_targets import Targets
from cytolake.embed.alignment.held_out_controls import hold_out_controls
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import MIN_GROUPS
from cytolake.statistics.named_null import p_values_against

Floats = NDArray[np.float64]
Relations = Mapping[str, Iterable[tuple[str, str]]]
MixingRows = Literal["test1", "all"]
TASKS = (
    "batch_mixing",
    "linear_separability",
    "nearest_neighbours",
    "known_relations",
    "perturbation_signal",
    "reconstruction",
)
FITTED = frozenset({"linear_separability", "nearest_neighbours", "reconstruction"})
"""Tasks that are fitted on some batches and scored on others."""
WITHOUT_SPLIT = frozenset({"known_relations", "perturbation_signal"})
SETTINGS_OF = {
    "batch_mixing": ("perplexity", "mixing_rows", "max_mixing_rows", "train_share", "bootstrap_draws"),
    "linear_separability": ("regularisation", "train_share", "bootstrap_draws"),
    "nearest_neighbours": ("n_neighbours", "distance", "max_knn_rows", "train_share", "bootstrap_draws"),
    "known_relations": ("bootstrap_draws",),
    "perturbation_signal": ("signal_draws", "significant", "null_perturbations", "bootstrap_draws"),
    "reconstruction": ("decoder", "train_share", "bootstrap_draws"),
}
"""Fields of `BenchmarkConfig` that a task reads: scores that agree in these can be compared."""
SEED_DRAWS = 1000
NO_EFFECT_INTEGRITY = 0.5
"""Structural integrity of decoded features that show no effect of any perturbation."""
RANDOM_RECALL = LOW + 1 - HIGH
OVER_SEEDS = -1
"""`seed` of the rows that hold the mean over seeds."""
SCHEMA = pa.schema(
    [
        pa.field("embedding", pa.string(), nullable=False),
        pa.field("post_processing", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("ci_low", pa.float64()),
        pa.field("ci_high", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("chance", pa.float64()),
        pa.field("chance_majority", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """Settings of the tasks; the published ones unless said otherwise."""

    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    train_share: float = TRAIN_SHARE
    """Of the batches and of the perturbations."""
    perplexity: float = PERPLEXITY
    """Of batch mixing."""
    mixing_rows: MixingRows = "test1"
    """Rows whose mixing is judged; `all` for screens with so few batches that test1 has one."""
    max_mixing_rows: int = 300_000
    """More are downsampled by batch."""
    max_knn_rows: int = 100_000
    """More training rows of nearest_neighbours are downsampled by batch."""
    n_neighbours: int | None = NEIGHBOURS
    """Of nearest_neighbours; the square root of the training rows where None."""
    distance: Distance = "euclidean"
    """Of nearest_neighbours."""
    regularisation: float = 1.0
    """Inverse strength of the linear probe's L2 penalty. Published: AdamW, 250 epochs."""
    signal_draws: int = 200
    """Permutations of perturbation_signal. Not published: it compares with unexpressed genes."""
    significant: float = 0.05
    """A perturbation counts with a p-value of this or less."""
    null_perturbations: tuple[str, ...] = ()
    """Perturbations without an effect; where there are any, perturbation_signal also compares with them."""
    bootstrap_draws: int = 1000
    """Behind the intervals."""

    def __post_init__(self) -> None:
        if self.mixing_rows not in get_args(MixingRows):
            raise ValueError(f"config.mixing_rows is {self.mixing_rows!r}, expected one of {get_args(MixingRows)}.")
        if self.distance not in get_args(Distance):
            raise ValueError(f"config.distance is {self.distance!r}, expected one of {get_args(Distance)}.")
        if not 0 < self.significant < 1:
            raise ValueError(f"config.significant is {self.significant}, expected between 0 and 1.")
        if (self.signal_draws + 1) * self.significant < 1:
            raise ValueError(
                f"config.signal_draws is {self.signal_draws}: no p-value can be {self.significant}. Expected "
                f"{round(1 / self.significant) - 1} or more."
            )
        for name in ("max_mixing_rows", "max_knn_rows", "regularisation", "bootstrap_draws"):
            if getattr(self, name) <= 0:
                raise ValueError(f"config.{name} is {getattr(self, name)}, expected above 0.")


def few_rows() -> BenchmarkConfig:
    """Settings for some hundred rows, such as wells: the published ones are for tens of thousands of cells.

    All rows count for mixing, fewer are neighbours, and the decoder takes as many steps as more rows would give it: on
    120 simulated wells it explains 0.5 of the variance of unseen perturbations, and with the published setting none.
    """
    return BenchmarkConfig(
        decoder=DecoderConfig(epochs=100, minibatch_size=32, learning_rate=3e-3),
        perplexity=15,
        mixing_rows="all",
        n_neighbours=None,
    )


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task."""

    metric: str
    value: float
    n: int
    """What it is a mean of: rows, pairs, perturbations or features."""
    draws: Floats | None
    """(R,) the value of each resample; None where there is nothing to resample."""
    chance: float | None = None
    """What an embedding that knows nothing scores: any class is as likely, no effect is there. None: not known."""
    chance_majority: float | None = None
    """What guessing the most frequent class of the training rows scores; None where there are no classes."""
    interval_over: str = ""
    """What was resampled, where batches were held out."""
    targets: Targets | None = None
    """The test of each perturbation, for the share of those that pass it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One metric of one embedding, under each seed."""

    embedding: str
    post_processing: str
    task: str
    metric: str
    seeds: tuple[int, ...]
    scores: tuple[Score, ...]
    """One for each seed."""

    @property
    def value(self) -> float:
        """Mean over seeds; NaN where a seed has none."""
        return float(np.mean([score.value for score in self.scores]))

    @property
    def chance(self) -> float | None:
        """Mean over seeds of what an embedding that knows nothing scores."""
        return _mean_known([score.chance for score in self.scores])

    @property
    def chance_majority(self) -> float | None:
        """Mean over seeds of what guessing the most frequent class scores."""
        return _mean_known([score.chance_majority for score in self.scores])

    @property
    def draws(self) -> Floats | None:
        """(R,) of the mean; of the seeds alone where a score has none of its own, None for a single such seed."""
        own = [score.draws for score in self.scores if score.draws is not None]
        if len(own) < len(self.scores):
            own = [np.full(SEED_DRAWS, score.value) for score in self.scores] if len(self.scores) > 1 else []
        return mean_over_seeds(own) if own else None


@dataclass(frozen=True, slots=True)
class Compared:
    """Vectors aligned on half of the controls, in which rows without an effect are like the other half."""

    vectors: Vectors
    """(N, D)"""
    is_control: NDArray[np.bool_]
    """(N,) the other half."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One embedding under one seed: what a task is given."""

    screen: Screen
    vectors: Vectors
    """(N, D) after post-processing."""
    split: PerturbationSplit | None
    """None for tasks without one."""
    seed: int
    config: BenchmarkConfig
    relations: Relations
    compared: Compared | None = None
    """For perturbation_signal, where the vectors were aligned."""

    @property
    def parts(self) -> PerturbationSplit:
        """The split of a task that has one."""
        assert self.split is not None
        return self.split


def benchmark_embeddings(
    data: Any,
    spec: ScreenSpec,
    embeddings: Sequence[str],
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    post_processing: Sequence[str] = ("none",),
    relations: Relations | None = None,
    alignments: Mapping[str, Alignment] | None = None,
    config: BenchmarkConfig | None = None,
) -> pa.Table:
    """Score embeddings on the tasks.

    A seed draws the split, the noise embeddings, the decoder's weights and the permutations. Intervals are 95 % and say
    what other rows would have given: groups of one batch and one perturbation are drawn whole, for their rows are not
    independent. Those of a mean over seeds include the split.

    Args:
        data: AnnData, or the path of a `.h5ad`.
        spec: Where it holds perturbations, batches and embeddings.
        embeddings: Built-in ones (`embeddings.BUILT_IN`) and keys of `obsm` that the spec names.
        tasks: Of `TASKS`.
        seeds: Different numbers from 0 up.
        post_processing: `none`, `centred`, `centre_scaled`, `tvn`, a variant of `embed.alignment`, or names of
            `alignments`.
        relations: For each source, pairs of perturbations; `known_relations` needs one pair or more of each source.
        alignments: Other post-processing by name.
        config: Settings.

    Returns:
        Rows of `SCHEMA`, in the order of the arguments; `seed` -1 is the mean over seeds. `value` is null where a
        metric is not defined, the interval where there is nothing to resample. `chance` is what an embedding that knows
        nothing scores, `chance_majority` what guessing the most frequent class does; both null where not known.

    Raises:
        ImportError: scanpy or scvi-tools is missing and needed.
        ValueError: An unknown name, or data that a task cannot be run on; says which and what to do.
    """
    scored = score_embeddings(
        data,
        spec,
        embeddings,
        tasks,
        seeds,
        post_processing=post_processing,
        relations=relations,
        alignments=alignments,
        config=config,
    )
    return pa.Table.from_pylist([row for each in scored for row in rows_of(each)], schema=SCHEMA)


def score_embeddings(
    data: Any,
    spec: ScreenSpec,
    embeddings: Sequence[str],
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    post_processing: Sequence[str] = ("none",),
    relations: Relations | None = None,
    alignments: Mapping[str, Alignment] | None = None,
    config: BenchmarkConfig | None = None,
) -> list[Scored]:
    """`benchmark_embeddings` with the resamples, from which `difference` compares two embeddings.

    `data` may also be a `Screen` that was loaded with the spec.
    """
    config = config or BenchmarkConfig()
    relations = {source: list(pairs) for source, pairs in (relations or {}).items()}
    check_asked(tasks, seeds, relations)
    screen = data if isinstance(data, Screen) else load_screen(data, spec)
    splits = {
        seed: split_screen(screen, seed, config.train_share) if set(tasks) - WITHOUT_SPLIT else None for seed in seeds
    }
    scored: list[Scored] = []
    pca: Vectors | None = None
    for name in embeddings:
        if pca is None and name in ("pca", "scrambled_pca", "scrambled_pca_within_batch"):
            pca = embed(screen, "pca", config.embedding)
        drawn = {
            seed: embed(screen, name, config.embedding, seed, pca=pca)
            for seed in (seeds if name in DRAWN_BY_SEED else seeds[:1])
        }
        for method in post_processing:
            vectors = {seed: post_process(screen, each, method, alignments) for seed, each in drawn.items()}
            compared: dict[int, Compared] = {}
            if method != "none" and "perturbation_signal" in tasks:
                held_out = hold_out_controls(screen.is_control, screen.batch_of_row)
                fitted = screen.is_control & ~held_out
                compared = {
                    seed: Compared(post_process(screen, each, method, alignments, is_fitted=fitted), held_out)
                    for seed, each in drawn.items()
                }
            trials = [
                Trial(
                    screen,
                    vectors.get(seed, vectors[seeds[0]]),
                    splits[seed],
                    seed,
                    config,
                    relations,
                    compared.get(seed, compared.get(seeds[0])),
                )
                for seed in seeds
            ]
            for task in tasks:
                for scores in zip(*(run_task(task, trial) for trial in trials), strict=True):
                    scored.append(Scored(name, method, task, scores[0].metric, tuple(seeds), scores))
    return scored


def difference(better: Scored, worse: Scored) -> tuple[float, float | None, float | None]:
    """How much higher one embedding scores than another on the same metric, and the 95 % interval of that.

    Both are resampled alike, so what is hard for both, such as a perturbation without an effect, does not widen it.

    Raises:
        ValueError: Scores of different tasks, metrics or seeds, or of different numbers of rows.
    """
    asked = [(each.task, each.metric, each.seeds, tuple(score.n for score in each.scores)) for each in (better, worse)]
    if asked[0] != asked[1]:
        raise ValueError(f"{asked[0]} and {asked[1]} are not the same question. Score both embeddings in one call.")
    low, high = None, None
    if better.draws is not None and worse.draws is not None:
        low, high = percentile_interval(better.draws - worse.draws)
    return better.value - worse.value, low, high


def run_task(task: str, trial: Trial) -> list[Score]:
    """Scores of one task, for callers with vectors and splits of their own."""
    return _RUN[task](trial)


def rows_of(scored: Scored) -> list[dict[str, Any]]:
    """Rows of `SCHEMA` of one metric: each seed, and the mean."""
    seeds = zip(scored.seeds, scored.scores, strict=True)
    rows = [_row(scored, seed, score, score.n) for seed, score in seeds]
    n = round(float(np.mean([score.n for score in scored.scores])))
    return [*rows, _row(scored, OVER_SEEDS, scored, n)]


def check_asked(tasks: Sequence[str], seeds: Sequence[int], relations: Relations) -> None:
    """Refuse a question before the screen is read.

    Raises:
        ValueError: An unknown task, seeds that are no different numbers from 0 up, or `known_relations` without any.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"tasks {', '.join(unknown) or '(none)'}: expected some of {', '.join(TASKS)}.")
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {tuple(seeds)}, expected different numbers from 0 up, such as (0, 1, 2).")
    if "known_relations" in tasks and not relations:
        raise ValueError(
            "the task known_relations has no relations. Give pairs of perturbations as relations={'source': pairs}, or "
            "leave the task out."
        )


def _batch_mixing(trial: Trial) -> list[Score]:
    screen, config = trial.screen, trial.config
    rows = trial.parts.test1 if config.mixing_rows == "test1" else np.arange(screen.n_rows)
    rows = downsample(rows, screen.batch_of_row[rows], config.max_mixing_rows, trial.seed)
    mixing = ilisi(trial.vectors[rows], screen.batch_of_row[rows], config.perplexity)
    return [
        replace(_mean(trial, "ilisi", mixing.lisi, rows), chance=float(mixing.chance.mean())),
        replace(_mean(trial, "ilisi_normalised", mixing.normalised, rows), chance=1.0),
    ]


def _linear_separability(trial: Trial) -> list[Score]:
    screen = trial.screen
    train, test = (rows[~screen.is_control[rows]] for rows in (trial.parts.train, trial.parts.test1))
    scores = []
    for suffix, standardise in (("", False), ("_standardised", True)):
        classes, logits, converged = linear_scores(
            trial.vectors[train],
            screen.perturbation_of_row[train],
            trial.vectors[test],
            standardise=standardise,
            regularisation=trial.config.regularisation,
        )
        scores += _accuracies(trial, classes, logits, train, test, suffix)
        scores.append(Score(f"converged{suffix}", float(converged), 1, None))
    return scores


def _nearest_neighbours(trial: Trial) -> list[Score]:
    screen, config = trial.screen, trial.config
    train, test = trial.parts.train, trial.parts.test1
    train = downsample(train, screen.batch_of_row[train], config.max_knn_rows, trial.seed)
    classes, votes = knn_scores(
        trial.vectors[train],
        screen.perturbation_of_row[train],
        trial.vectors[test],
        n_neighbours=config.n_neighbours,
        distance=config.distance,
    )
    return _accuracies(trial, classes, votes, train, test, "")


def _known_relations(trial: Trial) -> list[Score]:
    screen, draws = trial.screen, trial.config.bootstrap_draws
    means_PD = group_means(trial.vectors, screen.perturbation_of_row, len(screen.perturbations))
    scores = []
    for source, pairs in trial.relations.items():
        found = known_relation_recall(means_PD, screen.perturbations, pairs)
        if not len(found.pairs):
            raise ValueError(
                f"known_relations: of {source}'s pairs none has both ends among the {len(screen.perturbations)} "
                "perturbations. Expected the same names: correct the relations, or leave the source out."
            )
        recalled = found.recalled.astype(np.float64)
        resampled = resampled_pairs(recalled, found.pairs, len(screen.perturbations), draws)
        scores.append(Score(f"recall_{source}", found.value, len(recalled), resampled, chance=RANDOM_RECALL))
    return scores


def _perturbation_signal(trial: Trial) -> list[Score]:
    screen, config = trial.screen, trial.config
    compared = trial.compared or Compared(trial.vectors, screen.is_control)
    found = {
        "consistent": consistency(screen, trial.vectors, config.signal_draws, trial.seed),
        "distinct": magnitude(
            screen, compared.vectors, config.signal_draws, trial.seed, is_compared=compared.is_control
        ),
    }
    scores = []
    n_rows = np.bincount(screen.perturbation_of_row[~screen.is_control], minlength=len(screen.perturbations))
    for name, (values, p_values) in found.items():
        targets = Targets(name, screen.perturbations, values, p_values, n_rows.astype(np.intp))
        share = _share(trial, f"{name}_share", p_values)
        scores.append(replace(share, chance=_level(config.significant, config.signal_draws), targets=targets))
        # Where nothing differs, no q-value is low but by chance of all tests together.
        scores.append(replace(_share(trial, f"{name}_share_q", benjamini_hochberg(p_values)), chance=0.0))
        if config.null_perturbations:
            is_null = are_null(screen, config.null_perturbations)
            against = np.where(is_null, np.nan, p_values_against(values, is_null))
            share = _share(trial, f"{name}_share_of_named_null", against)
            n_null = int((is_null & ~np.isnan(values)).sum())
            scores.append(replace(share, chance=_level(config.significant, n_null)))
            scores.append(
                replace(_share(trial, f"{name}_share_of_named_null_q", benjamini_hochberg(against)), chance=0.0)
            )
    return scores


def _reconstruction(trial: Trial) -> list[Score]:
    screen, decoder, draws = trial.screen, trial.config.decoder, trial.config.bootstrap_draws
    need_features(screen, "reconstruction")
    predict = train_decoder(screen, trial.vectors, trial.parts.train, decoder, trial.seed)
    found = judge(screen, predict, trial.parts.test2, decoder)
    n = len(trial.parts.test2)
    groups_J, n_groups = _groups(screen, found.first_row)

    def resampled(numerator: Floats, denominator: Floats) -> Floats:
        return resampled_ratio(numerator, denominator, groups_J, n_groups, draws)

    guess = no_skill(screen, trial.parts.train, trial.parts.test2, decoder)
    scores = [
        Score("mse", found.mse, n, resampled(found.squared, found.n_rows), chance=guess.mse),
        Score("mae", found.mae, n, resampled(found.absolute, found.n_rows), chance=guess.mae),
        Score("r2", found.r2, n, 1 - resampled(found.squared, found.spread), chance=guess.r2),
    ]
    for name, each_G in (("pearson", found.pearson), ("spearman", found.spearman)):
        scores.append(replace(_over_units(trial, name, each_G), chance=0.0))
    n_batches = len(np.unique(screen.batch_of_row[trial.parts.test2]))
    for name, value in (
        ("structural_integrity", found.integrity),
        ("structural_integrity_profiles", found.profile_integrity),
    ):
        scores.append(Score(name, value, n_batches, None, chance=NO_EFFECT_INTEGRITY))
    return scores


_RUN: dict[str, Callable[[Trial], list[Score]]] = {
    "batch_mixing": _batch_mixing,
    "linear_separability": _linear_separability,
    "nearest_neighbours": _nearest_neighbours,
    "known_relations": _known_relations,
    "perturbation_signal": _perturbation_signal,
    "reconstruction": _reconstruction,
}


def _accuracies(trial: Trial, classes: Codes, scores_MK: Floats, train: Codes, rows: Codes, suffix: str) -> list[Score]:
    """Shares of rows whose class is among the first 1 and 5, over rows and as the mean of classes, each with its
    chance: every class scored alike, and classes by their training rows."""
    n_codes = len(trial.screen.perturbations) + 1
    batches = trial.screen.batch_of_row[rows]
    labels = trial.screen.perturbation_of_row[rows]
    frequent_K = np.bincount(np.searchsorted(classes, trial.screen.perturbation_of_row[train]), minlength=len(classes))
    guesses = {"chance": np.zeros(len(classes)), "chance_majority": frequent_K.astype(np.float64)}
    of_rows, of_classes = [], []
    for top in (1, 5):
        credit = top_credit(scores_MK, classes, labels, top)
        guessed = {
            name: top_credit(np.broadcast_to(guess, scores_MK.shape), classes, labels, top)
            for name, guess in guesses.items()
        }
        score = _mean(trial, f"top{top}{suffix}", credit, rows)
        chance, majority = (float(guessed[name].mean()) for name in ("chance", "chance_majority"))
        of_rows.append(replace(score, chance=chance, chance_majority=majority))
        balanced = {
            name: group_means(each[:, None], labels - CONTROL, n_codes)[:, 0]
            for name, each in {"value": credit, **guessed}.items()
        }
        score = _over_units(trial, f"balanced_top{top}{suffix}", balanced["value"])
        classes_of_rows = np.unique(labels, return_inverse=True)[1]
        score = _over_batches(trial, score, credit, batches, classes_of_rows)
        chance, majority = (float(np.nanmean(balanced[name])) for name in ("chance", "chance_majority"))
        of_classes.append(replace(score, chance=chance, chance_majority=majority))
    return [*of_rows, *of_classes]


def _mean(trial: Trial, metric: str, values: Floats, rows: Codes) -> Score:
    """The mean over rows, resampled by batches; by groups of one batch and one perturbation where batches are few."""
    groups_N, n_groups = _groups(trial.screen, rows)
    units, place = np.unique(groups_N, return_inverse=True)
    sums, counts = (np.bincount(place, each).astype(np.float64) for each in (values, np.ones(len(place))))
    draws = resampled_ratio(sums, counts, units, n_groups, trial.config.bootstrap_draws)
    score = Score(metric, float(values.mean()), len(values), draws)
    return _over_batches(trial, score, values, trial.screen.batch_of_row[rows], np.zeros(len(values), np.intp))


def _over_batches(trial: Trial, score: Score, values: Floats, batches: Codes, classes: Codes) -> Score:
    """A mean over classes of their rows' mean, with its draws from resampled batches where there are three or more.

    Rows of one batch share its effects, and batches are what was held out.
    """
    held_out, of_row = np.unique(batches, return_inverse=True)
    n, n_classes = len(held_out), int(classes.max(initial=-1)) + 1
    if n < MIN_GROUPS:
        return replace(score, interval_over=f"perturbations and rows; {n} batches are too few to resample")
    sums_UK, counts_UK = (
        np.bincount(of_row * n_classes + classes, each, n * n_classes).reshape(n, n_classes).astype(np.float64)
        for each in (values, np.ones(len(values)))
    )
    draws = resampled_means(sums_UK, counts_UK, held_out, len(trial.screen.batches), trial.config.bootstrap_draws)
    return replace(score, draws=widened(draws, score.value, n), interval_over=f"{n} batches")


def _over_units(trial: Trial, metric: str, values_U: Floats) -> Score:
    """The mean over perturbations or features, resampled by them; those with NaN do not count."""
    units = np.flatnonzero(~np.isnan(values_U))
    known = values_U[units]
    draws = resampled_ratio(known, np.ones(len(units)), units, len(values_U), trial.config.bootstrap_draws)
    return Score(metric, float(known.mean()) if len(units) else float("nan"), len(units), draws)


def _share(trial: Trial, metric: str, p_values: Floats) -> Score:
    """Share of the perturbations with a p-value that are significant."""
    hits = np.where(np.isnan(p_values), np.nan, p_values <= trial.config.significant)
    return _over_units(trial, metric, hits)


def _level(significant: float, n_draws: int) -> float:
    """Share of perturbations without an effect whose p-value, in steps of 1 / (1 + draws), is significant."""
    return float(np.floor(significant * (1 + n_draws) + 1e-9) / (1 + n_draws))


def _groups(screen: Screen, rows: Codes) -> tuple[Codes, int]:
    """Number of each row's group of one batch and one perturbation, and how many such groups there could be."""
    n_labels = len(screen.perturbations) + 1
    groups = screen.batch_of_row[rows] * n_labels + screen.perturbation_of_row[rows] - CONTROL
    return groups, n_labels * len(screen.batches)


def _row(scored: Scored, seed: int, of: Score | Scored, n: int) -> dict[str, Any]:
    is_known = bool(np.isfinite(of.value))
    low, high = percentile_interval(of.draws) if is_known else (None, None)
    return {
        "embedding": scored.embedding,
        "post_processing": scored.post_processing,
        "task": scored.task,
        "metric": scored.metric,
        "seed": seed,
        "value": of.value if is_known else None,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "chance": of.chance,
        "chance_majority": of.chance_majority,
    }


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
