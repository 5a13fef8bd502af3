"""Prediction of a prompt's score from its text, fitted on prompts with scores.

Features are the TF-IDF of words and parts of words, counts such as the length, and, with a sentence model, the mean
token vectors of its layers. Scores of several generators are standardised within each generator, because generators
differ more than prompts do.

The predictor is registered where it beats the best baseline (the mean, a line of the number of words, TF-IDF and ridge)
on held-out prompts, and else that baseline. Small tables are cross-validated: every prompt is predicted by a fit,
including the choice of settings, without the prompt's group.

Source: prompt performance prediction: Bizzozzero, Bendidi and Risser-Maroix 2023, arXiv:2306.08915.

Shapes: N prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.baselines import (
    BEST,
    MEAN,
    PREDICTOR,
    TFIDF,
    FittedBaseline,
    HeldOut,
    Verdict,
    fit_baselines,
    line_of,
    mean_score,
    ridge_of_words,
    score_each,
)
from cytolake.performance_prediction.correlations import Estimate
from cytolake.performance_prediction.noise_ceiling import NoiseCeiling, noise_ceiling
from cytolake.performance_prediction.prompt_table import ALL, Prompts
from cytolake.performance_prediction.regressors import View
from cytolake.performance_prediction.stack import Predicted, Stack, load_stack
from cytolake.performance_prediction.stack_fitting import StackConfig, balanced_folds, fit_stack, rows_of_view
from cytolake.performance_prediction.text_features import SentenceModel, find_sentence_model, surface

Codes = NDArray[np.intp]
Progress = Callable[[str, int, int], None]

CARD_FILE = "prompts.json"
LENGTH, WORDS = "prompt length", "words"
BASELINES = (mean_score("text"), line_of(LENGTH, WORDS), ridge_of_words("text"))
FEW_ROWS = 10
"""Fewest training prompts of a generator with its own mean and spread."""
NEGATIVE_SDS = 3.0
"""Standard errors below 0 of the correlation between halves of images from which something other than noise separates
them."""

__all__ = [
    "BEST", "LENGTH", "MEAN", "PREDICTOR", "TFIDF", "PromptPredictor", "PromptPredictorConfig", "PromptReport",
    "fit_prompt_predictor", "load_prompt_predictor", "prompt_views",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPredictorConfig(StackConfig):
    """Fit of a predictor of prompts: a stack, in which all families but `tfidf` read counts and sentence vectors."""

    sentence_model: str = ""
    """Folder of a sentence model, or package with one; empty means word counts only."""
    bootstrap_draws: int = 1000
    """Resamples behind the intervals of metrics."""
    outer_folds: int = 5
    """Folds that are held out in turn to judge the whole fit on a small table."""

    def __post_init__(self) -> None:
        StackConfig.__post_init__(self)  # super() without arguments does not know a class with slots
        if self.outer_folds < 2:
            raise ValueError(f"outer_folds is {self.outer_folds}, expected 2 or more.")


@dataclass(frozen=True, slots=True)
class PromptReport:
    """Scores of a predictor on held-out prompts, which no setting was chosen on."""

    scores: dict[str, dict[str, Estimate]]
    """Metrics of the predictor, the best baseline and each baseline; correlations within generators and folds where
    there are several."""
    verdict: Verdict
    """What is registered, and the gain of the predictor in error over the baseline that it gains least over."""
    coverage: float
    """Share of held-out scores inside the interval of the registered predictor."""
    width: float
    """Mean width of these intervals, in the scores' unit."""
    ceiling: NoiseCeiling | None
    """Noise ceiling from repeated scores; None where no prompt has two."""
    n_train: int
    """Number of training prompts: train and validation, or all."""
    n_test: int
    """Number of held-out prompts."""
    n_folds: int
    """Folds of the cross-validation; 0 where the table is split once."""
    truth: NDArray[np.float64]
    """(n_test,) scores of the held-out prompts, in the table's order."""
    predicted: Predicted
    """Predictions of these by the registered predictor."""
    chosen: str
    """`stack`, a single family, or the registered baseline."""
    notes: tuple[str, ...] = field(default=())


@dataclass(slots=True)
class PromptPredictor:
    """A fitted predictor; make one with `fit_prompt_predictor` or `load_prompt_predictor`."""

    stack: Stack
    sentence_model: SentenceModel | None
    generators: dict[str, tuple[float, float]]
    """Mean and sd of the scores of each generator; one empty key for a table without generators."""

    def predict(self, texts: Sequence[str], generator: Sequence[str] | None = None) -> Predicted:
        """Scores of prompts, with calibrated intervals.

        Args:
            texts: N prompts.
            generator: (N,) generator of the images; required for a predictor of several generators.

        Raises:
            ValueError: An empty prompt, or a generator that the predictor was not fitted on.
        """
        texts = list(texts)
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"prompt {row + 1} of {len(texts)} is {text!r}. Expected a text.")
        names = list(generator) if generator is not None else [""] * len(texts)
        unknown = sorted(set(names) - set(self.generators))
        if unknown or len(names) != len(texts):
            named = ", ".join(map(repr, unknown)) or f"of {len(names)} of {len(texts)} prompts"
            raise ValueError(
                f"generators {named}: expected for each prompt one of {', '.join(map(repr, self.generators))}, which "
                "the predictor was fitted on."
            )
        if not texts:
            return Predicted(np.zeros(0), np.zeros(0), np.zeros(0))
        return self.of_views(prompt_views(texts, names, list(self.generators), self.sentence_model), names)

    def of_views(self, views: dict[str, View], generator: Sequence[str]) -> Predicted:
        """The same for the views of `prompt_views`."""
        found = self.stack.predict(views)
        mean, sd = np.array([self.generators[name] for name in generator]).T
        return Predicted(found.score * sd + mean, found.low * sd + mean, found.high * sd + mean)

    def save(self, folder: Path) -> None:
        """Write the predictor to a folder, without pickle; the sentence model is stored by name."""
        self.stack.save(folder)
        model = self.sentence_model
        card = {
            "generators": {name: list(pair) for name, pair in self.generators.items()},
            "sentence_model": None
            if model is None
            else {"name": model.name, "digest": model.digest, "vectors": model.vectors},
        }
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_prompt_predictor(folder: str | Path) -> PromptPredictor:
    """Read a stored predictor, and find its sentence model.

    Raises:
        ValueError: Files are missing or damaged, or the sentence model on this machine has other weights.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        named = card["sentence_model"]
        generators = {name: (float(pair[0]), float(pair[1])) for name, pair in card["generators"].items()}
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: no readable predictor of prompts ({error}). Fit it again.") from error
    model = None
    if named is not None:
        model = find_sentence_model(named["name"])
        if model.digest != named["digest"]:
            raise ValueError(
                f"{folder}: fitted with sentence model {named['name']} of weights {named['digest'][:12]}, but here it "
                f"has {model.digest[:12]}. Vectors would differ: install the same, or fit the predictor again."
            )
        stored = named.get("vectors", "means of tokens, end token" if "end token" in model.vectors else model.vectors)
        if stored != model.vectors:
            raise ValueError(
                f"{folder}: fitted on {stored} of sentence model {named['name']}, which now are {model.vectors}. "
                "Expected the same vectors: fit the predictor again."
            )
    return PromptPredictor(load_stack(folder), model, generators)


def fit_prompt_predictor(
    prompts: Prompts, config: PromptPredictorConfig | None = None, progress: Progress | None = None
) -> tuple[PromptPredictor, PromptReport]:
    """Fit a predictor and baselines, judge them on held-out prompts, and return the one to be registered.

    For a table with a split, cross-validation on train chooses the settings, validation chooses the stack or one
    family, and the test prompts are predicted once. For a table without, each outer fold is predicted by a fit without
    it, including the choice of settings; the returned predictor is fitted on all prompts.

    Args:
        prompts: From `read_prompts`.
        progress: Called for each candidate, or each fit.

    Raises:
        ValueError: A sentence model that cannot be used; see also `fit_stack`.
    """
    config = config or PromptPredictorConfig()
    model = find_sentence_model(config.sentence_model) if config.sentence_model else None
    names = sorted(set(prompts.generator))
    views = prompt_views(prompts.text, prompts.generator, names, model)
    is_cross_validated = ALL in prompts.part
    if is_cross_validated:
        known = held = np.arange(len(prompts))
        fold = balanced_folds(prompts.group, config.outer_folds, config.seed + 1)
        parts = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(config.outer_folds)]
    else:
        known = np.flatnonzero(np.isin(prompts.part, ("train", "validation")))
        held = np.flatnonzero(prompts.part == "test")
        fold = np.zeros(len(prompts), dtype=np.intp)
        parts = [(known, held)]
    generators = _generators(prompts.rows(known))
    _refuse_unknown(prompts.rows(held), generators)
    found = HeldOut(len(prompts))
    final: _Fit | None = None
    for k, (rest, rows) in enumerate(parts):
        if is_cross_validated and progress is not None:
            progress("fits", k, len(parts) + 1)
        scales = _generators(prompts.rows(rest), generators) if is_cross_validated else generators
        final = _fit(prompts, views, rest, scales, config, None if is_cross_validated else progress)
        of_held = {name: rows_of_view(view, rows) for name, view in views.items()}
        of_generator = [prompts.generator[i] for i in rows.tolist()]
        stacks = {PREDICTOR: final.stack, **{each.name: each.stack for each in final.baselines}}
        scaled = {
            name: PromptPredictor(stack, model, scales).of_views(of_held, of_generator)
            for name, stack in stacks.items()
        }
        found.add(rows, scaled, final.baselines[0].name)
    if is_cross_validated:
        if progress is not None:
            progress("fits", len(parts), len(parts) + 1)
        final = _fit(prompts, views, known, generators, config, None)
    assert final is not None
    return _judge(found, final, prompts, held, fold, model, generators, config)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Stack and baselines fitted on some prompts."""

    stack: Stack
    baselines: list[FittedBaseline]
    """The best first."""


def _fit(
    prompts: Prompts,
    views: dict[str, View],
    rows: Codes,
    generators: dict[str, tuple[float, float]],
    config: PromptPredictorConfig,
    progress: Progress | None,
) -> _Fit:
    known = prompts.rows(rows)
    of_known = {name: rows_of_view(view, rows) for name, view in views.items()}
    mean, sd = np.array([generators[name] for name in known.generator]).T
    z = (known.score - mean) / sd
    of_stack = {name: view for name, view in of_known.items() if name != WORDS}
    stack = fit_stack(
        of_stack, np.column_stack([z, known.also]), known.group, known.part == "validation", config, progress
    )
    return _Fit(stack, fit_baselines(BASELINES, of_known, z, known.group, config))


def prompt_views(
    texts: Sequence[str], generator: Sequence[str], generators: Sequence[str], model: SentenceModel | None
) -> dict[str, View]:
    """Views of prompts: `text`, `words` (their number), and `counts`, or with a sentence model `last_layer` and
    `all_layers` instead of `counts`."""
    counts = surface(list(texts))
    words = counts[:, :1]
    if len(generators) > 1:
        counts = np.column_stack([counts, np.array([[g == name for name in generators] for g in generator], float)])
    views: dict[str, View] = {"text": list(texts), WORDS: words}
    if model is None:
        return {**views, "counts": counts}
    layers = [layer.astype(np.float64) for layer in model.encode(list(texts))]
    return {
        **views,
        "last_layer": np.column_stack([layers[-1], counts]),
        "all_layers": np.column_stack([*layers, counts]),
    }


def _generators(known: Prompts, of_all: dict[str, tuple[float, float]] | None = None) -> dict[str, tuple[float, float]]:
    """Mean and sd of each generator's scores; those of all generators where a fold leaves one too few prompts."""
    names = np.array(known.generator)
    found = {}
    for name in sorted(of_all or set(known.generator)):
        scores = known.score[names == name]
        if len(scores) < FEW_ROWS:
            if of_all is not None:
                pooled = known.score
                found[name] = (float(pooled.mean()), float(pooled.std()) or 1.0)
                continue
            raise ValueError(
                f"generator {name!r}: {len(scores)} prompts to fit on, expected at least {FEW_ROWS}. Leave it out, or "
                "score more prompts with it."
            )
        found[name] = (float(scores.mean()), float(scores.std()) or 1.0)
    return found


def _refuse_unknown(test: Prompts, generators: dict[str, tuple[float, float]]) -> None:
    unknown = sorted(set(test.generator) - set(generators))
    if unknown:
        raise ValueError(
            f"generator {unknown[0]!r} is in the test part and not in train. Expected the same generators in both."
        )


def _judge(
    found: HeldOut,
    final: _Fit,
    prompts: Prompts,
    held: Codes,
    fold: Codes,
    model: SentenceModel | None,
    generators: dict[str, tuple[float, float]],
    config: PromptPredictorConfig,
) -> tuple[PromptPredictor, PromptReport]:
    test = prompts.rows(held)
    best = final.baselines[0]
    strata = [f"{k} {name}" for k, name in zip(fold[held].tolist(), test.generator, strict=True)]
    predicted = {name: found.of(name).rows(held) for name in found.names(held)}
    draws = config.bootstrap_draws
    verdict = found.verdict(best.name, test.score, test.group, held, config.seed, draws)
    registered = predicted[verdict.registered]
    inside = (registered.low <= test.score) & (test.score <= registered.high)
    stack = final.stack if verdict.is_beaten else best.stack
    ceiling, notes = _ceiling(test, generators, config)
    n_folds = len(set(fold.tolist())) if ALL in prompts.part else 0
    report = PromptReport(
        scores=score_each(
            test.score, [(name, each.score) for name, each in predicted.items()], strata, test.group, draws, config.seed
        ),
        verdict=verdict,
        coverage=float(inside.mean()),
        width=float((registered.high - registered.low).mean()),
        ceiling=ceiling,
        n_train=int(np.isin(prompts.part, ("train", "validation", ALL)).sum()),
        n_test=len(test),
        n_folds=n_folds,
        truth=test.score,
        predicted=registered,
        chosen=stack.chosen if verdict.is_beaten else best.name,
        notes=(*prompts.notes, *notes),
    )
    return PromptPredictor(stack, model, generators), report


def _ceiling(
    test: Prompts, generators: dict[str, tuple[float, float]], config: PromptPredictorConfig
) -> tuple[NoiseCeiling | None, list[str]]:
    """Noise ceiling from repeated images within generators; else from a prompt's standardised scores by several."""
    found = noise_ceiling(test.image_scores, test.generator, test.group, seed=config.seed)
    if found is None and len(generators) > 1:
        mean, sd = np.array([generators[name] for name in test.generator]).T
        prompt, n_prompts = np.unique(test.prompt_id, return_inverse=True)[1], len(set(test.prompt_id))
        z = (test.score - mean) / sd
        found = noise_ceiling([z[prompt == i] for i in range(n_prompts)], of_single=True, seed=config.seed)
        if found is not None:
            return found, ["the reliability is from how far generators agree on a prompt, as none repeats its images"]
    if found is not None and found.half_correlation < -NEGATIVE_SDS / np.sqrt(found.n_prompts):
        return None, [
            f"no reliability: random halves of the images of a prompt correlate by {found.half_correlation:.2f}. "
            "Something other than noise separates the images of a prompt: if generators do, name their column in "
            "`generator`"
        ]
    return found, []
