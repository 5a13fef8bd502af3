"""Rankings of known scores."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

import cytolake.catalog
from cytolake.benchmark.leaderboard import BEST_OF_THESE, LeaderboardFilter, leaderboard
from cytolake.reports.figures import block_curves
from cytolake.reports.leaderboard_page import encoder_name, leaderboard_text, write_leaderboard
from cytolake.tracking import TrackingConfig
from cytolake.tune.promotion import NoGainError, PromoteBy, check_gain, choose_by, promote_choice

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ENCODERS = {"trained": 3, "untrained": 3, "pixel_statistics": 0}
"""Kinds, and their blocks."""


def score(representation, value, benchmark="activity_map", label="perturbation", protocol="new", hours=1, **more):
    return {
        "score_id": f"{representation} {benchmark} {label} {protocol}", "representation_id": representation,
        "benchmark": benchmark, "label": label, "metric": "m", "split": "", "seed": -1, "value": value,
        "ci_low": value - 0.1, "ci_high": value + 0.1, "alignment": "pca_cs", "protocol": protocol,
        "scored_at": BEGAN + timedelta(hours=hours), **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of the catalog that each test gets a copy of."""
    root = tmp_path_factory.mktemp("written")
    catalog = empty_catalog(root)
    representations = [
        {
            "representation_id": f"{kind}{block}", "kind": kind, "model_id": kind, "architecture": "vit",
            "block": block, "pooling": "mean", "dim": 4, "pack_id": "pack", "created_at": BEGAN,
        }
        for kind, n_blocks in ENCODERS.items()
        for block in (range(n_blocks) if n_blocks else [-1])
    ]  # fmt: skip
    add_rows(catalog, "representations", *representations)
    biology = [
        score("trained0", 0.5), score("trained1", 0.8), score("trained2", 0.7), score("untrained0", 0.4),
        score("untrained1", 0.3), score("pixel_statistics-1", 0.2),
    ]  # fmt: skip
    older = [score("trained2", 0.99, protocol="old", hours=0)]
    leakage = [score(f"trained{b}", v, "linear_probe", "plate") for b, v in enumerate((0.9, 0.6, 0.7))]
    leakage += [score("untrained0", 0.5, "batch_leakage", "plate"), score("trained0", 0.9, "batch_leakage", "plate")]
    of_seeds = [score("trained0", 1.0, protocol="new", hours=2) | {"seed": 0, "score_id": "a seed"}]
    add_rows(catalog, "scores", *biology, *older, *leakage, *of_seeds)
    return root


@pytest.fixture
def catalog(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return cytolake.catalog.open(tmp_path)


def ranked(catalog, **wanted):
    return [
        (row["representation_id"], row["value"])
        for row in leaderboard(catalog, LeaderboardFilter(**wanted)).to_pylist()
    ]


def test_each_encoder_stands_with_its_best_block_of_the_newest_protocol(catalog):
    assert ranked(catalog, benchmark="activity_map") == [
        ("trained1", 0.8), ("untrained0", 0.4), ("pixel_statistics-1", 0.2),
    ]  # fmt: skip
    (best, *_) = leaderboard(catalog, LeaderboardFilter(benchmark="activity_map")).to_pylist()
    assert best["best_of"] == 3


def test_an_encoder_of_other_wells_has_a_ranking_of_its_own_and_hides_none(catalog, tmp_path):
    """An import with features for 94 of 96 wells is scored on those: the newest protocol, and not the only one."""
    peer = {
        "representation_id": "peer", "kind": "external", "model_id": "peer", "architecture": "peer", "block": -1,
        "pooling": "all", "dim": 4, "pack_id": "another", "created_at": BEGAN,
    }  # fmt: skip
    add_rows(catalog, "representations", peer)
    add_rows(catalog, "scores", score("peer", 0.9, protocol="94 wells", hours=5))
    assert ranked(catalog, benchmark="activity_map") == [
        ("peer", 0.9), ("trained1", 0.8), ("untrained0", 0.4), ("pixel_statistics-1", 0.2),
    ]  # fmt: skip
    found = leaderboard(catalog, LeaderboardFilter(benchmark="activity_map")).to_pylist()
    assert [row["protocol"] for row in found] == ["94 wells", "new", "new", "new"]
    page = write_leaderboard(catalog, tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "not in this one: peer" in page
    assert "not in this one: pixel statistics, vit trained, trained, vit untraine, untrained" in page


def test_a_block_chosen_on_the_wells_that_it_is_scored_on_says_so(catalog):
    (best, *_, last) = leaderboard(catalog, LeaderboardFilter(benchmark="activity_map")).to_pylist()
    assert (best["chosen_by"], last["chosen_by"]) == (BEST_OF_THESE, "")


def test_the_block_that_the_probe_of_wells_chose_stands_in_every_ranking(catalog):
    probed = [
        score(f"trained{b}", v, "linear_probe", metric="balanced_accuracy_wells") for b, v in enumerate((0.3, 0.4, 0.6))
    ]
    add_rows(catalog, "scores", *probed)
    (best, *_) = leaderboard(catalog, LeaderboardFilter(benchmark="activity_map")).to_pylist()
    assert (best["representation_id"], best["value"]) == ("trained2", 0.7)
    assert best["chosen_by"] == "linear_probe of perturbation"


@pytest.mark.parametrize(("unit", "by"), [("plate", "other plates"), ("batch", "other batches")])
def test_a_probed_encoder_is_scored_with_the_block_that_other_units_choose(catalog, unit, by):
    """Three blocks that are equal but for luck: the best of them has .5333, chosen on other plates less."""
    plates = {"trained0": [0.6, 0.5, 0.5], "trained1": [0.5, 0.6, 0.5], "trained2": [0.5, 0.5, 0.6]}
    probed = []
    for name, values in plates.items():
        details = {
            "unit": unit, "units": ["A", "B", "C"], "unit_scores": values, "fold_of_unit": [0, 1, 2],
            "inner": [[None if i == k else values[i] for i in range(3)] for k in range(3)], "n_train_units": 2.0,
            "n_test_wells": 30,
        }  # fmt: skip
        value = sum(values) / 3
        probed.append(score(name, value, "linear_probe", metric="balanced_accuracy", details=json.dumps(details)))
    add_rows(catalog, "scores", *probed)
    wanted = LeaderboardFilter(benchmark="linear_probe", label="perturbation")
    (row,) = leaderboard(catalog, wanted).to_pylist()
    assert row["chosen_by"] == by
    assert row["value"] < 1.6 / 3 - 0.005
    assert len(ranked(catalog, benchmark="linear_probe", label="perturbation", all_blocks=True)) == 3


def test_all_blocks_are_listed_with_all_blocks(catalog):
    assert [name for name, _ in ranked(catalog, benchmark="activity_map", all_blocks=True)] == [
        "trained1", "trained2", "trained0", "untrained0", "untrained1", "pixel_statistics-1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("benchmark", "first"), [("linear_probe", ("trained1", 0.6)), ("batch_leakage", ("untrained0", 0.5))]
)
def test_of_what_must_not_be_in_a_vector_the_least_is_best(catalog, benchmark, first):
    assert ranked(catalog, benchmark=benchmark)[0] == first


def test_a_pack_s_rankings_keep_what_was_scored_with_it(catalog):
    outsider = {
        "representation_id": "peer", "kind": "external", "model_id": "peer", "architecture": "peer", "block": -1,
        "pooling": "all", "dim": 4, "pack_id": "another", "created_at": BEGAN,
    }  # fmt: skip
    add_rows(catalog, "representations", outsider)
    add_rows(catalog, "scores", score("peer", 0.9))
    assert ranked(catalog, benchmark="activity_map", pack_id="pack")[0] == ("peer", 0.9)
    assert ranked(catalog, benchmark="activity_map", pack_id="nothing") == []


def test_selected_representations_are_listed_next_to_the_best(catalog):
    assert ranked(catalog, representation_ids=("trained0",)) == [
        ("trained1", 0.8), ("trained0", 0.5), ("untrained0", 0.4), ("pixel_statistics-1", 0.2),
        ("untrained0", 0.5), ("trained0", 0.9), ("trained1", 0.6), ("trained0", 0.9),
    ]  # fmt: skip
    assert ranked(catalog, representation_ids=("pixel_statistics-1",), benchmark="linear_probe") == []


def test_a_name_with_a_quote_is_a_name(catalog):
    assert ranked(catalog, label="a' or '1' = '1") == []


def test_promotion_takes_the_leader_and_says_why(catalog):
    ids = [f"{kind}{b}" for kind, n in ENCODERS.items() for b in (range(n) if n else [-1])]
    by = PromoteBy(benchmark="activity_map", metric="m", label="perturbation", alignment="pca_cs")
    choice = choose_by(catalog, ids, by)
    assert (choice.representation_id, choice.best_baseline.representation_id) == ("trained1", "untrained0")
    assert (choice.gain, choice.gain_low) == (pytest.approx(0.4), pytest.approx(0.2))
    assert not choice.is_nested
    assert choice.reason == (
        "best trained block and pooling by activity map, m, perturbation, alignment pca_cs: 0.800 [0.700, 0.900] "
        "against untrained 0.400, pixel statistics 0.200; gain +0.400 [0.200, 0.600] compared with untrained"
    )
    with pytest.raises(ValueError, match="for: pixel_statistics"):
        choose_by(catalog, ids[:-1], by)


def test_an_interval_that_is_not_over_plates_shows_no_gain(catalog):
    """Of two plates: the interval is over perturbations, which share what their plates do."""
    details = json.dumps({"no_plate_interval": "2 plates, expected 3 or more"})
    values = {"trained0": 0.9, "untrained0": 0.4, "pixel_statistics-1": 0.2}
    few = [score(name, value, protocol="two plates", hours=3, details=details) for name, value in values.items()]
    add_rows(catalog, "scores", *few)
    by = PromoteBy(benchmark="activity_map", metric="m", label="perturbation", alignment="pca_cs")
    choice = choose_by(catalog, list(values), by)
    assert (choice.score, choice.gain, choice.gain_low) == (0.9, pytest.approx(0.5), None)
    with pytest.raises(NoGainError, match="too few for an interval"):
        check_gain(choice, "")


def test_what_was_aligned_is_ranked_by_name_and_never_promoted(catalog, tmp_path):
    aligned = {
        "representation_id": "a1", "kind": "aligned", "model_id": "1a2b3c4d5e", "architecture": "mae_vit", "block": 1,
        "pooling": "mean", "dim": 4, "pack_id": "pack", "created_at": BEGAN, "parent_id": "trained1",
        "alignment_id": "f", "alignment_variant": "tvn_vcb",
    }  # fmt: skip
    add_rows(catalog, "representations", aligned)
    add_rows(catalog, "scores", score("a1", 0.95))
    (first, second, *_) = leaderboard(catalog, LeaderboardFilter(benchmark="activity_map")).to_pylist()
    assert encoder_name(first) == "mae_vit 1a2b3c4d, aligned (tvn_vcb)"
    assert (first["parent_id"], second["parent_id"]) == ("trained1", "")
    page = write_leaderboard(catalog, tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "mae_vit 1a2b3c4d, aligned (tvn_vcb)" in page
    by = PromoteBy(benchmark="activity_map", metric="m", label="perturbation", alignment="pca_cs")
    ids = catalog.table("representations")["representation_id"].to_pylist()
    choice = choose_by(catalog, ids, by)
    assert choice.representation_id == "trained1"
    with pytest.raises(ValueError, match=r"was aligned \(tvn_vcb\), and serving gives .* made from, trained1"):
        promote_choice(catalog, replace(choice, representation_id="a1"), TrackingConfig())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"benchmark": "batch_leakage", "metric": "m", "label": "plate"}, "a guard rail"),
        ({"benchmark": "linear_probe", "metric": "m", "label": "batch"}, "a guard rail"),
        ({"benchmark": "batch_mixing", "metric": "ilisi", "label": "batch"}, "noise mixes batches as well"),
        ({"benchmark": "reconstruction", "metric": "mse", "label": "perturbation"}, "an error: less is better"),
        ({"benchmark": "activity_map"}, "expected all three or none"),
    ],
)
def test_a_ranking_that_cannot_choose_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        PromoteBy(**fields)


def test_every_ranking_says_what_chance_is_where_a_number_says_so(catalog, tmp_path):
    shown = [
        score("trained0", 0.5, "linear_probe", metric="balanced_accuracy", n_classes=8),
        score("trained0", 0.5, "batch_mixing", details=json.dumps({"chance": 0.25})),
        score("trained0", 0.5, "relation_recall", details=json.dumps({"random": 0.101})),
    ]
    add_rows(catalog, "scores", *shown)
    page = write_leaderboard(catalog, tmp_path / "page.html", title="T").read_text(encoding="utf-8")
    for chance in ("chance 0.125", "chance 0.250", "chance 0.101"):
        assert page.count(chance) == 1
    said = leaderboard_text(leaderboard(catalog, LeaderboardFilter(benchmark="linear_probe")))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(said)
    assert "chance 0.125" in console.export_text()


def test_forms_of_pixel_statistics_have_names_of_their_own_in_a_figure():
    shown = [
        {"kind": "pixel_statistics", "block": -1, "pooling": form, "value": 0.5, "ci_low": None, "ci_high": None,
         "representation_id": form} for form in ("all", "texture")
    ]  # fmt: skip
    svg = block_curves(shown, "score")
    assert "<!-- pixel statistics -->" in svg
    assert "<!-- pixel statistics (texture) -->" in svg
