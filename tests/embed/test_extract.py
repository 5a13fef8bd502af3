"""Embedding a small pack, with real encoders, tables and Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.embed.every_block import every_block
from tests.embed.small_screen import CHANNELS, SIZE, SmallScreen, make_small_screen
from tests.ray_in_process import ray_in_process

from cytolake.catalog.ids import representation_id
from cytolake.embed import extract
from cytolake.embed.crop_vectors import EmbedCrops, VectorGroup, groups_of
from cytolake.embed.extract import EmbedConfig, embed_pack
from cytolake.embed.pixel_statistics import VARIANTS, PixelStatistics
from cytolake.models import (
    POOLINGS,
    CheckpointError,
    ModelConfig,
    VisionTransformer,
    build_encoder,
    collate,
    load_encoder,
    save_encoder,
)
from cytolake.packs.pack import Pack

MAIN = "trained mean, cls of 0, 1"
"""Column of an actor's vectors of all blocks and poolings of one width."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> SmallScreen:
    """A pack of one- and two-channel crops; nothing embedded."""
    return make_small_screen(tmp_path_factory.mktemp("mixed"), n_plates=2, wells_each=1, mixed=True)


def vectors_of(small: SmallScreen, representation_id: str) -> np.ndarray:
    rows = small.catalog.table("embeddings", where="representation_id = ?", parameters=[representation_id]).to_pylist()
    by_crop = {row["crop_id"]: row["embedding"] for row in rows}
    assert len(by_crop) == len(rows)
    return np.asarray([by_crop[crop] for crop in small.pack.index["crop_id"].to_pylist()])


def test_an_actor_gives_what_the_encoder_gives_alone_for_each_crop(mixed):
    rows = np.asarray([5, 0, 3])
    actor = EmbedCrops(str(mixed.pack.path), {"trained": str(mixed.checkpoints["trained"])}, None, 1, False)
    batch = actor(pa.table({"row": rows}))
    found = np.asarray(batch[MAIN].to_pylist()).reshape(3, 2 * 2, 16)
    encoder = load_encoder(mixed.checkpoints["trained"])
    for i, row in enumerate(rows.tolist()):
        channels = encoder.config.channel_indices(mixed.pack.channels(row))
        alone = encoder.pooled_blocks(collate(mixed.pack.read([row]), [channels]))
        expected = np.concatenate([alone[pooling][:, 0].numpy() for pooling in POOLINGS])
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


def test_bf16_is_another_rounding_of_the_same_vectors(mixed):
    batches = [
        EmbedCrops(
            str(mixed.pack.path), {"trained": str(mixed.checkpoints["trained"])}, None, 1, False, precision=precision
        )(pa.table({"row": np.asarray([5, 0, 3])}))
        for precision in ("fp32", "bf16")
    ]
    fp32, bf16 = (np.asarray(batch[MAIN].to_pylist()).reshape(-1, 16) for batch in batches)
    assert 1e-5 < np.abs(fp32 - bf16).max() < 0.1
    assert ((fp32 * bf16).sum(axis=1) / np.linalg.norm(fp32, axis=1) / np.linalg.norm(bf16, axis=1)).min() > 0.999


@pytest.fixture(scope="module")
def embedded(mixed: SmallScreen, module_ray_in_process: None) -> tuple[SmallScreen, list[dict[str, object]]]:
    """The pack embedded by a job that a first one left after one crop of the trained encoder."""
    trained = next(extract._sources(mixed.catalog, mixed.pack, {"trained": mixed.checkpoints["trained"]}, "run0"))
    actor = EmbedCrops(str(mixed.pack.path), {"trained": trained.checkpoint}, None, 1, False)
    extract._append(mixed.catalog, mixed.pack, [trained], actor(pa.table({"row": np.asarray([4])})))
    reported: list[tuple[int, int]] = []
    config = EmbedConfig(minibatch_size=5, actors=1, megabytes_per_append=1)
    rows = embed_pack(
        mixed.catalog, mixed.pack, mixed.checkpoints, config, lambda _, done, total: reported.append((done, total)),
        run_id="run0",
    )  # fmt: skip
    assert reported[-1] == (mixed.pack.n_crops, mixed.pack.n_crops)
    return mixed, rows


def test_every_block_pooling_and_baseline_has_one_vector_for_each_crop(embedded):
    small, rows = embedded
    assert sorted((row["kind"], row["block"], row["pooling"]) for row in rows) == sorted(
        [("pixel_statistics", -1, form) for form in VARIANTS]
        + [(kind, block, pooling) for kind in ("trained", "untrained") for block in (0, 1) for pooling in POOLINGS]
    )
    for row in rows:
        vectors = vectors_of(small, row["representation_id"])
        assert vectors.shape == (small.pack.n_crops, row["dim"])
        assert np.isfinite(vectors).all()
    table = small.catalog.table("representations").to_pylist()
    assert {row["representation_id"] for row in table} == {row["representation_id"] for row in rows}
    assert {row["run_id"] for row in table if row["kind"] == "trained"} == {"run0"}


def test_stored_vectors_are_those_of_the_encoder_and_of_the_pixels(embedded):
    small, rows = embedded
    everything = np.arange(small.pack.n_crops)
    images = small.pack.read(everything)
    channels = [small.pack.channels(int(row)) for row in everything]
    for kind in ("trained", "untrained"):
        computed = every_block(load_encoder(small.checkpoints[kind]), images, channels)
        for row in rows:
            if row["kind"] == kind:
                place = POOLINGS.index(row["pooling"]) * 2 + row["block"]
                np.testing.assert_allclose(vectors_of(small, row["representation_id"]), computed[:, place], atol=1e-5)
    pixels = next(row for row in rows if row["kind"] == "pixel_statistics")
    expected = PixelStatistics(channels).measure(images, channels)
    np.testing.assert_allclose(vectors_of(small, pixels["representation_id"]), expected, rtol=1e-6)


def test_profiles_are_the_means_of_a_wells_crops(embedded):
    small, rows = embedded
    representation = rows[0]["representation_id"]
    vectors = vectors_of(small, representation)
    wells = np.asarray(small.pack.index["well_id"].to_pylist())
    profiles = small.catalog.table("profiles", where="representation_id = ?", parameters=[representation]).to_pylist()
    assert len(profiles) == len(set(wells.tolist()))
    for profile in profiles:
        here = wells == profile["well_id"]
        assert profile["n_crops"] == here.sum()
        np.testing.assert_allclose(profile["profile"], vectors[here].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_a_second_run_writes_nothing_and_needs_no_worker(embedded, monkeypatch):
    small, rows = embedded
    before = small.catalog.versions()
    monkeypatch.setattr(extract, "_embed", lambda *_: pytest.fail("embedded again"))
    again = embed_pack(small.catalog, small.pack, small.checkpoints, EmbedConfig())
    assert [row["representation_id"] for row in again] == [row["representation_id"] for row in rows]
    assert small.catalog.versions() == before


def test_channel_means_come_later_without_a_change_to_what_is_there(tmp_path):
    small = make_small_screen(tmp_path, n_plates=1, wells_each=1, crops_per_well=2)
    before = list(extract._sources(small.catalog, small.pack, small.checkpoints, ""))
    statistics = PixelStatistics([CHANNELS])
    paths = {kind: str(path) for kind, path in small.checkpoints.items()}
    whole = EmbedCrops(str(small.pack.path), paths, statistics, 1, False)(pa.table({"row": before[0].todo}))
    extract._append(small.catalog, small.pack, before, whole)
    config = EmbedConfig(minibatch_size=3, actors=1, channel_mean=True)
    with ray_in_process():
        rows = embed_pack(small.catalog, small.pack, small.checkpoints, config)
    ids = {row["representation_id"] for row in rows}
    assert ids > {row["representation_id"] for source in before for row in source.rows}
    n_vectors = small.catalog.dataset("embeddings").count_rows()
    assert n_vectors == small.pack.n_crops * len(rows) == small.pack.n_crops * (2 * 2 * 3 + len(VARIANTS))
    new = [row for row in rows if row["pooling"] == "channel_mean"]
    assert {(row["kind"], row["block"], row["dim"]) for row in new} == {
        (kind, block, 2 * 16) for kind in ("trained", "untrained") for block in (0, 1)
    }
    images = small.pack.read(np.arange(small.pack.n_crops))
    for row in new:
        encoder = load_encoder(small.checkpoints[row["kind"]])
        expected = every_block(encoder, images, [CHANNELS] * len(images), ("channel_mean",))[:, row["block"]]
        found = vectors_of(small, row["representation_id"])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        mean = next(
            each["representation_id"]
            for each in rows
            if (each["kind"], each["block"], each["pooling"]) == (row["kind"], row["block"], "mean")
        )
        np.testing.assert_allclose(found.reshape(-1, 2, 16).mean(axis=1), vectors_of(small, mean), atol=1e-5)
        profiles = small.catalog.table("profiles", where="representation_id = ?", parameters=[row["representation_id"]])
        assert profiles.num_rows == len(set(small.pack.index["well_id"].to_pylist()))


def test_one_pass_gives_every_pooling(mixed, tmp_path, monkeypatch):
    small = make_small_screen(tmp_path, n_plates=1, wells_each=1, crops_per_well=1)
    checkpoints = {"trained": str(small.checkpoints["trained"])}
    groups = {"trained": groups_of(load_encoder(small.checkpoints["trained"]), channel_mean=True)}
    actor = EmbedCrops(str(small.pack.path), checkpoints, None, 1, False, groups)
    passes = []
    run_blocks = VisionTransformer.run_blocks
    monkeypatch.setattr(VisionTransformer, "run_blocks", lambda *given: passes.append(1) or run_blocks(*given))
    batch = actor(pa.table({"row": np.arange(2)}))
    assert passes == [1]
    assert {name: batch[name].type.list_size for name in (MAIN, "trained channel_mean of 0, 1")} == {
        MAIN: 2 * 2 * 16, "trained channel_mean of 0, 1": 2 * 2 * 16,
    }  # fmt: skip


FORMS = [VectorGroup((name,), (-1,)) for name in VARIANTS]
"""Of the pixel statistics."""


def test_a_pack_of_several_stain_sets_and_a_fused_encoder_have_no_channel_means(mixed, tmp_path):
    trained = {"trained": mixed.checkpoints["trained"]}
    sources = list(extract._sources(mixed.catalog, mixed.pack, trained, "", channel_mean=True))
    assert [source.group for source in sources] == [VectorGroup(POOLINGS, (0, 1)), *FORMS]
    fused = make_small_screen(tmp_path, n_plates=1, wells_each=1, crops_per_well=1, architecture="mae_vit")
    trained = {"trained": fused.checkpoints["trained"]}
    sources = list(extract._sources(fused.catalog, fused.pack, trained, "", channel_mean=True))
    assert [source.group for source in sources] == [VectorGroup(POOLINGS, (0, 1)), *FORMS]


def test_ids_of_representations_are_those_of_earlier_versions():
    assert representation_id("model", 3, "mean", "pack") == "de2893dc1e28258aa2d289a713c549b4"
    assert representation_id("model", 3, "cls", "pack") == "4abdff076626c21bcdab95e8902334dd"


def test_untrained_weights_are_not_taken_for_trained_ones_later(embedded):
    small, _ = embedded
    with pytest.raises(ValueError, match="as the untrained one"):
        embed_pack(small.catalog, small.pack, {"trained": small.checkpoints["untrained"]}, EmbedConfig())


def test_an_encoder_of_other_stains_or_crop_size_is_refused_before_any_work(mixed, tmp_path):
    fixed = ModelConfig(
        architecture="mae_vit", channels=CHANNELS, crop_size=SIZE, patch_size=8, width=16, depth=1, heads=2
    )
    save_encoder(build_encoder(fixed, seed=0), tmp_path / "fixed.safetensors")
    with pytest.raises(ValueError, match="wants exactly DNA, ER"):
        embed_pack(mixed.catalog, mixed.pack, {"trained": tmp_path / "fixed.safetensors"}, EmbedConfig())
    larger = dataclasses.replace(fixed, architecture="chada_vit", crop_size=2 * SIZE)
    save_encoder(build_encoder(larger, seed=0), tmp_path / "larger.safetensors")
    with pytest.raises(ValueError, match=rf"{2 * SIZE} px, pack pack0 holds crops of {SIZE} px"):
        embed_pack(mixed.catalog, mixed.pack, {"trained": tmp_path / "larger.safetensors"}, EmbedConfig())


def test_missing_equal_or_misnamed_checkpoints_are_refused(mixed, tmp_path):
    trained = mixed.checkpoints["trained"]
    with pytest.raises(ValueError, match="same weights"):
        embed_pack(mixed.catalog, mixed.pack, {"trained": trained, "untrained": trained}, EmbedConfig())
    with pytest.raises(ValueError, match="expected `trained`"):
        embed_pack(mixed.catalog, mixed.pack, {"best": trained}, EmbedConfig())
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        embed_pack(mixed.catalog, mixed.pack, {"trained": tmp_path / "none.safetensors"}, EmbedConfig())


def test_a_uniform_pack_gets_statistics_of_each_stain(tmp_path: Path):
    small = make_small_screen(tmp_path, n_plates=1, wells_each=1, crops_per_well=1)
    pack = Pack.open(small.pack.path)
    statistics = PixelStatistics([pack.channels(row) for row in range(pack.n_crops)])
    assert statistics.channels == CHANNELS


@pytest.mark.parametrize(
    ("field", "value"),
    [("minibatch_size", 0), ("actors", 0), ("cpus_per_actor", 0), ("gpus_per_actor", -1), ("precision", "fp8")],
)
def test_a_setting_that_cannot_work_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=rf"embed\.{field}"):
        EmbedConfig(**{field: value})
