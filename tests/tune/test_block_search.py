"""Block search over tables with a known best block."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.embed.small_screen import PERTURBATIONS, SmallScreen, make_small_screen
from tests.tune.in_process import run_in_process

import cytolake.catalog
from cytolake.benchmark.linear_probe import PROBE_METRICS, ProbeConfig
from cytolake.benchmark.probe_data import read_probe_data, standardise_by_plate_controls
from cytolake.catalog import Catalog, CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.representations import find_representation, read_vectors
from cytolake.catalog.stale import _stale_models
from cytolake.tracking import (
    AliasNotFoundError,
    TrackingConfig,
    record_promotion,
    resolve_alias,
    resolve_promoted,
    tracking_of,
)
from cytolake.tune import block_search
from cytolake.tune.block_search import BlockChoice, search_blocks
from cytolake.tune.promotion import NoGainError, promote_choice

CONFIG = ProbeConfig(regularisation=(0.1,), choose_by="crops")
SIGNALS = {
    ("trained", 0, "mean"): 0.5, ("trained", 1, "mean"): 4.0, ("trained", 0, "cls"): 0.0, ("trained", 1, "cls"): 1.0,
    ("untrained", 0, "mean"): 0.0, ("untrained", 1, "mean"): 0.7, ("pixel_statistics", -1, "all"): 1.2,
}  # fmt: skip
"""How far perturbations are apart in each representation, in standard deviations of a crop."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallScreen:
    """Crops with made-up vectors: block 1 under mean pooling is best."""
    small = make_small_screen(tmp_path_factory.mktemp("search"))
    for place, signal in SIGNALS.items():
        write_representation(small, *place, signal=signal)
    return small


def write_representation(small: SmallScreen, kind: str, block: int, pooling: str, *, signal: float) -> None:
    catalog, index = small.catalog, small.pack.index
    random = np.random.default_rng([block + 1, len(kind), len(pooling)])
    names = dict(zip(*(catalog.table("wells")[name].to_pylist() for name in ("well_id", "perturbation")), strict=True))
    vectors = random.normal(size=(index.num_rows, 8)).astype(np.float32)
    for i, well in enumerate(index["well_id"].to_pylist()):
        if names[well] in PERTURBATIONS:
            vectors[i, PERTURBATIONS.index(names[well])] += signal
    identity = content_id(kind, block, pooling)
    table = catalog.table("embeddings", where="false")
    columns = {name: index[name] for name in ("crop_id", "well_id", "plate_id")}
    columns["representation_id"] = pa.repeat(identity, index.num_rows)
    columns["embedding"] = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    catalog.append("embeddings", pa.table(columns).select(table.schema.names), transaction=f"e/{identity}")
    row = {
        "representation_id": identity, "kind": kind, "model_id": content_id(kind), "architecture": "chada_vit",
        "block": block, "pooling": pooling, "dim": 8, "pack_id": "pack0", "curation_id": "curation0",
        "checkpoint": str(small.checkpoints.get(kind, "")), "run_id": "", "created_at": datetime.now(UTC),
    }  # fmt: skip
    schema = catalog.table("representations", where="false").schema
    catalog.append("representations", pa.Table.from_pylist([row], schema=schema), transaction=f"r/{identity}")


def ids_of(catalog: Catalog, *kinds: str) -> list[str]:
    rows = catalog.table("representations").to_pylist()
    return [row["representation_id"] for row in rows if not kinds or row["kind"] in kinds]


@pytest.fixture(scope="module")
def choice(small: SmallScreen) -> BlockChoice:
    seen: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_search, "run_calls", run_in_process)
        found = search_blocks(small.catalog, ids_of(small.catalog), CONFIG, lambda _, done, n: seen.append((done, n)))
    assert seen[0] == (0, len(SIGNALS))
    assert seen[-1] == (len(SIGNALS), len(SIGNALS))
    return found


def test_the_block_with_the_most_signal_is_chosen_and_beats_every_baseline(choice):
    assert (choice.block, choice.pooling) == (1, "mean")
    untrained, pixels = choice.baselines
    assert (untrained.kind, untrained.block, untrained.pooling) == ("untrained", 1, "mean")
    assert pixels.kind == "pixel_statistics"
    assert choice.best_baseline == pixels
    assert choice.ci_low <= choice.score <= choice.ci_high
    assert choice.score == pytest.approx(np.mean(choice.unit_scores))
    assert 0 < choice.gain_low <= choice.gain <= choice.gain_high
    assert choice.has_gain
    assert choice.n_classes == len(PERTURBATIONS) - 1
    assert choice.n_candidates == 4
    assert choice.dropped_classes == ()
    assert choice.unit == "plate"
    assert set(choice.units) == {f"small/{plate}" for plate in small_plates()}


def small_plates() -> list[str]:
    return ["P0", "P1", "P2", "P3"]


def test_a_second_search_and_one_by_wells_read_the_table_and_fit_nothing(choice, small, monkeypatch):
    monkeypatch.setattr(block_search, "_score_rows", lambda *_: pytest.fail("probed again"))
    before = small.catalog.versions()
    assert search_blocks(small.catalog, ids_of(small.catalog), CONFIG) == choice
    assert small.catalog.versions() == before
    of_wells = search_blocks(small.catalog, ids_of(small.catalog), dataclasses.replace(CONFIG, choose_by="wells"))
    assert of_wells.metric == "balanced_accuracy_wells"
    assert of_wells.protocol_id == choice.protocol_id


def test_every_fold_and_metric_has_a_row_and_every_summary_an_interval(choice, small):
    rows = [row for row in small.catalog.table("scores").to_pylist() if row["protocol"] == choice.protocol_id]
    n_rows = len(SIGNALS) * len(PROBE_METRICS) * (len(choice.units) + 1)
    assert len({row["score_id"] for row in rows}) == len(rows) == n_rows
    for row in rows:
        assert (row["ci_low"] is None) == (row["seed"] >= 0)
        if row["seed"] == -1:
            folds = [
                r["value"]
                for r in rows
                if r["seed"] >= 0 and (r["representation_id"], r["metric"]) == (row["representation_id"], row["metric"])
            ]
            assert row["value"] == pytest.approx(np.mean(folds))


def test_a_search_without_baselines_or_of_unknown_representations_is_refused(small):
    with pytest.raises(ValueError, match="no untrained and no pixel_statistics"):
        search_blocks(small.catalog, ids_of(small.catalog, "trained"), CONFIG)
    with pytest.raises(ValueError, match=r"1 of 1 representations .*`cytolake embed`"):
        search_blocks(small.catalog, [content_id("nothing")], CONFIG)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label": "gene"}, r"wells.gene has 0 classes .*perturbation"),
        ({"label": "control"}, "wells.control has 0 classes"),
        ({"label": "plate"}, r"probe\.split=well"),
        ({"label": "well", "held_out_share": 0.5}, None),
    ],
)
def test_a_label_that_cannot_be_scored_stops_before_any_trial(small, changes, problem, monkeypatch):
    monkeypatch.setattr(block_search, "_score_rows", lambda *_: pytest.fail("started trials"))
    config = dataclasses.replace(CONFIG, **changes)
    if problem is None:  # positions are on every plate: it can be scored
        with pytest.raises(pytest.fail.Exception, match="started trials"):
            search_blocks(small.catalog, ids_of(small.catalog), config)
        return
    with pytest.raises(ValueError, match=problem):
        search_blocks(small.catalog, ids_of(small.catalog), config)


def test_alignment_needs_control_crops_on_every_plate(small):
    data = read_probe_data(small.catalog, ids_of(small.catalog)[0], "perturbation", include_controls=True)
    assert data.classes == tuple(sorted({"DMSO", *PERTURBATIONS[1:]}))
    vectors = read_vectors(small.catalog, ids_of(small.catalog)[0], data.crop_ids)
    plates = np.asarray(data.plates)[data.well_of_crop]
    controls = data.is_control[data.well_of_crop]
    aligned = standardise_by_plate_controls(vectors, plates.tolist(), controls, min_controls=6)
    for plate in set(data.plates):
        of_plate = aligned[(plates == plate) & controls]
        np.testing.assert_allclose(of_plate.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(of_plate.std(axis=0), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"plate small/P0: 6 crops of negative-control wells, expected at least 8"):
        standardise_by_plate_controls(vectors, plates.tolist(), controls)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_the_promoted_card_holds_the_choice_and_its_baselines(choice, small):
    champion = promote_choice(small.catalog, choice, TrackingConfig())
    assert (champion.representation_id, champion.block, champion.pooling) == (choice.representation_id, 1, "mean")
    assert (champion.score, champion.ci_low, champion.ci_high) == (choice.score, choice.ci_low, choice.ci_high)
    assert champion.baselines == choice.baselines
    assert (champion.gain, champion.gain_low, champion.gain_high) == (choice.gain, choice.gain_low, choice.gain_high)
    assert champion.forced == ""
    assert champion.table_versions == small.catalog.versions()
    assert resolve_alias(TrackingConfig().at(small.catalog.root)) == champion


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_commands_find_what_was_promoted_to_another_store_under_another_alias(choice, small, tmp_path, monkeypatch):
    """The champion of the catalog's own store is another: the last promotion counts."""
    root = tmp_path / "lake"
    shutil.copytree(small.catalog.root / "tables", root / "tables")
    catalog = cytolake.catalog.open(root)
    with pytest.raises(CatalogError, match="champion"):
        find_representation(catalog, "champion")
    monkeypatch.chdir(tmp_path)
    elsewhere = TrackingConfig(uri="sqlite:///other.db", model_name="another")
    promote_choice(catalog, choice, elsewhere, "best")
    monkeypatch.chdir(root)
    assert tracking_of(root) == dataclasses.replace(elsewhere, uri=f"sqlite:///{tmp_path / 'other.db'}")
    assert not (root / "mlflow.db").exists()
    assert find_representation(catalog, "champion")["representation_id"] == choice.representation_id
    assert (resolve_promoted(root).alias, resolve_promoted(root, "best").alias) == ("best", "best")
    with pytest.raises(AliasNotFoundError, match="'another' with alias 'worst'"):
        resolve_promoted(root, "worst")
    monkeypatch.setattr("cytolake.catalog.stale.corrected_since", lambda *_: {"p": ("labels", "S/P")})
    assert [(each.identity, each.name) for each in _stale_models(catalog)] == [("another version 1", "best")]

    promote_choice(catalog, choice, TrackingConfig())
    assert tracking_of(root) == TrackingConfig().at(root)
    assert resolve_promoted(root).name == "cytolake-encoder"


def test_a_password_of_the_store_is_not_recorded(tmp_path):
    record_promotion(tmp_path, TrackingConfig(uri="postgresql://lab:secret@db.lab:5432/mlflow"), "champion")
    assert tracking_of(tmp_path).uri == "postgresql://lab@db.lab:5432/mlflow"


def test_a_store_that_does_not_answer_is_named(small, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copytree(small.catalog.root / "tables" / "plates", tmp_path / "tables" / "plates")
    record_promotion(tmp_path, TrackingConfig(uri="http://127.0.0.1:9"), "champion")
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9, named in .*promoted\.json"):
        resolve_promoted(tmp_path)
    assert _stale_models(cytolake.catalog.open(tmp_path)) == []
    assert "http://127.0.0.1:9" in caplog.text


def test_a_catalog_without_the_representation_cannot_promote_it(choice, tmp_path: Path, small):
    shutil.copytree(small.catalog.root / "tables" / "plates", tmp_path / "tables" / "plates")
    with pytest.raises(ValueError, match="not in the table representations"):
        promote_choice(cytolake.catalog.open(tmp_path), choice, TrackingConfig())


def without_gain(choice: BlockChoice, **changes: object) -> BlockChoice:
    return dataclasses.replace(choice, **{"gain": 0.004, "gain_low": -0.059, "gain_high": 0.067, **changes})


def test_a_choice_without_a_shown_gain_is_refused_with_its_interval_and_what_to_do(choice, small):
    for changed, why in (
        (without_gain(choice), r"\+0\.004 \[-0\.059, 0\.067\].*interval covers 0.*--force"),
        (without_gain(choice, gain_low=None, gain_high=None), r"\[no interval\].*too few for an interval.*--force"),
    ):
        with pytest.raises(NoGainError, match=why):
            promote_choice(small.catalog, changed, TrackingConfig(model_name="refused"))
    with pytest.raises(AliasNotFoundError):
        resolve_alias(dataclasses.replace(TrackingConfig(), model_name="refused").at(small.catalog.root))


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_a_forced_promotion_keeps_its_reason(choice, small):
    tracking = TrackingConfig(model_name="forced")
    card = promote_choice(small.catalog, without_gain(choice), tracking, forced="a smoke test")
    assert card.forced == "a smoke test"
    assert "Promoted without a gain because: a smoke test" in card.reason
    assert "no gain shown" in card.reason
