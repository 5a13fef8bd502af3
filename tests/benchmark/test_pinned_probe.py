"""The probe that follows training: pinned by the crops alone, and the same number as the catalog's own probe."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
from tests.embed.small_screen import make_small_screen

from cytolake.benchmark.cross_validation import probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, ProbeConfig, probe_key
from cytolake.benchmark.pinned_probe import TrainingProbeConfig, pin_training_probe
from cytolake.models import collate, load_encoder
from cytolake.packs.pack import Pack

PROBE = ProbeConfig(regularisation=(0.01,))


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    return make_small_screen(tmp_path_factory.mktemp("probe"), mixed=True)


def test_the_training_probe_scores_as_the_probe_of_the_tables(screen):
    probe = pickle.loads(
        pickle.dumps(pin_training_probe(screen.catalog, screen.pack, TrainingProbeConfig(probe=PROBE)))
    )
    numbers = probe(screen.checkpoints["trained"])
    encoder = load_encoder(screen.checkpoints["trained"])
    rows = screen.pack.rows_of(probe.crops.data.crop_ids)
    identities = [encoder.config.channel_indices(screen.pack.channels(int(row))) for row in rows]
    blocks = encoder.pooled_blocks(collate(screen.pack.read(rows), identities))["mean"].numpy()
    assert set(numbers) == {"block_0", "block_1", "best_block"}
    for block, vectors in enumerate(blocks):
        key = probe_key(probe.crops.data, PROBE)
        wanted = probe_representation(vectors, "any", probe.crops.data, PROBE, key).summary[CROP_METRIC].value
        assert numbers[f"block_{block}"] == pytest.approx(wanted)
    assert numbers["best_block"] == max(numbers["block_0"], numbers["block_1"])


def test_the_same_crops_are_pinned_whatever_order_the_pack_is_in(screen):
    config = TrainingProbeConfig(n_crops=40, probe=PROBE)
    pinned = pin_training_probe(screen.catalog, screen.pack, config)
    shuffled = Pack(screen.pack.path, described_of(screen.pack), screen.pack.index.take(np.arange(95, -1, -1)))
    again = pin_training_probe(screen.catalog, shuffled, config)
    assert len(pinned.crops.data.crop_ids) == 40
    assert again.crops.data.crop_ids == pinned.crops.data.crop_ids
    np.testing.assert_array_equal(again.crops.rows, 95 - pinned.crops.rows)


def described_of(pack):
    return json.loads((pack.path / "pack.json").read_text())


def test_a_label_that_these_crops_do_not_have_is_refused_before_training(screen):
    config = TrainingProbeConfig(probe=dataclasses.replace(PROBE, label="gene"))
    with pytest.raises(ValueError, match=r"wells\.gene has 0 classes"):
        pin_training_probe(screen.catalog, screen.pack, config)
