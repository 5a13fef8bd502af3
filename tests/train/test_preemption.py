"""Preemption of a machine, as of spot machines: one of a cluster's two nodes is drained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cytolake.models import ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.packs.sampler import minibatches
from cytolake.tracking import TrackingConfig
from cytolake.train.checkpoint import newest_checkpoint
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import pretrain
from cytolake.train.seen import read_seen

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")
CONFIG = PretrainConfig(
    model=ModelConfig(channels=STAINS, crop_size=16, patch_size=4, width=16, depth=2, heads=2),
    objective=ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)),
    steps=1200, minibatch_size=8, workers=2, min_workers=1, threads=1, precision="fp32", log_every=10,
    checkpoint_every=100_000, record_ids=True, use_gpu=False,
)  # fmt: skip
DRAINED_AFTER, SECONDS_TO_LEAVE = 50, 4


@pytest.mark.slow
def test_a_preempted_machine_costs_no_step_that_was_done_before(make_pack, tmp_path):
    pack = make_pack(32, (STAINS[:2], STAINS))
    subprocess.run(
        [sys.executable, __file__, pack, tmp_path],
        check=True,
        timeout=900,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"},
    )
    at_notice, resumed_from = (int(each) for each in (tmp_path / "steps").read_text().split())
    assert DRAINED_AFTER <= at_notice <= resumed_from < CONFIG.steps  # without the notice it would begin at 0
    (run_folder,) = (tmp_path / "runs").iterdir()
    last = newest_checkpoint(run_folder)
    assert last is not None
    assert json.loads((last / "state.json").read_text())["workers"] == 1
    wanted = [each.rows for each in minibatches(32, CONFIG.seed, 8, end=8 * CONFIG.steps)]
    seen = read_seen(run_folder)
    assert len(seen) == CONFIG.steps
    for one, other in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(np.sort(one), np.sort(other))


def train_and_drain(pack: str, folder: Path) -> None:
    """Train on two nodes, drain one of them, and record the steps at the notice and at the restart."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 1024**2})
    cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)
    ray.init(cluster.address)
    head = ray.get_runtime_context().get_node_id()
    (other,) = (node["NodeID"] for node in ray.nodes() if node["NodeID"] != head)
    recorded: list[int] = []

    def drain(what: str, done: int, total: int) -> None:
        step = done // CONFIG.minibatch_size
        checkpoint = next((each for each in (folder / "runs").iterdir() if each.is_dir()), None)
        newest = newest_checkpoint(checkpoint) if checkpoint else None
        if not recorded and step >= DRAINED_AFTER:
            recorded.append(step)
            command = ["drain-node", "--address", cluster.address, "--node-id", other]
            command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
            command += ["--deadline-remaining-seconds", str(SECONDS_TO_LEAVE)]
            subprocess.run([Path(sys.executable).with_name("ray"), *command], check=True)
        elif len(recorded) == 1 and newest is not None:
            recorded.append(int(newest.name.rsplit("_", 1)[1]))

    pretrain(pack, CONFIG, folder / "runs", TrackingConfig(), drain)
    (folder / "steps").write_text(" ".join(map(str, recorded)))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    train_and_drain(sys.argv[1], Path(sys.argv[2]))
