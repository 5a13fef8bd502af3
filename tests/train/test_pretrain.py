"""Pretraining: the same crops and the same loss, however often the run is interrupted and however it is shared out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchTrainer
from tests.catalog.test_ray_memory import KILLED, WANTED

from cytolake.models import ModelConfig, build_encoder, load_encoder, model_id
from cytolake.models.cost import training_cost
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.models.stored_fields import stored_fields
from cytolake.packs.pack import Pack
from cytolake.packs.sampler import minibatches
from cytolake.tracking import metric_history, run_params
from cytolake.train.checkpoint import newest_checkpoint
from cytolake.train.config import PretrainConfig, run_key
from cytolake.train.evaluation import evaluated_step
from cytolake.train.pretrain import UNTRAINED_FILE, PretrainError, _evaluating_untrained, pretrain
from cytolake.train.run_folder import read_live_history
from cytolake.train.seen import read_seen

# MLflow 3.17's own queries.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")
MODEL = ModelConfig(
    channels=STAINS, crop_size=16, patch_size=4, width=16, depth=2, heads=2, drop_path=0.1
)  # fmt: skip
OBJECTIVE = ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2))
CONFIG = PretrainConfig(
    model=MODEL, objective=OBJECTIVE, steps=12, minibatch_size=8, workers=0, threads=1, precision="fp32", log_every=3,
    checkpoint_every=5, evaluate_every=5, record_ids=True, device_peak_tflops=0.5,
)  # fmt: skip


def spread_of_weights():
    """Stands for a probe: a number that is known for every encoder. A closure, so that Ray sends it by value."""

    def evaluate(encoder: Path) -> dict[str, float]:
        return {"spread": float(load_encoder(encoder).patch_embedding.weight.detach().std())}

    return evaluate


@pytest.fixture(scope="session")
def mixed_pack(make_pack):
    return make_pack(36, (STAINS[:2], STAINS, ("Mito", "something else", "DNA")))


@pytest.fixture(scope="session")
def finished(mixed_pack, tmp_path_factory, tracking):
    """An uninterrupted run in this process."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    reported = []
    result = pretrain(
        mixed_pack,
        CONFIG,
        runs,
        tracking,
        lambda *where: reported.append(where),
        spread_of_weights(),
        {"code": "abc"},
    )
    return result, reported


def history(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((folder / "history.json").read_text())
    return rows


def test_a_run_leaves_two_encoders_a_history_and_pictures(finished):
    result, reported = finished
    trained, untrained = load_encoder(result.checkpoint), load_encoder(result.untrained_checkpoint)
    assert (model_id(trained), model_id(untrained)) == (result.model_id, result.untrained_model_id)
    assert model_id(build_encoder(MODEL, CONFIG.seed)) == result.untrained_model_id != result.model_id
    assert [row["step"] for row in history(result.run_folder)] == [3, 5, 6, 9, 10, 12]
    assert [row["samples"] for row in history(result.run_folder)] == [24, 40, 48, 72, 80, 96]
    assert (result.steps, result.final_loss) == (12, history(result.run_folder)[-1]["loss"])
    with np.load(result.run_folder / "reconstructions.npz", allow_pickle=False) as pictures:
        assert pictures["original"].shape == pictures["masked"].shape == pictures["reconstruction"].shape
        assert len(pictures["original"]) == 4
        hidden = (pictures["masked"] == 0) & (pictures["original"] != 0)
        np.testing.assert_array_equal(pictures["reconstruction"][~hidden], pictures["original"][~hidden])
    # 96 crops of a pack of 36: pictures after the first two epochs, and at the end
    assert len(list((result.run_folder / "pictures").glob("*.png"))) == 3
    assert reported[0] == ("pretrain", 0, 96)
    assert reported[-1] == ("pretrain", 96, 96)


def test_speed_is_reported_in_crops_tokens_and_operations(finished, mixed_pack):
    result, _ = finished
    n_channels = np.array(Pack.open(mixed_pack).index["group"])
    flops = {n: training_cost(MODEL, OBJECTIVE, n).training_flops for n in (2, 3, 5)}
    first = 0
    for row, seen in zip(history(result.run_folder), windows_of(result.run_folder), strict=True):
        counts = n_channels[np.concatenate(seen)]
        assert row["tokens_per_s"] / row["crops_per_s"] == pytest.approx(16 * counts.mean())
        assert row["tflops_per_s"] * 1e12 / row["crops_per_s"] == pytest.approx(np.mean([flops[n] for n in counts]))
        assert row["mfu"] == pytest.approx(row["tflops_per_s"] / 0.5)  # device_peak_tflops of CONFIG
        assert 0 <= row["data_wait_share"] <= 1
        assert row["samples"] == first + len(counts)
        first += len(counts)


def windows_of(run_folder: Path) -> list[list[np.ndarray]]:
    """What the steps of each row of the history saw."""
    seen, ends = read_seen(run_folder), [0, *(int(row["step"]) for row in history(run_folder))]
    return [seen[a:b] for a, b in itertools.pairwise(ends)]


def test_every_crop_is_seen_once_in_each_epoch_in_the_sampler_s_order(finished, mixed_pack):
    result, _ = finished
    seen = read_seen(result.run_folder)
    wanted = [np.sort(each.rows) for each in minibatches(36, CONFIG.seed, 8, end=96)]
    assert len(seen) == len(wanted) == 12
    assert all(np.array_equal(one, other) for one, other in zip(seen, wanted, strict=True))


def test_mlflow_holds_the_same_history_and_what_the_run_was_made_of(finished, tracking):
    result, _ = finished
    for name in ("loss", "mse", "learning_rate", "grad_norm", "crops_per_s", "tokens_per_s", "memory_mb"):
        rows = [(row["step"], row[name]) for row in history(result.run_folder)]
        assert metric_history(tracking, result.run_id, name) == rows
    params = run_params(tracking, result.run_id)
    assert params["pack_id"] == result.pack_id
    assert params["delta_version.crops"] == "1"
    assert params["objective.mae.mask_ratio"] == "0.75"
    import mlflow

    client = mlflow.MlflowClient(tracking.uri)
    assert len(client.list_artifacts(result.run_id, "reconstructions")) == 3
    assert client.get_run(result.run_id).data.tags["code"] == "abc"


def test_the_encoder_is_evaluated_while_it_is_trained(finished, tracking):
    result, _ = finished
    assert list(result.evaluations) == [0, 5, 10, 12]
    ends = {0: result.untrained_checkpoint, 12: result.checkpoint}
    for step, encoder in ends.items():
        assert result.evaluations[step] == spread_of_weights()(encoder)
    reported = metric_history(tracking, result.run_id, "evaluation/spread")
    assert reported == [(step, numbers["spread"]) for step, numbers in result.evaluations.items()]


def test_a_finished_run_is_read_back(finished, mixed_pack, tracking):
    result, _ = finished
    again = pretrain(mixed_pack, dataclasses.replace(CONFIG, log_every=4), result.run_folder.parent, tracking)
    assert again == dataclasses.replace(result, is_reused=True)


def test_a_run_that_ray_killed_for_memory_says_so_first(finished, mixed_pack, tmp_path, monkeypatch, tracking):
    def killed(self):
        shutil.copytree(newest_checkpoint(whole.run_folder), folder / "checkpoint_step_00000005")
        raise OutOfMemoryError(KILLED)

    whole, _ = finished
    folder = tmp_path / "runs" / whole.run_key
    monkeypatch.setattr(TorchTrainer, "fit", killed)
    with pytest.raises(PretrainError) as stopped:
        pretrain(mixed_pack, CONFIG, tmp_path / "runs", tracking)
    text = str(stopped.value)
    assert text.startswith(WANTED)
    assert "fewer workers" in text
    assert "continues from its newest checkpoint, checkpoint_step_00000005" in text
    assert "RAY_" not in text


def test_a_run_that_lost_its_pixels_continues_to_the_same_loss(finished, mixed_pack, tmp_path, monkeypatch, tracking):
    whole, _ = finished
    calls = 0
    read = Pack.read

    def fail_once(self, rows):
        nonlocal calls
        if len(rows) == 8:  # a minibatch, no picture
            calls += 1
        if calls == 9:
            calls += 1
            raise OSError("the file server went away")
        return read(self, rows)

    monkeypatch.setattr(Pack, "read", fail_once)
    with pytest.raises(
        PretrainError, match=r"the file server went away\. .* continues from .* checkpoint_step_00000005"
    ):
        pretrain(mixed_pack, CONFIG, tmp_path / "runs", tracking, evaluate=spread_of_weights())
    folder = tmp_path / "runs" / whole.run_key
    assert read_live_history(folder)[-1]["step"] == 6
    assert not (folder / "result.json").exists()

    resumed = pretrain(mixed_pack, CONFIG, tmp_path / "runs", tracking, evaluate=spread_of_weights())
    assert [row["step"] for row in history(folder)] == [row["step"] for row in history(whole.run_folder)]
    for name in ("loss", "mse", "fourier", "learning_rate", "grad_norm"):
        np.testing.assert_array_equal(
            [row[name] for row in history(folder)], [row[name] for row in history(whole.run_folder)]
        )
    assert resumed.model_id == whole.model_id
    assert resumed.evaluations == whole.evaluations
    for one, other in zip(read_seen(folder), read_seen(whole.run_folder), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [step for step, _ in metric_history(tracking, resumed.run_id, "loss")] == [3, 5, 6, 9, 10, 12]


def test_a_token_budget_changes_the_minibatches_and_not_the_crops(mixed_pack, tmp_path, tracking):
    config = dataclasses.replace(CONFIG, steps=None, epochs=2, minibatch_tokens=300, evaluate_every=None)
    result = pretrain(mixed_pack, config, tmp_path / "runs", tracking)
    seen = read_seen(result.run_folder)
    assert result.steps == len(seen) > 9
    tokens = 16 * np.array([2, 5, 3])
    assert all(tokens[rows % 3].sum() <= 300 for rows in seen)
    assert np.bincount(np.concatenate(seen), minlength=36).tolist() == [2] * 36


@pytest.mark.parametrize("crops_are", ["of one epoch", "of many"])
def test_numbers_that_are_not_finite_stop_the_run_and_name_the_crops(
    mixed_pack, tmp_path, monkeypatch, crops_are, tracking
):
    """One crop blows up: its step is found although it lies inside a window, and the checkpoint before it stays."""
    blown, at_step = {}, 8 if crops_are == "of one epoch" else 4
    order = np.concatenate([each.rows for each in minibatches(36, 0, 8, end=96)])
    import cytolake.train.loop as loop

    original = loop.read_minibatches

    def blow_up(pack, settings):
        for minibatch in original(pack, settings):
            if minibatch.whole.first == 8 * (at_step - 1):
                blown["rows"] = minibatch.whole.rows
                minibatch.views[0].crops.pixels[3] = float("nan")
            yield minibatch

    monkeypatch.setattr(loop, "read_minibatches", blow_up)
    with pytest.raises(PretrainError, match=rf"step {at_step}: the loss is nan.* 8 crops .* stopped\.json"):
        pretrain(mixed_pack, CONFIG, tmp_path / "runs", tracking)
    (folder,) = (tmp_path / "runs").iterdir()
    stopped = json.loads((folder / "stopped.json").read_text())
    assert stopped["step"] == at_step
    assert stopped["crop_ids"] == [f"crop{row}" for row in order[8 * (at_step - 1) : 8 * at_step]]
    newest = newest_checkpoint(folder)
    assert (newest.name if newest else None) == ("checkpoint_step_00000005" if at_step == 8 else None)
    monkeypatch.setattr(loop, "read_minibatches", original)  # repaired: the same command continues
    assert pretrain(mixed_pack, CONFIG, tmp_path / "runs", tracking).steps == 12


def test_a_damaged_shard_is_named(make_pack, tmp_path, tracking):
    pack = make_pack(36)
    shard = next(path for path in sorted(pack.rglob("c/*/0/0/0")) if path.is_file())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(PretrainError, match=str(shard.relative_to(pack).parts[0])):
        pretrain(pack, dataclasses.replace(CONFIG, evaluate_every=None, max_failures=0), tmp_path / "runs", tracking)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray Data sets its own deprecated switches
def test_two_ray_workers_learn_what_one_process_learns_even_when_one_is_killed(
    mixed_pack, tmp_path, local_ray, tracking
):
    import os
    import signal

    import psutil

    config = dataclasses.replace(CONFIG, workers=2, checkpoint_every=2, evaluate_every=20, log_every=1)
    # Drop-path draws by worker, so it differs between one worker and two.
    config = dataclasses.replace(config, steps=60, model=dataclasses.replace(MODEL, drop_path=0.0))
    alone = pretrain(mixed_pack, dataclasses.replace(config, workers=0), tmp_path / "alone", tracking)
    killed: list[int] = []

    def kill_one_worker(what: str, done: int, total: int) -> None:
        if not killed and 4 * 8 <= done < total:
            children = psutil.Process().children(recursive=True)
            workers = [each for each in children if each.name().startswith("ray::RayTrainWo")]
            if workers:
                killed.append(workers[0].pid)
                os.kill(workers[0].pid, signal.SIGKILL)

    shared = pretrain(mixed_pack, config, tmp_path / "shared", tracking, kill_one_worker, evaluate=spread_of_weights())
    assert killed
    rows, wanted = history(shared.run_folder), history(alone.run_folder)
    assert [row["step"] for row in rows] == list(range(1, 61))
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in wanted], atol=1e-4)
    for one, other in zip(read_seen(shared.run_folder), read_seen(alone.run_folder), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(shared.evaluations) == [0, 20, 40, 60]


def test_identity_of_a_run_is_what_it_learns_from_not_how_it_is_run():
    key = run_key("pack", CONFIG)
    for change in ({"workers": 2}, {"checkpoint_every": 1}, {"max_failures": 9}, {"threads": 2}, {"parallel": "fsdp"}):
        assert run_key("pack", dataclasses.replace(CONFIG, **change)) == key
    for change in ({"seed": 1}, {"learning_rate": 2e-3}, {"steps": 13}, {"model": dataclasses.replace(MODEL, heads=4)}):
        assert run_key("pack", dataclasses.replace(CONFIG, **change)) != key
    assert run_key("other", CONFIG) != key
    assert run_key("pack", dataclasses.replace(CONFIG, schedule="one_cycle")) != key


def test_a_run_that_was_begun_before_a_setting_existed_keeps_its_folder():
    assert "schedule" in dataclasses.asdict(CONFIG)
    assert "schedule" not in stored_fields(CONFIG)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ({"crop_size": 32}, {}, "crops of 16 px, the model takes 32 px"),
        ({}, {"minibatch_size": 64}, "36 crops, fewer than one minibatch of 64"),
        ({"architecture": "mae_vit"}, {}, "wants exactly DNA, ER, RNA, AGP, Mito"),
        ({"channel_code": "order", "max_channels": 4}, {}, "5 channels.*at most 4"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused_before_anything_is_written(
    mixed_pack, tmp_path, model, change, message, tracking
):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **model), **change)
    with pytest.raises(ValueError, match=message):
        pretrain(mixed_pack, config, tmp_path / "runs", tracking)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "choose one of auto, bf16, fp32"),
        ({"optimiser": "sgd"}, "choose one of adamw, lion"),
        ({"parallel": "tp"}, "choose one of ddp, fsdp"),
        ({"steps": 0}, "expected 1 or more"),
        ({"learning_rate": 0.0}, "must be more than 0"),
        ({"evaluate_every": 7}, "a multiple of it"),
        ({"workers": 2, "min_workers": 3}, "expected 1 to workers"),
        (
            {"workers": 4, "min_workers": 3, "objective": ObjectiveConfig(mae=MaeConfig(contrastive_weight=0.1))},
            "cannot be shared equally by 3 workers",
        ),
    ],
)
def test_a_config_that_cannot_train_is_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("is_local", [True, False])
def test_the_untrained_encoder_is_evaluated_while_workers_start_and_before_a_training_of_this_process(
    tmp_path, is_local
):
    starting = threading.Event()
    evaluated: list[tuple[Path, bool]] = []

    def evaluate(encoder: Path) -> dict[str, float]:
        evaluated.append((encoder, starting.wait(0 if is_local else 60)))
        return {"best_block": 0.5}

    settings = SimpleNamespace(run_folder=str(tmp_path), is_local=is_local, evaluate=evaluate)
    for _ in range(2):  # the second run finds what the first has measured
        with _evaluating_untrained(settings):
            starting.set()
    assert evaluated == [(tmp_path / UNTRAINED_FILE, not is_local)]
    assert evaluated_step(tmp_path, 0) == {"best_block": 0.5}
