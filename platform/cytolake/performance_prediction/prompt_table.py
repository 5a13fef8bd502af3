"""Tables of prompts with the scores of their images: read, checked, merged, grouped and split.

A table has one row for each prompt, or one for each image of a prompt. Rows of one prompt (and one generator) become
one row with the mean score. Near-duplicate prompts form a group, and a group is in one part of the split: a predictor
fitted on "a dog on a beach" is not tested on "a dog at the beach". A table of fewer than 1,000 prompts without its own
split is not split: each prompt is predicted by a fit without its group.

Shapes: N prompts, T scores.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.image_effects import find_image_effect
from cytolake.performance_prediction.near_duplicates import near_duplicate_groups, normal_form

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]
Part = Literal["train", "validation", "test", "all"]

PARTS: tuple[Part, ...] = ("train", "validation", "test")
ALL: Part = "all"
"""Part of every prompt of a table that is cross-validated."""
FEWEST_TO_SPLIT = 1000
"""Fewest prompts of a table that is split once. Its 200 test prompts give a correlation of 0.5 to +-0.10; the 60 of a
table of 300 would give it to +-0.19, and all 300, cross-validated, to +-0.09."""
SHARES = (0.6, 0.2, 0.2)
"""Shares of groups in train, validation and test for a table without its own split."""
MIN_TRAIN, MIN_TEST = 30, 10
"""Fewest prompts to fit on, and to test on."""
MIN_GROUPS = 10
"""Fewest groups of near-duplicates for cross-validation."""
SUFFIXES = (".csv", ".tsv", ".parquet")
SHOWN = 3
"""Number of examples in an error."""


class PromptTableError(ValueError):
    """A table of prompts that cannot be used; the text has the file, the column, and the found and expected values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTableConfig:
    """File and columns of a table of prompts."""

    path: str = ""
    """CSV, TSV or Parquet file, or a folder with `train`, `validation` and `test` of one of these."""
    text: str = "prompt"
    """Column of the prompt's text."""
    score: str = "score"
    """Column of the score, which is predicted."""
    also: tuple[str, ...] = ()
    """Columns of further scores of the training prompts, such as those of single generators: auxiliary targets, which a
    new prompt does not need."""
    prompt_id: str = ""
    """Column of the prompt's id; empty where the text is the id."""
    generator: str = ""
    """Column of the generator of the images; empty for a single one. Correlations are within generators."""
    rows: Literal["prompts", "images"] = "prompts"
    """Kind of the rows: a prompt with its mean score, or one image of a prompt; rows of one prompt are averaged."""
    near_duplicate: float = 0.95
    """Least cosine (character 3- to 5-grams, TF-IDF) of two prompts in one group."""
    seed: int = 0
    """Seed of the split of a table without its own."""

    def __post_init__(self) -> None:
        if not 0 < self.near_duplicate <= 1:
            raise PromptTableError(
                f"near_duplicate is {self.near_duplicate}, a cosine: expected above 0 and at most 1."
            )
        if self.score in self.also:
            raise PromptTableError(f"{self.score!r} is in `score` and in `also`. Expected other columns in `also`.")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of a checked table; all arrays have one entry for each prompt and generator."""

    text: list[str]
    prompt_id: list[str]
    generator: list[str]
    """(N,) generator of the images; empty texts for a table without one."""
    score: Numbers
    """(N,) mean score of the prompt's images, in the table's unit."""
    also: Numbers
    """(N, T) further scores; NaN where missing."""
    n_images: NDArray[np.intp]
    """(N,) number of images behind the mean; 1 where a row is a prompt."""
    image_scores: list[Numbers]
    """Scores of single images, less the effect of a column that separates images and is not set as `generator`; one
    entry where a row is a prompt."""
    group: Codes
    """(N,) near-duplicates share a number."""
    part: NDArray[np.str_]
    """(N,) train, validation or test; `all` where the table is cross-validated."""
    notes: tuple[str, ...] = field(default=())
    """Notes on merged and omitted rows, and warnings."""

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, index: Codes) -> Prompts:
        """Some of the prompts, by position."""
        return replace(
            self,
            text=[self.text[i] for i in index],
            prompt_id=[self.prompt_id[i] for i in index],
            generator=[self.generator[i] for i in index],
            score=self.score[index],
            also=self.also[index],
            n_images=self.n_images[index],
            image_scores=[self.image_scores[i] for i in index],
            group=self.group[index],
            part=self.part[index],
        )


def read_prompts(config: PromptTableConfig) -> Prompts:
    """Read a table of prompts, merge the rows of each prompt, group near-duplicates, and split by group.

    The table's own split (a folder of three files, or a column `split`) does not change. Training prompts that are
    near-duplicates of a validation or test prompt are left out, and validation prompts that are near-duplicates of a
    test prompt, so reported scores are free of leakage. Without an own split, a table of fewer than 1,000 prompts is
    marked for cross-validation.

    Raises:
        PromptTableError: A missing file or column; a prompt or score that is missing or no number; one id for two
            texts; two rows for one prompt where a row should be a prompt; equal scores; too few prompts.
    """
    rows, given = _read_rows(config)
    where = config.path
    _check_columns(rows, config, where)
    texts = [_text(row, config.text, where, i) for i, row in enumerate(rows)]
    scores = np.array([_number(row, config.score, where, i) for i, row in enumerate(rows)], dtype=float)
    _refuse_missing(scores, config.score, where, rows, config)
    also = np.array([[_number(row, name, where, i) for name in config.also] for i, row in enumerate(rows)], dtype=float)
    also = also.reshape(len(rows), len(config.also))
    ids = [str(row[config.prompt_id]) for row in rows] if config.prompt_id else [normal_form(text) for text in texts]
    generators = [str(row[config.generator]) for row in rows] if config.generator else [""] * len(rows)
    _check_ids(ids, texts, generators, config, where)
    effect, more_notes = _image_effect(rows, texts, scores, config)
    merged, notes = _merge(texts, ids, generators, scores, scores - effect, also, given)
    notes += more_notes
    if np.ptp(merged.score) == 0:
        raise PromptTableError(
            f"{where}: every {config.score} is {merged.score[0]:g} ({len(merged)} prompts, one class). There is "
            "nothing to predict: expected scores that differ."
        )
    groups = near_duplicate_groups(merged.text, config.near_duplicate)
    merged = replace(merged, group=groups)
    if given is None and len(merged) < FEWEST_TO_SPLIT:
        merged = replace(merged, part=np.full(len(merged), ALL))
    elif given is None:
        merged = replace(merged, part=_split_groups(merged, config.seed))
    else:
        merged, left_out = _without_leaks(merged)
        notes += left_out
    _refuse_few(merged, where)
    return replace(merged, notes=tuple(notes))


def _refuse_few(prompts: Prompts, where: str) -> None:
    wanted = ((ALL, MIN_TRAIN + MIN_TEST),) if ALL in prompts.part else (("train", MIN_TRAIN), ("test", MIN_TEST))
    for part, least in wanted:
        n = int((prompts.part == part).sum())
        if n < least:
            use = {"train": "to fit on", "test": "to test on", ALL: "to fit and test on"}[part]
            raise PromptTableError(
                f"{where}: {n} prompts {use} of {len(prompts)} in all, expected at least {least}. Give more prompts."
            )
    n_groups = len(np.unique(prompts.group))
    if ALL in prompts.part and n_groups < MIN_GROUPS:
        raise PromptTableError(
            f"{where}: {len(prompts)} prompts in {n_groups} groups of near-duplicates, expected at least {MIN_GROUPS}: "
            "a group is held out as a whole. Give more different prompts, or raise near_duplicate."
        )


def _read_rows(config: PromptTableConfig) -> tuple[list[dict[str, Any]], list[str] | None]:
    """Rows, and the part of each where the table has its own split."""
    if not config.path:
        raise PromptTableError("no table of prompts. Give a CSV, TSV or Parquet file, such as --set path=prompts.csv.")
    path = Path(config.path).expanduser()
    if path.is_dir():
        rows: list[dict[str, Any]] = []
        parts: list[str] = []
        for part in PARTS:
            files = [path / f"{part}{suffix}" for suffix in SUFFIXES if (path / f"{part}{suffix}").is_file()]
            if not files:
                raise PromptTableError(f"{path}: no {part}.csv, .tsv or .parquet. Expected train, validation and test.")
            found = _read_file(files[0])
            rows += found
            parts += [part] * len(found)
        return rows, parts
    rows = _read_file(path)
    if rows and "split" in rows[0]:
        parts = [str(row["split"]) for row in rows]
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise PromptTableError(
                f"{path}: column split holds {', '.join(map(repr, unknown[:SHOWN]))}. Expected {', '.join(PARTS)}; "
                "rename the column if it means something else."
            )
        return rows, parts
    return rows, None


def _read_file(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowInvalid, csv
    from pyarrow.parquet import read_table

    if not path.is_file():
        raise PromptTableError(f"{path}: no such file. Expected a table of prompts: {', '.join(SUFFIXES)}.")
    if path.suffix not in SUFFIXES:
        raise PromptTableError(f"{path}: a {path.suffix or 'nameless'} file. Expected one of {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".parquet":
            table = read_table(path)
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            table = csv.read_csv(
                path,
                parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                # 8 MB: one block must hold the longest row
                read_options=csv.ReadOptions(block_size=8 << 20),
            )
    except ArrowInvalid as error:
        raise PromptTableError(f"{path}: cannot be read ({error}). Expected {path.suffix[1:]} with a header.") from None
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_columns(rows: list[dict[str, Any]], config: PromptTableConfig, where: str) -> None:
    if not rows:
        raise PromptTableError(f"{where}: no rows. Expected one for each prompt or image.")
    settings = ("text", "score", *(each for each in ("prompt_id", "generator") if getattr(config, each)))
    for setting, name in [*((each, getattr(config, each)) for each in settings), *(("also", n) for n in config.also)]:
        if name not in rows[0]:
            raise PromptTableError(
                f"{where}: no column {name!r} ({setting}). It has {', '.join(rows[0])}: set `{setting}` to one of them."
            )


def _text(row: dict[str, Any], name: str, where: str, index: int) -> str:
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise PromptTableError(
            f"{where}: row {index + 1} has no {name} (found {text!r}). Expected a text; remove the row or fill it in."
        )
    return text


def _number(row: dict[str, Any], name: str, where: str, index: int) -> float:
    value = row[name]
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise PromptTableError(f"{where}: row {index + 1} has {name} {value!r}. Expected a number.") from None


def _refuse_missing(
    scores: Numbers, name: str, where: str, rows: list[dict[str, Any]], config: PromptTableConfig
) -> None:
    missing = np.flatnonzero(~np.isfinite(scores))
    if len(missing):
        shown = "; ".join(repr(rows[i][config.prompt_id or config.text]) for i in missing[:SHOWN])
        raise PromptTableError(
            f"{where}: {len(missing)} of {len(rows)} rows have no finite {name}: {shown}"
            f"{' and more' if len(missing) > SHOWN else ''}. Expected a number in each: remove these rows, as a "
            "prompt without a score cannot be used."
        )


def _check_ids(ids: list[str], texts: list[str], generators: list[str], config: PromptTableConfig, where: str) -> None:
    """Check that one id has one text and, where a row is a prompt, one row for each generator."""
    text_of: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for row, (prompt_id, text, generator) in enumerate(zip(ids, texts, generators, strict=True)):
        first = text_of.setdefault(prompt_id, text)
        if normal_form(first) != normal_form(text):
            raise PromptTableError(
                f"{where}: {config.prompt_id} {prompt_id} names two prompts, {first!r} and (row {row + 1}) {text!r}. "
                "Expected one text for each id."
            )
        if config.prompt_id and config.rows == "prompts" and (prompt_id, generator) in seen:
            raise PromptTableError(
                f"{where}: {config.prompt_id} {prompt_id} is there twice (again in row {row + 1}). Expected one row "
                "for each prompt; if a row is an image, set rows=images."
            )
        seen.add((prompt_id, generator))


def _image_effect(
    rows: list[dict[str, Any]], texts: list[str], scores: Numbers, config: PromptTableConfig
) -> tuple[Numbers, list[str]]:
    """(rows,) effect on each image of a column that the config does not name, and a note on it."""
    none = np.zeros(len(rows))
    if config.generator or config.rows != "images":
        return none, []
    named = {config.text, config.score, config.prompt_id, *config.also, "split"}
    columns = {name: [str(row[name]) for row in rows] for name in rows[0] if name not in named}
    prompt = np.unique([normal_form(text) for text in texts], return_inverse=True)[1].astype(np.intp)
    found = find_image_effect(scores, prompt, columns)
    if found is None:
        return none, []
    note = (
        f"the column {found.column} ({', '.join(found.levels[:SHOWN])}{', ...' if len(found.levels) > SHOWN else ''}) "
        f"explains {found.share:.0%} of the variance between images of a prompt: the reliability excludes it. If it is "
        f"the generator of the images, set generator={found.column}: scores and correlations are then within each"
    )
    return found.of_image, [note]


def _merge(
    texts: list[str],
    ids: list[str],
    generators: list[str],
    scores: Numbers,
    of_images: Numbers,
    also: Numbers,
    given: list[str] | None,
) -> tuple[Prompts, list[str]]:
    """One row for each normal form, generator and part, in the order of first appearance."""
    position: dict[tuple[str, str, str], int] = {}
    members: list[list[int]] = []
    for row, (text, generator) in enumerate(zip(texts, generators, strict=True)):
        key = (normal_form(text), generator, given[row] if given is not None else "")
        if key not in position:
            position[key] = len(members)
            members.append([])
        members[position[key]].append(row)
    first = [rows[0] for rows in members]
    with np.errstate(invalid="ignore"):
        also_means = [
            [
                float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan
                for values in each.T
            ]
            for each in (also[rows] for rows in members)
        ]
    prompts = Prompts(
        text=[texts[i] for i in first],
        prompt_id=[ids[i] for i in first],
        generator=[generators[i] for i in first],
        score=np.array([scores[rows].mean() for rows in members]),
        also=np.array(also_means, dtype=float).reshape(len(members), also.shape[1]),
        n_images=np.array([len(rows) for rows in members], dtype=np.intp),
        image_scores=[of_images[rows] for rows in members],
        group=np.zeros(len(members), dtype=np.intp),
        part=np.array([given[i] if given is not None else "train" for i in first]),
    )
    n_merged = len(texts) - len(members)
    notes = [f"{n_merged:,} of {len(texts):,} rows joined those of the same prompt"] if n_merged else []
    return prompts, notes


def _split_groups(prompts: Prompts, seed: int) -> NDArray[np.str_]:
    """Part of each prompt: groups in the order of a hash of their first text, cut at 60 and 80 % of the prompts."""
    first: dict[int, str] = {}
    for group, text in zip(prompts.group.tolist(), map(normal_form, prompts.text), strict=True):
        first[group] = min(first.get(group, text), text)
    order = sorted(first, key=lambda group: hashlib.sha256(f"{seed} {first[group]}".encode()).digest())
    size = np.bincount(prompts.group)
    before = np.cumsum([0, *(size[group] for group in order)])[:-1] / len(prompts)
    bounds = np.cumsum(SHARES[:-1])
    part_of = {g: PARTS[int(np.searchsorted(bounds, at, side="right"))] for g, at in zip(order, before, strict=True)}
    return np.array([part_of[group] for group in prompts.group.tolist()])


def _without_leaks(prompts: Prompts) -> tuple[Prompts, list[str]]:
    """Leave out of an earlier part every near-duplicate of a prompt in a later one."""
    rank = np.array([PARTS.index(part) for part in prompts.part.tolist()])
    latest = np.zeros(prompts.group.max() + 1, dtype=int)
    np.maximum.at(latest, prompts.group, rank)
    is_leak = rank < latest[prompts.group]
    notes = []
    if is_leak.any():
        n_test = int((is_leak & (latest[prompts.group] == PARTS.index("test"))).sum())
        notes.append(
            f"{int(is_leak.sum()):,} prompts of train or validation left out: near-duplicates of a later part's "
            f"({n_test:,} of a test prompt)"
        )
    return prompts.rows(np.flatnonzero(~is_leak)), notes
