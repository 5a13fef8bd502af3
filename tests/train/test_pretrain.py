"""Pretraining: the same crops and the same loss, however often the run is interrupted and however it is shared out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cytolake.models import ModelConfig, build_model, load_encoder, model_id
from cytolake.packs.pack import Pack
from cytolake.tracking import TrackingConfig, metric_history
from cytolake.train.pretrain import PretrainConfig, PretrainError, pretrain, run_key
from cytolake.train.run_folder import newest_checkpoint, read_live_history

# MLflow 3.17's own queries.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")
MODEL = ModelConfig(
    channels=STAINS, crop_size=16, patch_size=4, width=16, depth=2, heads=2,
    decoder_width=16, decoder_depth=1, decoder_heads=2, drop_path=0.1,
)  # fmt: skip
CONFIG = PretrainConfig(
    model=MODEL, steps=12, minibatch_size=8, workers=0, threads=1, precision="fp32", log_every=3, checkpoint_every=5
)


@pytest.fixture(scope="session")
def mixed_pack(make_pack):
    return make_pack(36, (STAINS[:2], STAINS, ("Mito", "something else", "DNA")))


@pytest.fixture(scope="session")
def finished(mixed_pack, tmp_path_factory):
    """An uninterrupted run in this process."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    told = []
    result = pretrain(mixed_pack, CONFIG, runs, TrackingConfig(), lambda *where: told.append(where))
    return result, told


def history(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((folder / "history.json").read_text())
    return rows


def test_a_run_leaves_two_encoders_a_history_and_pictures(finished):
    result, told = finished
    trained, untrained = load_encoder(result.checkpoint), load_encoder(result.untrained_checkpoint)
    assert (model_id(trained), model_id(untrained)) == (result.model_id, result.untrained_model_id)
    assert model_id(build_model(MODEL, CONFIG.seed).encoder) == result.untrained_model_id != result.model_id
    assert [row["step"] for row in history(result.run_folder)] == [3, 5, 6, 9, 10, 12]
    assert result.final_loss == history(result.run_folder)[-1]["loss"]
    with np.load(result.run_folder / "reconstructions.npz", allow_pickle=False) as pictures:
        assert pictures["original"].shape == pictures["masked"].shape == pictures["reconstruction"].shape
        assert len(pictures["original"]) == 4
        hidden = (pictures["masked"] == 0) & (pictures["original"] != 0)
        np.testing.assert_array_equal(pictures["reconstruction"][~hidden], pictures["original"][~hidden])
    assert told[0] == ("pretrain", 0, 12)
    assert told[-1] == ("pretrain", 12, 12)


def test_mlflow_holds_the_same_history(finished):
    result, _ = finished
    tracking = TrackingConfig().at(result.run_folder.parents[1])
    for name in ("loss", "mse", "learning_rate", "crops_per_s", "data_wait_share"):
        rows = [(row["step"], row[name]) for row in history(result.run_folder)]
        assert metric_history(tracking, result.run_id, name) == rows


def test_a_finished_run_is_read_back(finished, mixed_pack):
    result, _ = finished
    again = pretrain(mixed_pack, dataclasses.replace(CONFIG, log_every=4), result.run_folder.parent, TrackingConfig())
    assert again == dataclasses.replace(result, is_reused=True)


def test_a_run_that_lost_its_pixels_goes_on_to_the_same_loss(finished, mixed_pack, tmp_path, monkeypatch):
    whole, _ = finished
    calls = 0
    read = Pack.read

    def fail_once(self, rows):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError("the file server went away")
        return read(self, rows)

    monkeypatch.setattr(Pack, "read", fail_once)
    with pytest.raises(PretrainError, match=r"the file server went away\. .* goes on from .* checkpoint_step_00000005"):
        pretrain(mixed_pack, CONFIG, tmp_path / "runs", TrackingConfig())
    folder = tmp_path / "runs" / whole.run_key
    assert read_live_history(folder)[-1]["step"] == 6
    assert not (folder / "result.json").exists()

    resumed = pretrain(mixed_pack, CONFIG, tmp_path / "runs", TrackingConfig())
    assert [row["step"] for row in history(folder)] == [row["step"] for row in history(whole.run_folder)]
    for name in ("loss", "mse", "fourier", "learning_rate"):
        np.testing.assert_allclose(
            [row[name] for row in history(folder)], [row[name] for row in history(whole.run_folder)], atol=1e-4
        )
    assert resumed.model_id == whole.model_id
    tracking = TrackingConfig().at(tmp_path)
    assert [step for step, _ in metric_history(tracking, resumed.run_id, "loss")] == [3, 5, 6, 9, 10, 12]


def test_a_half_written_checkpoint_is_passed_over(finished, tmp_path):
    import shutil

    result, _ = finished
    folder = tmp_path / "run"
    shutil.copytree(result.run_folder, folder)
    assert newest_checkpoint(folder).name == "checkpoint_step_00000012"
    optimiser = folder / "checkpoint_step_00000012" / "optimiser.pt"
    optimiser.write_bytes(optimiser.read_bytes()[:-10])
    assert newest_checkpoint(folder).name == "checkpoint_step_00000010"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray Data sets its own deprecated switches
def test_two_ray_workers_learn_what_one_process_learns_even_when_one_is_killed(mixed_pack, tmp_path, local_ray):
    import os
    import signal

    import psutil

    config = dataclasses.replace(CONFIG, workers=2, checkpoint_every=2, log_every=1)
    # Drop-path draws by worker, so it differs between one worker and two.
    config = dataclasses.replace(config, steps=60, model=dataclasses.replace(MODEL, drop_path=0.0))
    alone = pretrain(mixed_pack, dataclasses.replace(config, workers=0), tmp_path / "alone", TrackingConfig())
    killed: list[int] = []

    def kill_one_worker(what: str, done: int, total: int) -> None:
        if not killed and 4 <= done < total:
            children = psutil.Process().children(recursive=True)
            workers = [each for each in children if each.name().startswith("ray::RayTrainWo")]
            if workers:
                killed.append(workers[0].pid)
                os.kill(workers[0].pid, signal.SIGKILL)

    shared = pretrain(mixed_pack, config, tmp_path / "shared", TrackingConfig(), kill_one_worker)
    assert killed
    rows, wanted = history(shared.run_folder), history(alone.run_folder)
    assert [row["step"] for row in rows] == list(range(1, 61))
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in wanted], atol=1e-4)


def test_identity_of_a_run_is_what_it_learns_from_not_how_it_is_run():
    key = run_key("pack", CONFIG)
    for change in ({"workers": 2}, {"checkpoint_every": 7}, {"max_failures": 9}, {"threads": 2}):
        assert run_key("pack", dataclasses.replace(CONFIG, **change)) == key
    for change in ({"seed": 1}, {"learning_rate": 2e-3}, {"steps": 13}, {"model": dataclasses.replace(MODEL, heads=4)}):
        assert run_key("pack", dataclasses.replace(CONFIG, **change)) != key
    assert run_key("other", CONFIG) != key


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        ({"crop_size": 32}, {}, "crops of 16 px, the model takes 32 px"),
        ({}, {"minibatch_size": 64}, "36 crops, fewer than one minibatch of 64"),
        ({"architecture": "mae_vit"}, {}, "wants exactly DNA, ER, RNA, AGP, Mito"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused_before_anything_is_written(mixed_pack, tmp_path, model, change, said):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **model), **change)
    with pytest.raises(ValueError, match=said):
        pretrain(mixed_pack, config, tmp_path / "runs", TrackingConfig())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minibatch_size": 9, "workers": 2}, "multiple of pretrain.workers"),
        ({"precision": "fp8"}, "choose one of auto, bf16, fp32"),
        ({"steps": 0}, "expected 1 or more"),
        ({"learning_rate": 0.0}, "must be more than 0"),
    ],
)
def test_a_config_that_cannot_train_is_refused_at_once(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **change)
