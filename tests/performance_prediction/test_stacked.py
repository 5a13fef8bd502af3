from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from cytolake.performance_prediction.correlations import correlation
from cytolake.performance_prediction.regressors import FAMILIES
from cytolake.performance_prediction.stack import CARD_FILE, MODEL_FILE, STACK, load_stack
from cytolake.performance_prediction.stack_fitting import StackConfig, fit_stack

WORDS = ("red", "old", "tall", "wet", "small", "loud", "soft", "dark")


@pytest.fixture(scope="module")
def inputs():
    """Scores that half come from words and half from a curved function of numbers."""
    random = np.random.default_rng(0)
    n = 200
    has = random.random((n, len(WORDS))) < 0.4
    texts = [" ".join(word for word, h in zip(WORDS, row, strict=True) if h) or "none" for row in has]
    x = random.normal(size=(n, 4))
    spread = np.where(x[:, 3] > 0, 1.5, 0.3)
    score = has @ np.linspace(-1, 1, len(WORDS)) + np.abs(x[:, 0]) + 0.3 * spread * random.normal(size=n)
    return {"text": texts, "numbers": x}, np.column_stack([score, x[:, 0]]), np.arange(n) // 2


@pytest.fixture(scope="module")
def fitted(inputs):
    views, targets, group = inputs
    held = group >= 75
    return fit_stack(views, targets, group, held, StackConfig(folds=2)), held


def rows(views, index):
    return {name: [view[i] for i in index] if isinstance(view, list) else view[index] for name, view in views.items()}


def test_the_stack_knows_more_than_any_member(inputs, fitted):
    stack, _ = fitted
    assert stack.chosen == STACK
    assert stack.validation[STACK] > max(value for name, value in stack.validation.items() if name != STACK) + 0.05
    assert {trial.candidate.family for trial in stack.trials} == set(FAMILIES)


def test_held_out_rows_are_predicted_and_covered(inputs):
    views, targets, group = inputs
    train, test = np.flatnonzero(group < 75), np.flatnonzero(group >= 75)
    stack = fit_stack(
        rows(views, train), targets[train], group[train], np.zeros(len(train), bool),
        StackConfig(families=("tfidf", "kernel_ridge", "boosting"), folds=3),
    )  # fmt: skip
    found = stack.predict(rows(views, test))
    assert correlation("pearson", targets[test, 0], found.score) > 0.75
    covered = (found.low <= targets[test, 0]) & (targets[test, 0] <= found.high)
    assert 0.8 < covered.mean() <= 1.0
    assert (found.low < found.score).all()


def test_all_intervals_have_one_width_where_the_spread_is_constant(inputs):
    views, targets, group = inputs
    config = StackConfig(families=("ridge",), folds=3, heteroscedastic=False)
    found = fit_stack(views, targets, group, np.zeros(len(group), bool), config).predict(views)
    assert np.ptp(found.high - found.low) < 1e-9


def test_a_wider_coverage_gives_wider_intervals(inputs):
    views, targets, group = inputs
    widths = []
    for coverage in (0.6, 0.95):
        config = StackConfig(families=("ridge",), folds=3, coverage=coverage)
        found = fit_stack(views, targets, group, np.zeros(len(group), bool), config).predict(views)
        widths.append((found.high - found.low).mean())
    assert widths[0] < 0.6 * widths[1]


def test_an_auxiliary_target_is_learnt_with_the_score_and_may_be_unknown(inputs):
    views, targets, group = inputs
    partly = targets.copy()
    partly[::3, 1] = np.nan
    stack = fit_stack(views, partly, group, np.zeros(len(group), bool), StackConfig(families=("ridge",), folds=3))
    assert np.isfinite(stack.predict(views).score).all()
    assert stack.weights.shape == (2,)


def test_a_stored_stack_predicts_the_same_and_holds_no_pickle(inputs, fitted, tmp_path):
    views, _, _ = inputs
    stack, _ = fitted
    stack.save(tmp_path)
    again = load_stack(tmp_path)
    for name in ("score", "low", "high"):
        np.testing.assert_allclose(getattr(again.predict(views), name), getattr(stack.predict(views), name), rtol=1e-10)
    names = zipfile.ZipFile(tmp_path / MODEL_FILE).namelist()
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]


def test_a_stored_stack_that_names_other_code_is_refused_unread(fitted, tmp_path):
    stack, _ = fitted
    stack.save(tmp_path)
    with zipfile.ZipFile(tmp_path / MODEL_FILE) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(contents["schema.json"])
    schema["content"]["spread"] = {
        "__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1, "content": {
            "module_path": "os", "function": "system"},
    }  # fmt: skip
    contents["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(tmp_path / MODEL_FILE, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="could run code"):
        load_stack(tmp_path)


@pytest.mark.parametrize("file", [MODEL_FILE, CARD_FILE])
def test_a_missing_file_is_an_error(fitted, tmp_path, file):
    stack, _ = fitted
    stack.save(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match="no readable predictor"):
        load_stack(tmp_path)


def test_groups_are_never_on_both_sides(inputs):
    """Rows that repeat, with scores that no feature predicts: only a leak could predict them."""
    random = np.random.default_rng(1)
    x = np.repeat(random.normal(size=(60, 5)), 4, axis=0)
    score = np.repeat(random.normal(size=60), 4)
    config = StackConfig(families=("knn",), folds=5)
    none = np.zeros(240, bool)
    honest = fit_stack({"x": x}, score[:, None], np.repeat(np.arange(60), 4), none, config)
    leaking = fit_stack({"x": x}, score[:, None], np.arange(240), none, config)
    assert max(trial.pearson for trial in honest.trials) < 0.4
    assert max(trial.pearson for trial in leaking.trials) > 0.7


def test_what_cannot_be_fitted_is_an_error(inputs):
    views, targets, group = inputs
    none = np.zeros(len(group), bool)
    with pytest.raises(ValueError, match="reads any of the views"):
        fit_stack({"numbers": views["numbers"]}, targets, group, none, StackConfig(families=("tfidf",)))
    with pytest.raises(ValueError, match="1 groups to fit on"):
        fit_stack(views, targets, np.zeros_like(group), none)
    with pytest.raises(ValueError, match="families are"):
        StackConfig(families=("forest",))
    with pytest.raises(ValueError, match="every prediction was the same"):
        fit_stack(
            {"x": np.ones((50, 2))}, np.zeros((50, 1)), np.arange(50), none[:50], StackConfig(families=("ridge",))
        )
