"""One small simulated screen that went through the whole pipeline: what tests of finished catalogs read.

Three plates of eleven wells, five channels, two crops of each of 66 sites; genes of two pathways, a compound at two
doses, negative and positive controls; an encoder of two blocks trained for four steps. Everything that a user has after
`cytolake pipeline` and `cytolake benchmark` is there: verdicts, a curation and its pack, a run with checkpoints,
representations of all blocks, profiles, scores, a registered champion, the pages under `report/`.

The fixture `golden_lake` builds it once for all processes of a test run and fails where a test changed it; a test that
writes takes `golden_copy`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import io
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from tests.ray_in_process import ray_in_process

SETTINGS = (
    "screens.simulate.screen=golden",
    "screens.simulate.n_plates=3",
    "screens.simulate.n_batches=3",
    "screens.simulate.n_pathways=2",
    "screens.simulate.genes_per_pathway=2",
    "screens.simulate.guides_per_gene=1",
    "screens.simulate.n_compounds=1",
    "screens.simulate.doses=[1.0, 10.0]",
    "screens.simulate.n_negative_controls=4",
    "screens.simulate.n_positive_controls=1",
    "screens.simulate.sites_per_well=2",
    "screens.simulate.site_size_px=128",
    "screens.simulate.artefact_share=0.1",
    "pretrain.model.width=24",
    "pretrain.model.depth=2",
    "pretrain.objective.mae.decoder_width=24",
    "pretrain.workers=0",
    "pretrain.threads=1",
    "pretrain.steps=4",
    "pretrain.minibatch_size=16",
    "pretrain.learning_rate=1e-3",
    "pretrain.objective.mae.contrastive_weight=0.3",
    "pretrain.checkpoint_every=2",
    "pretrain.evaluate_every=2",
    "training_probe.n_crops=80",
    "probe.regularisation=[0.1]",
    "probe.seeds=[0, 1]",
    "promote_without_gain=four steps train nothing",
    "benchmark.tasks=[[perturbation, plate], [plate, well]]",
    "benchmark.profiles.tasks=relations,consistency,magnitude,replicates,percent_replicating,activity,leakage,dose",
    "benchmark.profiles.draws=19",
    "benchmark.profiles.seeds=0",
    "label_curve.train.simulated_per_kind=2",
    "label_curve.curve.labels_per_class=1",
    "label_curve.curve.seeds=[0, 1]",
)
"""Changes to the recipe `demo`."""

FINISHED = "finished"


def golden_config(root: Path, *changes: str, screens: Path | None = None):
    """The recipe of the lake at a root.

    Args:
        root: The lake, or a copy of it.
        changes: More assignments such as `pretrain.seed=3`.
        screens: The folder of the plates, where they are there and not simulated: those of the lake for a copy of it.
    """
    from cytolake.pipeline.config import ScreensConfig
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.recipes import build_recipe
    from cytolake.screens.sources import ScreenSource

    config = dataclasses.replace(apply_overrides(build_recipe("demo"), (*SETTINGS, *changes)), root=str(root))
    if screens is None:
        return config
    name = config.screens.simulate.screen
    source = ScreenSource(screen=name, path=str(screens / name), layout="ome-zarr")
    return dataclasses.replace(config, screens=ScreensConfig(root=str(screens), sources=(source,)))


def build_golden_lake(root: Path) -> str:
    """Run pipeline and benchmark; returns what they print."""
    from cytolake.pipeline import stages

    printed = io.StringIO()
    console = Console(file=printed, width=200)
    config = golden_config(root)
    with ray_in_process():
        stages.pipeline(config, console)
        stages.benchmark(config, console)
    return printed.getvalue()


def shared_golden_lake(folder: Path) -> Path:
    """The lake in a folder that processes share: whichever comes first builds it, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "golden"
    with (folder / "golden.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / FINISHED).exists():
            shutil.rmtree(root, ignore_errors=True)
            (folder / "golden.txt").write_text(build_golden_lake(root), encoding="utf-8")
            (folder / FINISHED).touch()
    return root


@contextmanager
def unchanged(root: Path) -> Iterator[None]:
    """Raises AssertionError at its end where a file under the root came, went or changed."""
    before = _files(root)
    yield
    after = _files(root)
    changed = sorted({path for path, _ in before.items() ^ after.items()})
    assert not changed, f"a test wrote into the golden lake, which all tests share; it needs golden_copy: {changed[:8]}"


def copy_golden_lake(golden: Path, root: Path) -> Path:
    """A copy that a test may write to, without the plates: the tables name the images where they are.

    MLflow's database names its artefacts by absolute paths, so these are rewritten.
    """
    shutil.copytree(golden, root, ignore=shutil.ignore_patterns("screens"))
    for database in root.rglob("*.db"):
        with closing(sqlite3.connect(database)) as connection, connection:
            tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
            for (table,) in tables:
                for _, column, kind, *_ in connection.execute(f'pragma table_info("{table}")').fetchall():
                    if kind.upper().startswith(("VARCHAR", "TEXT")):
                        connection.execute(
                            f'update "{table}" set "{column}" = replace("{column}", ?, ?) where instr("{column}", ?)',
                            (str(golden), str(root), str(golden)),
                        )
    return root


def _files(root: Path) -> dict[Path, int]:
    """Of each file, a checksum: some are written again with the same content."""
    return {path: zlib.crc32(path.read_bytes()) for path in root.rglob("*") if path.is_file()}
