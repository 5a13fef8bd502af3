"""Blocks of different widths, from embedding to probes, files, the registry and serving."""

from __future__ import annotations

import anndata
import numpy as np
import pyarrow as pa
import pytest
from tests.embed.small_screen import CHANNELS, SIZE, SmallScreen, make_small_screen

from cytolake.benchmark.cross_validation import probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, ProbeConfig, probe_key
from cytolake.benchmark.pinned_probe import PinnedCrops, TrainingProbe
from cytolake.benchmark.probe_data import read_probe_data
from cytolake.catalog.representations import read_vectors
from cytolake.embed import extract
from cytolake.embed.crop_vectors import EmbedCrops, pooled_vectors
from cytolake.embed.extract import EmbedConfig, embed_pack
from cytolake.exchange.export import export_anndata, representations_of
from cytolake.models import collate, load_encoder
from cytolake.qc.detector.encoders import EncoderFeatures
from cytolake.serving.served_model import load_served_model
from cytolake.tracking import ModelCard, TrackingConfig, promote, resolve_alias

WIDTHS = (64, 128, 256, 512, 512)
PROBE = ProbeConfig(seeds=(0,), regularisation=(0.1,))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallScreen:
    return make_small_screen(tmp_path_factory.mktemp("resnet"), n_plates=2, crops_per_well=2, architecture="resnet")


@pytest.fixture(scope="module")
def rows(small: SmallScreen, module_ray_in_process: None) -> list[dict[str, object]]:
    """Embedded by a job that a first one left after one crop of one width."""
    first = list(extract._sources(small.catalog, small.pack, {"trained": small.checkpoints["trained"]}, ""))[2]
    actor = EmbedCrops(str(small.pack.path), {"trained": first.checkpoint}, None, 1, False)
    extract._append(small.catalog, small.pack, [first], actor(pa.table({"row": np.asarray([4])})))
    return embed_pack(small.catalog, small.pack, small.checkpoints, EmbedConfig(minibatch_size=8, actors=1))


def test_every_stage_and_the_pooled_vector_are_stored_with_their_own_width(small, rows):
    found = {(row["kind"], row["block"], row["pooling"]): row["dim"] for row in rows}
    wanted = {(kind, block, "mean"): dim for kind in ("trained", "untrained") for block, dim in enumerate(WIDTHS)}
    assert {place: dim for place, dim in found.items() if place[0] != "pixel_statistics"} == wanted
    stored = small.catalog.dataset("embeddings").count_rows()
    assert stored == small.pack.n_crops * len(rows)
    images = small.pack.read(np.arange(small.pack.n_crops))
    crop_ids = small.pack.index["crop_id"].to_pylist()
    for kind in ("trained", "untrained"):
        encoder = load_encoder(small.checkpoints[kind])
        batch = collate(images, [encoder.config.channel_indices(CHANNELS)] * len(images))
        blocks = pooled_vectors(encoder, batch, ("mean",))["mean"]
        for row in rows:
            if row["kind"] == kind:
                vectors = read_vectors(small.catalog, row["representation_id"], crop_ids)
                np.testing.assert_allclose(vectors, blocks[row["block"]], rtol=1e-4, atol=1e-5)
    profiles = small.catalog.table("profiles", where="representation_id = ?", parameters=[rows[0]["representation_id"]])
    assert len(profiles["profile"][0]) == 64


def test_every_block_is_probed_and_while_it_trains_too(small, rows):
    ids = {row["block"]: row["representation_id"] for row in rows if row["kind"] == "trained"}
    data = read_probe_data(small.catalog, ids[0], "perturbation", include_controls=False)
    key = probe_key(data, PROBE)
    stored = {}
    for block, each in ids.items():
        vectors = read_vectors(small.catalog, each, data.crop_ids)
        stored[f"block_{block}"] = probe_representation(vectors, each, data, PROBE, key).summary[CROP_METRIC].value
    probe = TrainingProbe(PinnedCrops(small.pack.path, small.pack.rows_of(data.crop_ids), data), PROBE)
    assert probe(small.checkpoints["trained"]) == pytest.approx({**stored, "best_block": max(stored.values())})


def test_blocks_of_all_widths_are_exported_in_one_file(small, rows, tmp_path):
    model = next(row["model_id"] for row in rows if row["kind"] == "trained")
    path = export_anndata(small.catalog, representations_of(small.catalog, model), tmp_path / "all.h5ad", level="crop")
    shapes = {key: matrix.shape[1] for key, matrix in anndata.read_h5ad(path).obsm.items()}
    assert shapes == {f"block_{block}_mean": width for block, width in enumerate(WIDTHS)}


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.parametrize("block", [1, 4])
def test_serving_and_mlflow_give_the_stored_vectors_of_a_promoted_stage(small, rows, tmp_path, block):
    row = next(row for row in rows if (row["kind"], row["block"]) == ("trained", block))
    card = ModelCard(
        representation_id=row["representation_id"], model_id=row["model_id"], architecture="resnet", channels=CHANNELS,
        crop_size=SIZE, block=block, pooling="mean", dim=WIDTHS[block], pack_id="pack0", curation_id="c",
        table_versions={}, run_id="", benchmark="linear_probe", label="perturbation", split="plate",
        metric="balanced_accuracy", score=0.5, ci_low=0.4, ci_high=0.6,
    )  # fmt: skip
    tracking = TrackingConfig().at(tmp_path)
    promoted = promote(tracking, card, row["checkpoint"])
    champion = load_served_model(resolve_alias(tracking), "cpu")
    images = small.pack.read(np.arange(6))
    served = champion.embed(list(images), [champion.channel_indices(CHANNELS)] * 6)
    stored = read_vectors(small.catalog, row["representation_id"], small.pack.index["crop_id"].to_pylist()[:6])
    np.testing.assert_allclose(served, stored, rtol=1e-4, atol=1e-5)
    assert champion.tokens_of(2) == 1 + (SIZE // 8) ** 2

    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(promoted.folder))
    np.testing.assert_allclose(loaded.predict(np.stack(images).astype(np.float32)), stored, rtol=1e-4, atol=1e-5)


def test_a_detector_of_artefacts_looks_through_a_stage(small):
    features = EncoderFeatures(small.checkpoints["trained"], block=1)
    assert len(features.names) == 128
