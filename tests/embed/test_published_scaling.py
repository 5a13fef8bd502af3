"""Published ChAda-ViT weights give their own features of plates of 8 and of 16 bits, whichever way crops reach them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.catalog.empty_catalog import empty_catalog
from tests.models.test_published_chada import DEPTH, HEADS, MOST, WIDTH, padded_cls, published_weights
from tests.packs.test_build import CONFIG, ingest, write_plate
from torch.nn import functional

from cytolake.catalog import Catalog
from cytolake.curation.curate import CurateConfig, curate
from cytolake.embed.crop_vectors import embed_rows
from cytolake.embed.extract import EmbedConfig, embed_pack
from cytolake.embed.pyfunc import ServedVectors
from cytolake.models import VisionTransformer, collate, load_encoder, save_encoder
from cytolake.models.published_chada import load_published_chada
from cytolake.packs.build import build_pack
from cytolake.packs.crop_batches import crop_batch
from cytolake.packs.pack import Pack
from cytolake.qc.detector.encoders import EncoderFeatures
from cytolake.serving.served_model import ServedModel

LAST = DEPTH - 1
RANGE = {"counts8": 255.0, "counts16": 65535.0}
ROUNDING = 1e-4
"""Of a vector of unit rms, in float32, after two blocks: some hundred operations, 2^-24 each, in sums of up to 500."""


@dataclass(frozen=True, slots=True)
class Published:
    catalog: Catalog
    weights: dict[str, torch.Tensor]
    checkpoint: Path
    packs: dict[str, Pack]
    """By kind of pixels. Crops of 8 and of 16 bits have as many channels: a pack of native pixels holds both in 16."""

    @property
    def encoder(self) -> VisionTransformer:
        return load_encoder(self.checkpoint)

    def wanted(self, crop_ids: list[str]) -> np.ndarray:
        """(N, D) cls tokens of the published forward on crops of [0, 1], before its last norm's gain."""
        range_of = {row["plate_id"]: RANGE[row["plate"]] for row in self.catalog.table("plates").to_pylist()}
        plate = {row["crop_id"]: row["plate_id"] for row in self.catalog.table("crops").to_pylist()}
        pixels = self.catalog.crop_pixels(crop_ids)
        images = [np.float32(image / range_of[plate[crop]]) for crop, image in zip(crop_ids, pixels, strict=True)]
        return padded_cls(self.weights, images, MOST).detach().numpy()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, module_ray_in_process: None) -> Published:
    folder = tmp_path_factory.mktemp("published")
    weights = published_weights() | {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    save_file(weights, folder / "model.safetensors")
    save_encoder(load_published_chada(folder / "model.safetensors", heads=HEADS), folder / "encoder.safetensors")
    catalog = empty_catalog(folder / "catalog")
    for name in RANGE:
        ingest(catalog, write_plate(folder / "screens", name))
    (folder / "any.yaml").write_text("where: x >= 0\n")
    curation = curate(catalog, CurateConfig(name="any", folder=str(folder)))
    packs = {
        kind: build_pack(catalog, curation.curation_id, replace(CONFIG, pixels=kind)) for kind in ("native", "uint8")
    }
    return Published(catalog, weights, folder / "encoder.safetensors", packs)


def test_embeddings_in_the_table_are_the_published_features(published):
    pack = published.packs["native"]
    rows = embed_pack(published.catalog, pack, {"trained": published.checkpoint}, EmbedConfig(actors=1))
    (last,) = (row for row in rows if (row["kind"], row["block"], row["pooling"]) == ("trained", LAST, "cls"))
    stored = published.catalog.table(
        "embeddings", where="representation_id = ?", parameters=[last["representation_id"]]
    )
    found = np.array(stored["embedding"].to_pylist())
    wanted = published.wanted(stored["crop_id"].to_pylist())
    assert len(found) == pack.n_crops
    np.testing.assert_allclose(found, wanted, atol=ROUNDING, rtol=0)
    cosine = functional.cosine_similarity(torch.tensor(found), torch.tensor(wanted).double(), dim=1)
    assert cosine.min() > 1 - 1e-6


@pytest.mark.parametrize("kind", ["native", "uint8"])
def test_crops_of_either_kind_of_pack_are_scaled_by_their_sources_type(published, kind):
    pack = published.packs[kind]
    rows = np.arange(pack.n_crops)
    found = embed_rows(published.encoder, pack, rows, "cls")[LAST]
    wanted = published.wanted(pack.index["crop_id"].to_pylist())
    if kind == "native":
        np.testing.assert_allclose(found, wanted, atol=ROUNDING, rtol=0)
    else:  # 16 bits in 8: half a step, 1 / 510 of the plate's range, of each pixel, and its ends are cut
        cosine = functional.cosine_similarity(torch.tensor(found), torch.tensor(wanted), dim=1)
        assert cosine.min() > 0.999
    assert set(pack.full_scale(rows)) == {255.0, 65535.0}
    assert crop_batch(pack, rows, published.encoder.config).full_scale == pack.full_scale(rows)


def test_crops_sent_to_a_service_and_read_from_their_sources_too(published):
    crop_ids = published.catalog.table("crops")["crop_id"].to_pylist()[::5]
    images = published.catalog.crop_pixels(crop_ids)
    assert {image.dtype.name for image in images} == {"uint8", "uint16"}
    card = SimpleNamespace(block=LAST, pooling="cls")
    champion = ServedModel(card=card, encoder=published.encoder, device="cpu", precision="fp32")
    for image in images:
        champion.check_pixels(image)
    found = champion.embed(images, [(0, 0)] * len(images))
    np.testing.assert_allclose(found, published.wanted(crop_ids), atol=ROUNDING, rtol=0)
    with pytest.raises(ValueError, match="found numbers of unknown range"):
        champion.check_pixels(np.float32(images[0]))


def test_the_registered_model_takes_fractions_and_refuses_counts_without_a_type(published):
    crop_ids = published.catalog.table("crops", where="plate = 'counts8'")["crop_id"].to_pylist()[:3]
    counts = np.stack(published.catalog.crop_pixels(crop_ids))
    model = ServedVectors.__new__(ServedVectors)
    model.card, model.encoder = SimpleNamespace(channels=("a", "b"), pooling="cls", block=LAST), published.encoder
    found = model.predict(np.float32(counts / 255))
    np.testing.assert_allclose(found, published.wanted(crop_ids), atol=ROUNDING, rtol=0)
    with pytest.raises(ValueError, match="found numbers of unknown range"):
        model.predict(counts.astype(np.float32))


def test_quality_features_of_it_are_of_counts_and_not_of_the_plates_own_range(published):
    """A window that is as large as the site: the features are those of the crop."""
    crop_ids = published.catalog.table("crops", where="plate = 'counts16'")["crop_id"].to_pylist()[:2]
    images = published.catalog.crop_pixels(crop_ids)
    features = EncoderFeatures(published.checkpoint, windows_per_side=1)
    found = features.measure(images, [("DNA", "ER")] * 2, scale=None)
    with torch.no_grad():
        for of_site, image in zip(found, images, strict=True):
            for of_channel, channel in zip(of_site, image, strict=True):
                batch = collate([np.float32(channel[None] / 65535)], [(0,)])
                alone = published.encoder.pooled_blocks(batch)["mean"][LAST, 0]
                np.testing.assert_allclose(of_channel, alone, atol=ROUNDING, rtol=0)


def test_an_encoder_saved_before_scalings_had_names_refuses_counts(published, tmp_path):
    """It would read counts of thousands where fractions were trained: cosines of .3 with the right vectors."""
    config = replace(published.encoder.config, input_scaling="as_is")
    assert '"standardise": false' in config.to_json()  # what such files have
    old = VisionTransformer(config)
    old.load_state_dict(published.encoder.state_dict())
    save_encoder(old, tmp_path / "old.safetensors")
    loaded = load_encoder(tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match=r"(?s)counts of up to .*load_published_chada and save them"):
        embed_rows(loaded, published.packs["native"], np.arange(3))


def test_a_pack_that_does_not_know_its_sources_types_is_refused_and_still_standardised(published, tmp_path):
    folder = shutil.copytree(published.packs["native"].path, tmp_path / "pack")
    described = json.loads((folder / "pack.json").read_text())
    del described["source_dtypes"]
    (folder / "pack.json").write_text(json.dumps(described))
    pack = Pack.open(folder)
    with pytest.raises(ValueError, match="make it again"):
        embed_rows(published.encoder, pack, np.arange(3))
    standardising = VisionTransformer(replace(published.encoder.config, input_scaling="standardise", noise_floor=0.8))
    assert np.isfinite(embed_rows(standardising, pack, np.arange(3))).all()
