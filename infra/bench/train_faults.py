"""Training workers, whole drivers and whole nodes are killed with SIGKILL at random steps; then it is counted which
crops were seen, and the losses are compared with those of a run never disturbed. Called by `make faults-train`.

1. Workers: a run of 1, of 2 and of 4 workers, some of them killed; Ray Train replaces them.
2. Drivers: a run is killed as a whole, with its local Ray, and goes on with another number of workers, several times.
3. Nodes: two Ray nodes with a worker each, besides a head node, share the storage. Each has a network namespace of its
   own where this machine allows that (root, and the `ip` command), else only processes of its own. One is killed with
   all it runs. By recipe the run then shrinks to the other node (`min_workers=1`), or waits for a new one.

Every worker records which crops each step saw. They must be those of the undisturbed run, step by step, so no crop of
an epoch is missing and none comes twice; and every step's loss must equal the undisturbed one's.

It is one file because the three faults share how runs are started, killed and compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from inputs.simulated_pack import STAINS, write_pack
from rich.console import Console
from rich.table import Table

import cytolake
from cytolake.models import ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.packs.sampler import Rows
from cytolake.tracking import TrackingConfig
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import pretrain
from cytolake.train.run_folder import read_live_history
from cytolake.train.seen import read_seen

KILLS_MIN, NODE_KILLS_MIN = 10, 3
WORKER_KILLS = {1: 3, 2: 3, 4: 2}
"""Workers: kills during one run of so many."""
DRIVER_WORKERS = (1, 2, 4, 2)
"""Workers of each start of the run whose driver is killed; the last one finishes."""
NODE_RECIPES = ("shrink", "wait", "shrink")
N_CROPS, MINIBATCH, STEPS = 300, 24, 110
LOSS_TOLERANCE = 1e-3
"""Relative. Sums over workers are rounded in another order than in one process, and 110 steps carry that on."""
DEADLINE_S = 300

CONFIG = PretrainConfig(
    model=ModelConfig(channels=STAINS, crop_size=32, patch_size=4, width=96, depth=4, heads=4),
    objective=ObjectiveConfig(mae=MaeConfig(decoder_width=48, decoder_depth=1, decoder_heads=4)),
    steps=STEPS,
    minibatch_size=MINIBATCH,
    workers=0,
    threads=1,
    precision="fp32",
    log_every=1,
    checkpoint_every=4,
    max_failures=20,
    record_ids=True,
    use_gpu=False,
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
    "PYTHONPATH": os.pathsep.join((str(Path(cytolake.__file__).parents[1]), str(Path(__file__).parent))),
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}


@dataclass
class Outcome:
    """What became of one disturbed run."""

    name: str
    kills: list[int] = field(default_factory=list)
    """Steps that were done when something was killed."""
    node_kills: int = 0
    seconds: float = 0.0
    missing: int = 0
    """Crops that a step of the undisturbed run saw, and the same step of this one did not."""
    repeated: int = 0
    """Crops that a step saw without that, or more than once."""
    loss_difference: float = 0.0
    """Largest of any step, relative."""


def drive(root: Path, workers: int, min_workers: int | None) -> None:
    """The process of one driver: train, or go on."""
    from cytolake.pipeline.session import RayConfig, ray_session

    config = dataclasses.replace(CONFIG, workers=workers, min_workers=min_workers)
    with ray_session(RayConfig(cpus=max(2, workers), object_store_mb=100)):
        pretrain(root.parent / "pack", config, root / "runs", TrackingConfig())


def start(root: Path, workers: int, min_workers: int | None = None, address: str = "", prefix: tuple[str, ...] = ()):
    root.mkdir(exist_ok=True)
    log = (root / "driver.log").open("a")
    arguments = [str(root), str(workers), "" if min_workers is None else str(min_workers)]
    return subprocess.Popen(
        [*prefix, sys.executable, __file__, *arguments],
        env=ENVIRONMENT | ({"RAY_ADDRESS": address} if address else {}),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def steps_done(root: Path) -> int:
    folders = [each for each in (root / "runs").glob("*") if each.is_dir()]
    rows = read_live_history(folders[0]) if folders else []
    return int(rows[-1]["step"]) if rows else 0


def wait_for(what: str, has_come: Callable[[], bool], driver: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not has_come():
        if driver.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{root.name}: {what} did not come; see the end of its log:\n{log_of(root)}")
        time.sleep(0.02)


def finish(driver: subprocess.Popen[bytes], root: Path) -> None:
    if driver.wait(timeout=DEADLINE_S):
        raise RuntimeError(f"{root.name}: the run failed:\n{log_of(root)}")


def log_of(root: Path) -> str:
    return (root / "driver.log").read_text(errors="replace")[-3000:]


def random_steps(rng: np.random.Generator, n: int) -> list[int]:
    """Ascending, with room to get going again between two of them and to be killed before the end."""
    width = (STEPS - 20) // n
    return [int(5 + i * width + rng.integers(0, width - 5)) for i in range(n)]


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(driver.pid).children(recursive=True)
        return [each for each in found if "RayTrainWorker" in _name(each)]
    return []


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_workers(folder: Path, workers: int, n_kills: int, rng: np.random.Generator) -> Outcome:
    root, started = folder / f"workers_{workers}", time.monotonic()
    outcome = Outcome(f"{workers} worker{'s' * (workers > 1)}, one killed")
    driver = start(root, workers)
    for step in random_steps(rng, n_kills):
        wait_for(f"step {step}", lambda step=step: steps_done(root) >= step and bool(workers_of(driver)), driver, root)
        rng.choice(np.array(workers_of(driver), object)).kill()
        outcome.kills.append(steps_done(root))
    finish(driver, root)
    outcome.seconds = time.monotonic() - started
    return outcome


def kill_drivers(folder: Path, rng: np.random.Generator) -> Outcome:
    root, started = folder / "drivers", time.monotonic()
    outcome = Outcome(f"driver and its Ray killed; {', '.join(map(str, DRIVER_WORKERS))} workers")
    for workers, step in zip(DRIVER_WORKERS, random_steps(rng, len(DRIVER_WORKERS) - 1), strict=False):
        driver = start(root, workers)
        wait_for(f"step {step}", lambda step=step: steps_done(root) >= step, driver, root)
        outcome.kills.append(steps_done(root))
        family = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGKILL)
        for each in family:  # Ray's services are sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        driver.wait()
    finish(start(root, DRIVER_WORKERS[-1]), root)
    outcome.seconds = time.monotonic() - started
    return outcome


class Nodes:
    """A Ray cluster of a head without workers and any number of nodes of one worker each; ends with the block."""

    def __init__(self, folder: Path, number: int) -> None:
        # A name for each cluster: the kernel takes the interfaces of a deleted network away some time later.
        self._folder, self._tag = folder, f"cyt{os.getpid() % 10000}c{number}"
        self._started = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.has_networks = self._can_make_networks()
        self.address = ""

    def __enter__(self) -> Nodes:
        if self.has_networks:
            self._ip("link", "add", self._tag, "type", "bridge")
            self._ip("link", "set", self._tag, "up")
        head = self.add(is_head=True)
        self.address = f"{self._host(head)}:6390"
        return self

    def __exit__(self, *error: object) -> None:
        for node in list(self._processes):
            self.kill(node)
        if self.has_networks:
            self._ip("link", "del", self._tag)

    def add(self, *, is_head: bool = False) -> int:
        """Start a node; returns its number."""
        node = self._started
        self._started += 1
        sessions = self._folder / f"node{node}"
        sessions.mkdir()
        if self.has_networks:
            name, ours, theirs = f"{self._tag}n{node}", f"{self._tag}v{node}", f"{self._tag}w{node}"
            self._ip("netns", "add", name)
            self._ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
            self._ip("link", "set", ours, "master", self._tag, "up")
            self._ip("link", "set", theirs, "netns", name)
            for command in (
                ("link", "set", theirs, "name", "eth0"),
                ("addr", "add", f"{self._host(node)}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                self._ip("-n", name, *command)
        where = ["--head", "--port=6390", "--include-dashboard=false"] if is_head else [f"--address={self.address}"]
        if not self.has_networks and not is_head:
            where += ["--dashboard-agent-listen-port=0", "--metrics-export-port=0"]
        ray = str(Path(sys.executable).with_name("ray"))
        command = [
            ray, "start", "--block", *where, f"--node-ip-address={self._host(node)}", "--disable-usage-stats",
            f"--num-cpus={0 if is_head else 1}", f"--object-store-memory={100 * 1024**2}",
        ]  # fmt: skip
        if is_head:
            command.append(f"--temp-dir={self._sessions()}")
        log = (self._folder / f"node{node}.log").open("w")
        self._processes[node] = subprocess.Popen(
            [*self.prefix(node), *command],
            env=ENVIRONMENT | self._interface(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return node

    def prefix(self, node: int) -> tuple[str, ...]:
        """Before a command that is to run on a node: in its network, with its own folder for Ray's sockets."""
        if not self.has_networks:
            return ()
        mount = f'mount --bind {self._folder / f"node{node}"} {self._sessions()} && exec "$@"'
        return ("ip", "netns", "exec", f"{self._tag}n{node}", "bash", "-c", mount, "bash")

    def kill(self, node: int) -> None:
        """Everything of a node at once, as if its power had gone."""
        process = self._processes.pop(node)
        if self.has_networks:
            for pid in self._ip("netns", "pids", f"{self._tag}n{node}").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        else:
            family = psutil.Process(process.pid).children(recursive=True)
            for each in (*family, psutil.Process(process.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        process.wait()
        if self.has_networks:
            self._ip("netns", "del", f"{self._tag}n{node}")

    def with_workers(self) -> list[int]:
        """Nodes that can have a worker."""
        return [node for node in self._processes if node != 0]

    def _host(self, node: int) -> str:
        return f"10.213.77.{node + 1}" if self.has_networks else "127.0.0.1"

    def _sessions(self) -> Path:
        path = Path("/tmp") / f"{self._tag}ray"  # sockets have no more than 107 characters of path
        path.mkdir(exist_ok=True)
        return path

    def _interface(self) -> dict[str, str]:
        return {"GLOO_SOCKET_IFNAME": "eth0"} if self.has_networks else {}

    def _can_make_networks(self) -> bool:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return False
        try:
            self._ip("link", "add", f"{self._tag}t", "type", "bridge")
            self._ip("link", "del", f"{self._tag}t")
            self._ip("netns", "add", f"{self._tag}t")
            self._ip("netns", "del", f"{self._tag}t")
        except subprocess.CalledProcessError:
            return False
        return True

    def _ip(self, *arguments: str) -> str:
        return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def kill_node(folder: Path, number: int, recipe: str, rng: np.random.Generator) -> Outcome:
    root, started = folder / f"node_{number}_{recipe}", time.monotonic()
    with Nodes(folder_for(folder, number), number) as nodes:
        kind = "a network each" if nodes.has_networks else "one network"
        outcome = Outcome(f"2 nodes ({kind}), one killed; the run {recipe}s")
        for _ in range(2):
            nodes.add()
        driver = start(root, 2, 1 if recipe == "shrink" else None, nodes.address, nodes.prefix(0))
        try:
            (step,) = random_steps(rng, 1)
            wait_for(f"step {step}", lambda: steps_done(root) >= step, driver, root)
            outcome.kills.append(steps_done(root))
            outcome.node_kills += 1
            nodes.kill(int(rng.choice(nodes.with_workers())))
            if recipe == "wait":
                time.sleep(15)
                nodes.add()
            finish(driver, root)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
    outcome.seconds = time.monotonic() - started
    return outcome


def folder_for(folder: Path, number: int) -> Path:
    path = folder / f"cluster_{number}"
    path.mkdir()
    return path


def compare(outcome: Outcome, root: Path, seen: list[Rows], losses: np.ndarray) -> None:
    """Fill in what a run lost, repeated and computed otherwise."""
    (run_folder,) = (each for each in (root / "runs").iterdir() if each.is_dir())
    found = read_seen(run_folder)
    found += [np.empty(0, np.int64)] * (len(seen) - len(found))
    for ours, wanted in zip(found, seen, strict=True):
        n_ours, n_wanted = np.bincount(ours, minlength=N_CROPS), np.bincount(wanted, minlength=N_CROPS)
        outcome.missing += int(np.maximum(n_wanted - n_ours, 0).sum())
        outcome.repeated += int(np.maximum(n_ours - n_wanted, 0).sum())
    rows = json.loads((run_folder / "history.json").read_text())
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        raise RuntimeError(f"{root.name}: its history has {len(rows)} rows; expected one for each of {STEPS} steps")
    ours = np.array([row["loss"] for row in rows])
    outcome.loss_difference = float(np.max(np.abs(ours - losses) / losses))


def outcomes(folder: Path, rng: np.random.Generator) -> Iterator[tuple[Outcome, Path]]:
    for workers, n_kills in WORKER_KILLS.items():
        yield kill_workers(folder, workers, n_kills, rng), folder / f"workers_{workers}"
    yield kill_drivers(folder, rng), folder / "drivers"
    for number, recipe in enumerate(NODE_RECIPES):
        yield kill_node(folder, number, recipe, rng), folder / f"node_{number}_{recipe}"


def main() -> int:
    console = Console(width=140)
    rng = np.random.default_rng(int(os.environ.get("CYTOLAKE_FAULTS_SEED", "0")))
    with tempfile.TemporaryDirectory(prefix="train-faults-") as temporary:
        folder = Path(temporary)
        write_pack(folder / "pack", N_CROPS, CONFIG.model.crop_size, (1, 5, 2, 3))
        drive(folder / "undisturbed", 0, None)
        (undisturbed,) = (each for each in (folder / "undisturbed" / "runs").iterdir() if each.is_dir())
        seen = read_seen(undisturbed)
        losses = np.array([row["loss"] for row in json.loads((undisturbed / "history.json").read_text())])
        in_epochs = np.bincount(np.concatenate(seen), minlength=N_CROPS)
        console.print(
            f"{STEPS} steps of {MINIBATCH} of {N_CROPS} crops, of 1 to 5 channels; each crop is seen "
            f"{in_epochs.min()} or {in_epochs.max()} times; the loss falls from {losses[0]:.3f} to {losses[-1]:.3f}"
        )
        if in_epochs.max() - in_epochs.min() > 1:
            raise RuntimeError("the undisturbed run does not see every crop equally often")
        shown = Table("run", "killed at step", "missing", "repeated", "largest loss difference", "seconds", box=None)
        done = []
        for outcome, root in outcomes(folder, rng):
            compare(outcome, root, seen, losses)
            done.append(outcome)
            console.print(f"  {outcome.name}: {outcome.kills}, {outcome.seconds:.0f} s", highlight=False)
            shown.add_row(
                outcome.name,
                " ".join(map(str, outcome.kills)),
                str(outcome.missing),
                str(outcome.repeated),
                f"{outcome.loss_difference:.1e}",
                f"{outcome.seconds:.0f}",
            )
        console.print(shown)
    nodes = sum(each.node_kills for each in done)
    kills = sum(len(each.kills) for each in done) - nodes
    missing, repeated = (sum(getattr(each, name) for each in done) for name in ("missing", "repeated"))
    apart = sum(each.loss_difference > LOSS_TOLERANCE for each in done)
    is_ok = missing + repeated + apart == 0 and kills >= KILLS_MIN and nodes >= NODE_KILLS_MIN
    print(
        f"faults-train: kills={kills} node_kills={nodes} missing={missing} repeated={repeated} losses_apart={apart} "
        f"figure={missing + repeated + apart} bar=0 {'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        drive(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3] else None)
    else:
        sys.exit(main())
