from __future__ import annotations

import csv

import numpy as np
import pytest

from cytolake.performance_prediction.prompt_table import (
    FEWEST_TO_SPLIT,
    PromptTableConfig,
    PromptTableError,
    near_duplicate_groups,
    normal_form,
    read_prompts,
)

SUBJECTS = ("dog", "horse", "red bicycle", "old clock", "bowl of fruit", "child", "train", "zebra", "kite", "sofa")
PLACES = (
    "on a beach", "under the bridge", "in heavy snow", "near an airport", "inside a museum", "at night", "by a lake",
)  # fmt: skip
PROMPTS = [f"{subject} {place}" for subject in SUBJECTS for place in PLACES]


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return PromptTableConfig(path=str(path))


@pytest.fixture
def rows():
    return [{"prompt": prompt, "score": len(prompt) % 7 / 7, "key": i} for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A  dog on a Beach.", "a dog on a beach"),
        ("a dog --ar 16:9 --v 5", "a dog"),
        ("a dog --no cats", "a dog"),
        ("a well-lit dog -- really", "a well-lit dog -- really"),
        ("", ""),
    ],
)
def test_spellings_of_one_prompt_have_one_normal_form(text, expected):
    assert normal_form(text) == expected


@pytest.fixture
def many():
    """Enough prompts to be split once."""
    looks = ("red", "tall", "old", "tiny", "wet", "loud", "broken", "golden", "paper", "striped", "burning", "quiet",
             "frozen", "wooden", "giant")  # fmt: skip
    return [{"prompt": f"{look} {prompt}", "score": len(prompt) % 7 / 7} for look in looks for prompt in PROMPTS]


def test_every_row_is_in_one_part_and_a_group_in_one_part_only(tmp_path, many):
    rows = [*many, *({"prompt": f"{row['prompt']} ", "score": 0.5} for row in many[:5])]
    rows += [{"prompt": f"the {row['prompt']}s", "score": 0.25} for row in many[:20]]
    config = write(tmp_path / "prompts.csv", rows)
    prompts = read_prompts(PromptTableConfig(path=config.path, near_duplicate=0.8))
    assert len(prompts) == len(many) + 20
    assert prompts.notes == (f"5 of {len(rows):,} rows joined those of the same prompt",)
    for group in set(prompts.group.tolist()):
        assert len(set(prompts.part[prompts.group == group].tolist())) == 1
    assert set(prompts.part.tolist()) == {"train", "validation", "test"}


def test_the_split_is_of_the_prompts_and_not_of_their_order(tmp_path, many):
    parts = []
    for seed, order in ((0, many), (0, many[::-1]), (1, many)):
        config = write(tmp_path / "prompts.csv", order)
        prompts = read_prompts(PromptTableConfig(path=config.path, seed=seed))
        parts.append(dict(zip(prompts.text, prompts.part.tolist(), strict=True)))
    assert parts[0] == parts[1] != parts[2]


def test_a_table_of_fewer_than_a_thousand_prompts_is_cross_validated_and_not_split(tmp_path, rows, many):
    assert set(read_prompts(write(tmp_path / "prompts.csv", rows)).part.tolist()) == {"all"}
    assert len(many) >= FEWEST_TO_SPLIT
    fewer = write(tmp_path / "fewer.csv", many[: FEWEST_TO_SPLIT - 1])
    assert set(read_prompts(fewer).part.tolist()) == {"all"}


def images(shift, n_images=2):
    """Two images of each prompt by each of two makers, who differ by `shift`."""
    random = np.random.default_rng(0)
    return [
        {"prompt": prompt, "score": true + (shift if maker == "two" else 0) + 0.5 * random.normal(), "maker": maker,
         "image": f"{prompt}{maker}{i}", "subject": prompt.split()[0]}
        for prompt, true in zip(PROMPTS, random.normal(size=len(PROMPTS)), strict=True)
        for maker in ("one", "two") for i in range(n_images)
    ]  # fmt: skip


def test_a_column_that_separates_the_images_of_prompts_and_is_not_named_is_taken_out_and_reported(tmp_path):
    found = {}
    for shift in (0.0, 5.0):
        path = write(tmp_path / "images.csv", images(shift)).path
        found[shift] = read_prompts(PromptTableConfig(path=path, rows="images"))
    assert found[0.0].notes == ("210 of 280 rows joined those of the same prompt",)
    assert "the column maker (one, two) explains 9" in found[5.0].notes[-1]
    assert "set generator=maker" in found[5.0].notes[-1]
    for one, other in zip(found[0.0].image_scores, found[5.0].image_scores, strict=True):
        np.testing.assert_allclose(one - one.mean(), other - other.mean(), atol=0.3)
    np.testing.assert_allclose(found[5.0].score, found[0.0].score + 2.5)
    named = read_prompts(PromptTableConfig(path=path, rows="images", generator="maker"))
    assert len(named) == 2 * len(PROMPTS)
    assert not any("explains" in note for note in named.notes)


def test_images_of_a_prompt_become_their_mean(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        {"prompt": prompt, "score": random.normal(), "maker": maker}
        for prompt in PROMPTS
        for maker in ("one", "two")
        for _ in range(3)
    ]
    path = write(tmp_path / "images.csv", rows).path
    prompts = read_prompts(PromptTableConfig(path=path, rows="images", generator="maker"))
    assert len(prompts) == 2 * len(PROMPTS)
    assert set(prompts.n_images.tolist()) == {3}
    wanted = [row["score"] for row in rows if row["prompt"] == prompts.text[7] and row["maker"] == prompts.generator[7]]
    assert prompts.score[7] == pytest.approx(np.mean(wanted))
    np.testing.assert_allclose(np.sort(prompts.image_scores[7]), np.sort(wanted))


def test_near_duplicates_are_chains_of_similar_texts():
    texts = [
        "a brown dog runs on the sandy beach",
        "a brown dog runs on a sandy beach",
        "two trains in a station",
        "kite",
    ]
    group = near_duplicate_groups(texts, 0.6)
    assert group[0] == group[1]
    assert len(set(group.tolist())) == 3


def test_blocks_of_rows_change_no_group():
    texts = [f"{prompt} {word}" for prompt in PROMPTS for word in ("", "today", "at dawn")]
    whole, blocks = near_duplicate_groups(texts, 0.7), near_duplicate_groups(texts, 0.7, block_rows=17)
    np.testing.assert_array_equal(whole, blocks)
    assert len(set(whole.tolist())) < len(texts)


def test_a_given_split_stays_and_what_leaks_into_a_later_part_is_left_out(tmp_path, rows):
    for i, row in enumerate(rows):
        row["split"] = "test" if i % 7 == 0 else "validation" if i % 7 == 1 else "train"
    leak = {"prompt": rows[0]["prompt"].upper(), "score": 0.1, "key": 900, "split": "train"}
    prompts = read_prompts(write(tmp_path / "prompts.csv", [*rows, leak]))
    assert leak["prompt"] not in prompts.text
    assert (prompts.part == "test").sum() == 10
    assert any("near-duplicates of a later part" in note for note in prompts.notes)


def test_a_folder_of_three_files_is_a_split(tmp_path, rows):
    for part, chosen in (("train", rows[:40]), ("validation", rows[40:55]), ("test", rows[55:])):
        write(tmp_path / f"{part}.csv", chosen)
    prompts = read_prompts(PromptTableConfig(path=str(tmp_path), near_duplicate=1.0))
    assert [int((prompts.part == part).sum()) for part in ("train", "validation", "test")] == [40, 15, 15]


def test_parquet_and_tab_separated_tables_are_read_alike(tmp_path, rows):
    import pandas as pd

    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    first = read_prompts(PromptTableConfig(path=str(tmp_path / "a.parquet")))
    second = read_prompts(PromptTableConfig(path=str(tmp_path / "a.tsv")))
    assert first.text == second.text
    np.testing.assert_allclose(first.score, second.score)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda rows: rows[3].update(score=""), {}, "1 of 70 rows have no finite score"),
        (lambda rows: rows[3].update(score="nan"), {}, "1 of 70 rows have no finite score"),
        (lambda rows: rows[3].update(score="good"), {}, "row 4 has score 'good'"),
        (lambda rows: rows[3].update(prompt="  "), {}, "row 4 has no prompt"),
        (lambda rows: [row.update(score=1) for row in rows], {}, "every score is 1"),
        (lambda rows: rows[3].update(key=2), {"prompt_id": "key"}, "key 2 names two prompts"),
        (lambda rows: rows.append(dict(rows[2])), {"prompt_id": "key"}, "key 2 is there twice"),
        (lambda rows: rows.__delitem__(slice(20, None)), {}, "expected at least 40"),
        (lambda rows: rows.__delitem__(slice(20, None)) or [r.update(split="train") for r in rows], {}, "at least 30"),
        (lambda rows: None, {"near_duplicate": 0.05}, "in 1 groups of near-duplicates, expected at least 10"),
        (lambda rows: None, {"score": "quality"}, "no column 'quality' .score.. It has prompt, score, key"),
        (lambda rows: None, {"also": ("glide",)}, "no column 'glide' .also."),
        (lambda rows: [row.update(split="dev") for row in rows], {}, "column split holds 'dev'"),
    ],
)
def test_a_bad_table_is_refused_with_the_reason(tmp_path, rows, change, options, message):
    change(rows)
    path = write(tmp_path / "prompts.csv", rows).path
    with pytest.raises(PromptTableError, match=message) as error:
        read_prompts(PromptTableConfig(path=path, **options))
    assert "prompts.csv" in str(error.value)


def test_a_missing_table_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_text("no parquet")
    for path, message in (
        ("", "no table"),
        ("absent.csv", "no such file"),
        ("empty", "no train.csv"),
        ("broken.parquet", "cannot be read"),
    ):
        with pytest.raises(PromptTableError, match=message):
            read_prompts(PromptTableConfig(path=str(tmp_path / path) if path else ""))


def test_scores_known_for_some_prompts_only_help_and_are_not_required(tmp_path, rows):
    for i, row in enumerate(rows):
        row["other"] = "" if i % 3 else i
    path = write(tmp_path / "prompts.csv", rows).path
    prompts = read_prompts(PromptTableConfig(path=path, also=("other",)))
    assert np.isnan(prompts.also[:, 0]).sum() == sum(1 for i in range(len(rows)) if i % 3)
