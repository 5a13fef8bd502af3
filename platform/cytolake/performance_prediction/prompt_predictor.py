"""How well will this prompt do? Fitted on prompts with scores, asked of prompts without.

A prediction is told from the text alone: counted words and pieces of words (TF-IDF, always), counts such as its length,
and, where a sentence model is named, the mean token vectors of its layers. Scores of several generators are
standardised within each, for generators differ more than prompts do.

Source: prompt performance prediction: Bizzozzero, Bendidi and Risser-Maroix 2023, arXiv:2306.08915.

N prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.correlations import Estimate, score_predictions
from cytolake.performance_prediction.noise_ceiling import NoiseCeiling, noise_ceiling
from cytolake.performance_prediction.prompt_table import Prompts
from cytolake.performance_prediction.regressors import View
from cytolake.performance_prediction.stacked import Predicted, Stack, StackConfig, fit_stack, load_stack
from cytolake.performance_prediction.text_features import SentenceModel, find_sentence_model, surface

Numbers = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

CARD_FILE = "prompts.json"
PREDICTOR, MEAN, LENGTH, TFIDF = "predictor", "mean score", "prompt length", "TF-IDF and ridge"
FEW_ROWS = 10
"""A generator of fewer training prompts than this has no mean and spread of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPredictorConfig(StackConfig):
    """How a predictor of prompts is fitted: a stack, of which all but `tfidf` read counts and sentence vectors."""

    sentence_model: str = ""
    """Folder of a sentence model, or package that carries one; empty means counted words alone."""
    bootstrap_draws: int = 1000
    """Resamples of the intervals of figures."""


@dataclass(frozen=True, slots=True)
class PromptReport:
    """How a predictor did on the test prompts, which nothing was chosen on."""

    scores: dict[str, dict[str, Estimate]]
    """Metric by metric of the predictor and of each baseline; within generators where there are several."""
    coverage: float
    """Share of test scores inside their interval."""
    width: float
    """Mean width of the intervals, in the scores' unit."""
    ceiling: NoiseCeiling | None
    """From repeated scores; None where no prompt has two."""
    n_train: int
    """Prompts fitted on: train and validation."""
    n_test: int
    predicted: Predicted
    """Of the test prompts, in the table's order."""
    chosen: str
    """`stack` or the family used alone."""
    notes: tuple[str, ...] = field(default=())


@dataclass(slots=True)
class PromptPredictor:
    """A fitted predictor; make one with `fit_prompt_predictor` or `load_prompt_predictor`."""

    stack: Stack
    sentence_model: SentenceModel | None
    generators: dict[str, tuple[float, float]]
    """Mean and sd of the scores of each generator; the one key is empty where the table names none."""

    def predict(self, texts: Sequence[str], generator: Sequence[str] | None = None) -> Predicted:
        """Scores of prompts, with calibrated intervals.

        Args:
            texts: N prompts.
            generator: (N,) what will make the images; needed where the predictor was fitted on several.

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
        found = self.stack.predict(prompt_views(texts, names, list(self.generators), self.sentence_model))
        mean, sd = np.array([self.generators[name] for name in names]).T
        return Predicted(found.score * sd + mean, found.low * sd + mean, found.high * sd + mean)

    def save(self, folder: Path) -> None:
        """Write the predictor into a folder, without pickle; the sentence model is named, not copied."""
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
    """Read a stored predictor, and find the sentence model it was fitted with.

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
    """Fit on train and validation, then predict the test prompts once.

    Settings are chosen by cross-validation on train; whether the stack or one family is used, on validation.

    Args:
        prompts: As `read_prompts` gives them.
        config: Sentence model, families, folds.
        progress: Told of each candidate.

    Raises:
        ValueError: A sentence model that cannot be used; see also `fit_stack`.
    """
    config = config or PromptPredictorConfig()
    model = find_sentence_model(config.sentence_model) if config.sentence_model else None
    known, test = prompts.of_part("train", "validation"), prompts.of_part("test")
    generators = _generators(known)
    _refuse_unknown(test, generators)
    mean, sd = np.array([generators[name] for name in known.generator]).T
    targets = np.column_stack([(known.score - mean) / sd, known.also])
    stack = fit_stack(
        prompt_views(known.text, known.generator, list(generators), model),
        targets,
        known.group,
        known.part == "validation",
        config,
        progress,
    )
    predictor = PromptPredictor(stack, model, generators)
    return predictor, _judge(predictor, known, test, prompts, config)


def prompt_views(
    texts: Sequence[str], generator: Sequence[str], generators: Sequence[str], model: SentenceModel | None
) -> dict[str, View]:
    """The ways to look at prompts: `text`, `counts`, and with a sentence model `last_layer` and `all_layers`."""
    counts = surface(list(texts))
    if len(generators) > 1:
        counts = np.column_stack([counts, np.array([[g == name for name in generators] for g in generator], float)])
    views: dict[str, View] = {"text": list(texts)}
    if model is None:
        return {**views, "counts": counts}
    layers = [layer.astype(np.float64) for layer in model.encode(list(texts))]
    return {
        **views,
        "last_layer": np.column_stack([layers[-1], counts]),
        "all_layers": np.column_stack([*layers, counts]),
    }


def _generators(known: Prompts) -> dict[str, tuple[float, float]]:
    names = np.array(known.generator)
    found = {}
    for name in sorted(set(known.generator)):
        scores = known.score[names == name]
        if len(scores) < FEW_ROWS:
            raise ValueError(
                f"generator {name!r}: {len(scores)} prompts to fit on, expected at least {FEW_ROWS}. Leave it out, or "
                "score more prompts with it."
            )
        sd = float(scores.std())
        found[name] = (float(scores.mean()), sd if sd > 0 else 1.0)
    return found


def _refuse_unknown(test: Prompts, generators: dict[str, tuple[float, float]]) -> None:
    unknown = sorted(set(test.generator) - set(generators))
    if unknown:
        raise ValueError(
            f"generator {unknown[0]!r} is in the test part and not in train. Expected the same generators in both."
        )


def _judge(
    predictor: PromptPredictor, known: Prompts, test: Prompts, prompts: Prompts, config: PromptPredictorConfig
) -> PromptReport:
    generator = test.generator if len(predictor.generators) > 1 else None
    predicted = predictor.predict(test.text, test.generator)

    def scored(values: Numbers) -> dict[str, Estimate]:
        return score_predictions(test.score, values, generator, test.group, config.bootstrap_draws, config.seed)

    mean, sd = np.array([predictor.generators[name] for name in test.generator]).T
    found = {
        PREDICTOR: scored(predicted.score),
        MEAN: scored(mean),
        LENGTH: scored(_by_length(known, test, predictor.generators) * sd + mean),
    }
    found[TFIDF] = scored(_by_words(known, test, predictor.generators) * sd + mean)
    inside = (predicted.low <= test.score) & (test.score <= predicted.high)
    return PromptReport(
        scores=found,
        coverage=float(inside.mean()),
        width=float((predicted.high - predicted.low).mean()),
        ceiling=noise_ceiling(test.image_scores, generator, seed=config.seed),
        n_train=len(known),
        n_test=len(test),
        predicted=predicted,
        chosen=predictor.stack.chosen,
        notes=prompts.notes,
    )


def _standardised(known: Prompts, generators: dict[str, tuple[float, float]]) -> Numbers:
    mean, sd = np.array([generators[name] for name in known.generator]).T
    return np.asarray((known.score - mean) / sd)


def _by_length(known: Prompts, test: Prompts, generators: dict[str, tuple[float, float]]) -> Numbers:
    """Least squares from the number of words, in sds of the generator."""
    slope, intercept = np.polyfit(surface(known.text)[:, 0], _standardised(known, generators), 1)
    return np.asarray(surface(test.text)[:, 0] * slope + intercept)


def _by_words(known: Prompts, test: Prompts, generators: dict[str, tuple[float, float]]) -> Numbers:
    """The plainest text model: words and pairs of words by TF-IDF, ridge regression, its strength chosen on validation
    where there is one. In sds of the generator."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    z = _standardised(known, generators)
    held = known.part == "validation"
    train, texts = np.flatnonzero(~held), np.array(known.text, dtype=object)

    def fitted(rows: NDArray[np.intp], alpha: float) -> Any:
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
        return make_pipeline(words, Ridge(alpha=alpha)).fit(texts[rows], z[rows])

    alpha = 3.0
    if held.any():
        alphas = (1.0, 3.0, 10.0)
        errors = [np.mean((fitted(train, each).predict(texts[held]) - z[held]) ** 2) for each in alphas]
        alpha = alphas[int(np.argmin(errors))]
    return np.asarray(fitted(np.arange(len(known)), alpha).predict(test.text))
