"""The recipe for natural images, from scikit-learn's digits as PNG in folders of classes to a study's page."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from tests.ray_in_process import ray_in_process

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.pipeline import stages
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.overrides import apply_overrides
from cytolake.recipes import build_recipe

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

SMALL = (
    "ingest.crop_size=16",
    "pretrain.model.channels=[Gray]",
    "pretrain.model.crop_size=16",
    "pretrain.steps=2",
    "pretrain.minibatch_size=16",
    "pretrain.workers=0",
    "pretrain.threads=1",
    "pretrain.precision=fp32",
    "pretrain.objective.name=moco_v2_plus",
    "pretrain.objective.moco_v2_plus.queue_size=32",
    "probe.seeds=[0]",
    "probe.regularisation=[0.1]",
    "embed.actors=1",
    "study.objectives=[simsiam]",
    "study.knobs=[contrast]",
    "study.strengths=[0.0, 0.5, 1.0]",
    "study.seeds=[0]",
    "study.split_seeds=[0]",
    "study.concurrent=1",
)
CLASSES = ("three", "four", "five")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PipelineConfig:
    root = tmp_path_factory.mktemp("natural")
    digits = load_digits()
    for label, name in enumerate(CLASSES, start=3):
        folder = root / "screens" / "images" / name
        folder.mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.target == label][:24]):
            grey = Image.fromarray((image * 15.9).astype(np.uint8)).resize((16, 16), Image.Resampling.BILINEAR)
            grey.save(folder / f"{i:03d}.png")
    settings = (*SMALL, f"screens.root={root / 'screens'}")
    return dataclasses.replace(apply_overrides(build_recipe("natural_images"), settings), root=str(root / "lake"))


def run(stage, config: PipelineConfig) -> str:
    text = io.StringIO()
    with ray_in_process():
        stage(config, Console(file=text, width=160))
    return text.getvalue()


@pytest.fixture(scope="module")
def catalog(config: PipelineConfig) -> Catalog:
    for stage in (stages.ingest, stages.curate):
        run(stage, config)
    return cytolake.catalog.open(config.root)


@pytest.fixture(scope="module")
def probed(config: PipelineConfig, catalog: Catalog) -> Catalog:
    for stage in (stages.pretrain, stages.embed, stages.probe):
        run(stage, config)
    return catalog


def test_every_image_is_a_crop_of_its_class_whatever_quality_control_says(catalog):
    wells = catalog.table("wells").to_pylist()
    assert len(wells) == 24 * len(CLASSES)
    by_plate = {plate: [well["perturbation"] for well in wells if well["plate"] == plate] for plate in _plates(wells)}
    assert {plate: {name: labels.count(name) for name in CLASSES} for plate, labels in by_plate.items()} == {
        f"part_{i}": dict.fromkeys(CLASSES, 6) for i in range(1, 5)
    }
    curations = catalog.table("curations")
    assert curations.num_rows == len(wells)
    assert curations["is_kept"].to_pylist() == [True] * len(wells)


@pytest.mark.slow
def test_blocks_of_the_resnet_are_probed_on_held_out_images(probed):
    rows = {row["representation_id"]: row for row in probed.table("representations").to_pylist()}
    assert {row["dim"] for row in rows.values() if row["kind"] == "trained"} == {64, 128, 256, 512}
    scores = probed.table("scores", where="seed = -1 and benchmark = 'linear_probe'").to_pylist()
    assert {score["representation_id"] for score in scores} == set(rows)
    assert all(np.isfinite(score["value"]) for score in scores)


@pytest.mark.slow
def test_a_study_trains_and_probes_on_them(config, probed):
    printed = run(stages.study, config)
    assert "3 trainings" in printed
    page = Path(printed.split("page ")[-1].strip().replace("\n", ""))
    assert "simsiam" in page.read_text(encoding="utf-8")


def _plates(wells: list[dict[str, object]]) -> list[str]:
    return sorted({str(well["plate"]) for well in wells})
