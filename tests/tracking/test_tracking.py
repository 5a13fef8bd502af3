"""Runs, registered versions and aliases, against a real SQLite store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cytolake.tracking import (
    AliasNotFoundError,
    Baseline,
    ModelCard,
    TrackingConfig,
    flatten_config,
    metric_history,
    promote,
    resolve_alias,
    run_params,
    start_run,
)
from cytolake.tracking.store import mlflow_client

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    # A blank in the path: MLflow writes artefact locations as URIs.
    return TrackingConfig().at(tmp_path_factory.mktemp("a catalog"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.arange(3)}, path)
    return path


BASELINE = Baseline(kind="untrained", representation_id="u", block=1, pooling="cls", score=0.2, ci_low=0.1, ci_high=0.3)


def card(representation_id: str, run_id: str = "") -> ModelCard:
    return ModelCard(
        representation_id=representation_id, model_id="m", architecture="mae_vit", channels=("DNA", "ER"), crop_size=64,
        block=3, pooling="mean", dim=8, pack_id="p", curation_id="c", table_versions={"crops": 3}, run_id=run_id,
        benchmark="linear_probe", label="gene", split="plate", metric="balanced_accuracy", score=0.5, ci_low=0.4,
        ci_high=0.6,
        baselines=(BASELINE,),
    )  # fmt: skip


def test_an_alias_in_a_store_that_does_not_exist_is_refused_and_makes_no_store(tmp_path):
    nowhere = TrackingConfig().at(tmp_path)
    with pytest.raises(AliasNotFoundError, match="champion") as error:
        resolve_alias(nowhere)
    for part in ("cytolake-encoder", nowhere.uri, "`cytolake promote`"):
        assert part in str(error.value)
    assert not (tmp_path / "mlflow.db").exists()


def status_of(tracking, run_id: str) -> str:
    return mlflow_client(tracking).get_run(run_id).info.status


def test_a_run_keeps_what_was_logged_and_is_finished_once_its_work_is(tracking):
    tags = {"pack_id": "it's"}
    with start_run(tracking, "first", params={"width": 8}, tags=tags) as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_metrics({"loss": 0.5}, step=2)
        assert status_of(tracking, run.run_id) == "RUNNING"
    assert status_of(tracking, run.run_id) == "FINISHED"
    assert metric_history(tracking, run.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert run_params(tracking, run.run_id) == {"width": "8"}


def test_a_run_whose_work_fails_is_failed(tracking):
    with pytest.raises(RuntimeError, match="boom"), start_run(tracking, "second") as run:
        raise RuntimeError("boom")
    assert status_of(tracking, run.run_id) == "FAILED"


def test_a_resumed_run_is_the_same_run(tracking):
    with start_run(tracking, "third") as run:
        run.log_metrics({"loss": 2.0}, step=0)
    with start_run(tracking, "third", run_id=run.run_id) as again:
        again.log_metrics({"loss": 1.0}, step=1)
    assert metric_history(tracking, run.run_id, "loss") == [(0, 2.0), (1, 1.0)]


def test_a_promoted_card_comes_back_unchanged_with_the_checkpoints_bytes(tracking, checkpoint):
    with start_run(tracking, "trains") as run:
        pass
    version = promote(tracking, card("same", run.run_id), checkpoint)
    assert version.card == card("same", run.run_id)
    assert version.encoder_path.read_bytes() == checkpoint.read_bytes()
    assert resolve_alias(tracking) == version


def test_the_same_representation_is_registered_once_and_the_alias_can_go_back_to_it(tracking, checkpoint):
    first = promote(tracking, card("r1"), checkpoint)
    assert promote(tracking, card("r1"), checkpoint).version == first.version
    second = promote(tracking, card("r2"), checkpoint)
    assert second.version != first.version
    assert resolve_alias(tracking).representation_id == "r2"
    assert promote(tracking, card("r1"), checkpoint).version == first.version
    assert resolve_alias(tracking).representation_id == "r1"


def test_a_version_holds_no_code_and_its_signature_has_the_shapes(tracking, checkpoint):
    from mlflow.models import Model

    folder = promote(tracking, card("shapes"), checkpoint).folder
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "MLmodel",
        "card.json",
        "encoder.safetensors",
    }
    signature = Model.load(str(folder)).signature
    assert signature.inputs.inputs[0].shape == (-1, 2, 64, 64)
    assert signature.outputs.inputs[0].shape == (-1, 8)
    adaptive = dataclasses.replace(card("adaptive"), architecture="chada_vit")
    assert Model.load(str(promote(tracking, adaptive, checkpoint).folder)).signature.inputs.inputs[0].shape[1] == -1


def test_an_unknown_alias_or_model_is_refused_with_the_known_ones(tracking, checkpoint):
    number = promote(tracking, card("r1"), checkpoint).version
    with pytest.raises(AliasNotFoundError, match=f"champion -> version {number}"):
        resolve_alias(tracking, "challenger")
    with pytest.raises(AliasNotFoundError, match="no such registered model"):
        resolve_alias(tracking, name="another-encoder")


def test_a_version_without_its_files_is_refused(tracking, checkpoint):
    version = promote(tracking, card("gone"), checkpoint, alias="doomed")
    version.encoder_path.unlink()
    with pytest.raises(AliasNotFoundError, match=r"lacks encoder\.safetensors"):
        resolve_alias(tracking, "doomed")


def test_only_a_safetensors_file_is_registered(tracking, tmp_path):
    with pytest.raises(FileNotFoundError, match="`cytolake pretrain`"):
        promote(tracking, card("none"), tmp_path / "none.safetensors")
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        promote(tracking, card("none"), pickle)


def test_a_card_of_another_version_is_refused(tmp_path):
    from cytolake.tracking import read_card

    values = dataclasses.asdict(card("r"))
    values["unknown_field"] = 1
    path = tmp_path / "card.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="unknown_field"):
        read_card(path)


def test_an_empty_uri_needs_a_root_and_a_given_one_stays(tmp_path):
    with pytest.raises(ValueError, match=r"tracking\.at"):
        resolve_alias(TrackingConfig())
    assert TrackingConfig(uri="http://mlflow:5000").at(tmp_path).uri == "http://mlflow:5000"
    with pytest.raises(ValueError, match=r"tracking\.uri"):
        TrackingConfig(uri="mlflow.db")


def test_a_nested_config_flattens_to_the_names_of_set():
    @dataclasses.dataclass
    class Inner:
        width: int = 8

    @dataclasses.dataclass
    class Outer:
        model: Inner
        seeds: tuple[int, ...] = (0, 1)

    assert flatten_config(Outer(Inner())) == {"model.width": "8", "seeds": "(0, 1)"}
