"""The audit on a small screen whose perturbations differ in texture and level, and on drawn figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm
from tests.embed.every_block import every_block
from tests.embed.small_screen import SmallScreen, make_small_screen

from cytolake.models import load_encoder
from cytolake.models.augment import KNOBS, AugmentConfig
from cytolake.reports.audit_page import audit_table, audit_text, proposal_text, write_audit
from cytolake.tune.augmentation_design import propose_augmentations, proposed_config, proposed_settings
from cytolake.tune.invariance_audit import OFF, Audit, AuditConfig, AuditRow, _task, audit_encoders

CONFIG = AuditConfig(
    knobs=("flip_rotate", "blur_sigma_px", "gamma", "noise", "identity_drop", "gain"),
    strengths=(0.2, 1.0),
    labels=(("perturbation", "plate"), ("plate", "well")),
    bootstrap_draws=50,
)


@pytest.fixture(scope="module")
def small(small_screen: SmallScreen) -> SmallScreen:
    return small_screen


@pytest.fixture(scope="module")
def audit(small: SmallScreen) -> Audit:
    reported: list[tuple[int, int]] = []
    found = audit_encoders(
        small.catalog, small.pack, small.checkpoints, 1, "mean", CONFIG, lambda _, done, n: reported.append((done, n))
    )
    assert reported[-1][0] == reported[-1][1]
    return found


def test_every_knob_strength_and_label_has_a_row_and_flips_one(audit: Audit):
    of_trained = [(row.knob, row.strength, row.label) for row in audit.rows if row.encoder == "trained"]
    assert len(of_trained) == len(set(of_trained)) == 2 * (1 + 1 + 4 * 2)
    assert {row.encoder for row in audit.rows} == {"trained", "untrained"}


def test_what_an_encoder_cannot_see_is_left_out_and_what_it_sees_moves_vectors(audit: Audit):
    """Channels are standardised before the first block, so gain is invisible; blur is not."""
    assert audit.skipped == {"gain": "changes nothing that the encoder gets: each channel of a crop is standardised"}
    blur = audit.of("trained", "blur_sigma_px", "perturbation")
    assert [row.strength for row in blur] == [0, 0.2, 1]
    assert blur[0].shift == pytest.approx(0, abs=1e-6)
    assert 0 < blur[1].relative_shift < blur[2].relative_shift


def test_recall_of_unchanged_crops_is_that_of_scikit_learn(small: SmallScreen, audit: Audit):
    """The crops and the probe taken by hand: embedded as by the embed job, fitted and scored by scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task = _task(small.catalog, small.pack, "perturbation", "plate", CONFIG)
    vectors = []
    for crops in (task.train, task.test):
        rows = small.pack.rows_of([task.data.crop_ids[i] for i in crops])
        channels = [small.pack.channels(int(row)) for row in rows]
        pooled = every_block(load_encoder(small.checkpoints["trained"]), small.pack.read(rows), channels, ("mean",))
        vectors.append(pooled[:, 1])
    labels = [task.data.label_of_well[task.data.well_of_crop[crops]] for crops in (task.train, task.test)]
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=CONFIG.regularisation, class_weight="balanced", tol=1e-8)
    ).fit(vectors[0], labels[0])
    expected = recall_score(labels[1], probe.predict(vectors[1]), average="macro")
    unchanged = next(r for r in audit.rows if (r.encoder, r.knob, r.label) == ("trained", OFF, "perturbation"))
    assert unchanged.recall == pytest.approx(expected)
    assert unchanged.drift == 0
    assert set(unchanged.class_recall) == {"bright", "fine", "smooth"}


def test_more_noise_moves_vectors_farther(audit: Audit):
    noise = audit.of("trained", "noise", "perturbation")
    assert noise[-1].relative_shift > noise[1].relative_shift > 0.01


def test_the_same_audit_twice_is_the_same(small: SmallScreen, audit: Audit):
    config = dataclasses.replace(CONFIG, knobs=("noise",))
    again = audit_encoders(small.catalog, small.pack, {"trained": small.checkpoints["trained"]}, 1, "mean", config)
    assert again.rows == [row for row in audit.rows if row.encoder == "trained" and row.knob in (OFF, "noise")]


def test_a_knob_that_an_encoder_cannot_take_is_reported(tmp_path):
    fused = make_small_screen(tmp_path, architecture="mae_vit")
    config = dataclasses.replace(CONFIG, knobs=("identity_drop", "channel_drop"), labels=(("perturbation", "plate"),))
    found = audit_encoders(fused.catalog, fused.pack, fused.checkpoints, 0, "mean", config)
    assert set(found.skipped) == {"identity_drop"}
    assert "mae_vit needs all its stains" in found.skipped["identity_drop"]
    assert {row.knob for row in found.rows} == {OFF, "channel_drop"}


def test_an_invalid_audit_is_refused(small: SmallScreen):
    with pytest.raises(ValueError, match="blocks 0 to 1, block 2 was requested"):
        audit_encoders(small.catalog, small.pack, small.checkpoints, 2, "mean", CONFIG)
    for change, message in (
        ({"knobs": ("hue",)}, "audit.knobs has hue"),
        ({"strengths": (0.5, 0.2)}, "increasing"),
        ({"strengths": (0.5, 2.0)}, "at most 1"),
        ({"labels": ()}, "audit.labels is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **change)


def p_value(drift: float) -> float:
    """Of a drift with an sd of 0.01."""
    return float(2 * norm.sf(abs(drift) / 0.01))


def drawn(effects: dict[str, tuple[float, float]], strengths=(0.25, 0.5, 1.0)) -> Audit:
    """An audit in which each knob takes a share of recall at full strength: (of perturbation, of plate)."""
    rows = []
    for label, place in (("perturbation", 0), ("plate", 1)):
        rows.append(
            AuditRow("trained", OFF, "", 0, label, 0, 0, 0.8, 0, 0, 0, 1.0, {"a": 0.8, "b": 0.8}, {"a": 0.0, "b": 0.0})
        )
        for knob, loss in effects.items():
            for strength in strengths:
                drift = -loss[place] * strength
                rows.append(
                    AuditRow(
                        "trained", knob, "optics", strength, label, 0.1, 0.5, 0.8 + drift, drift, drift - 0.02,
                        drift + 0.02, p_value(drift), {"a": 0.8, "b": 0.8 + 2 * drift}, {"a": 0.0, "b": 2 * drift},
                    )
                )  # fmt: skip
    return Audit(rows, {}, {"perturbation": 10, "plate": 10}, {"perturbation": 10, "plate": 10})


def test_a_knob_is_proposed_that_covers_the_nuisance_and_not_the_biology():
    audit = drawn({"blur_sigma_px": (0.0, 0.4), "noise": (0.5, 0.5), "gain": (0.0, 0.0), "rotation_deg": (0.08, 0.3)})
    found = {each.knob: each for each in propose_augmentations(audit, "trained", ["perturbation"], ["plate"])}
    assert (found["blur_sigma_px"].is_proposed, found["blur_sigma_px"].strength) == (True, 1.0)
    assert not found["noise"].is_proposed
    assert "already at strength 0.25 perturbation may lose 0.145" in found["noise"].reason
    assert not found["gain"].is_proposed
    assert "no evidence that plate is predicted less well" in found["gain"].reason
    assert (found["rotation_deg"].is_proposed, found["rotation_deg"].strength) == (True, 0.25)


def test_of_many_knobs_without_effect_few_are_proposed():
    """Losses of the nuisance by chance alone, sd 0.01 in each of 19 knobs: one in 40 lies below its interval, so every
    third audit would propose one."""
    random = np.random.default_rng(0)
    n_proposed, n_below = [], []
    for _ in range(100):
        audit = drawn({name: (0.0, 0.01 * random.normal()) for name in KNOBS}, strengths=(1.0,))
        found = propose_augmentations(audit, "trained", ["perturbation"], ["plate"])
        n_proposed.append(any(each.is_proposed for each in found))
        n_below.append(any(each.ignored_drift < -0.0196 for each in found))
    assert np.mean(n_below) > 0.25
    assert np.mean(n_proposed) < 0.08


def test_proposals_are_settings_of_a_training():
    audit = drawn({"blur_sigma_px": (0.0, 0.4), "gain": (0.0, 0.0), "crop_scale": (0.0, 0.3)})
    found = propose_augmentations(audit, "trained", ["perturbation"], ["plate"])
    assert proposed_config(found) == AugmentConfig(blur_sigma_px=4.0, crop_scale=(1 - 0.92, 1.0))
    settings = proposed_settings(found)
    assert "pretrain.augment.blur_sigma_px=4.0" in settings
    assert len(settings) == 2


def test_invalid_labels_are_refused():
    audit = drawn({"gain": (0.0, 0.0)})
    for keep, ignore, message in (
        (["perturbation"], ["batch"], "no audit of batch"),
        (["plate"], ["plate"], "to be kept and to be ignored"),
        ([], ["plate"], "at least one label to keep"),
    ):
        with pytest.raises(ValueError, match=message):
            propose_augmentations(audit, "trained", keep, ignore)
    with pytest.raises(ValueError, match="no audit of encoder 'other'"):
        propose_augmentations(audit, "other", ["perturbation"], ["plate"])


def test_the_page_holds_every_knob_and_the_table_every_class(audit: Audit, tmp_path):
    from rich.console import Console

    proposals = propose_augmentations(audit, "trained", ["perturbation"], ["plate"])
    page = write_audit(tmp_path / "audit.html", "Audit", audit, "About.", proposals, ["perturbation"], ["plate"])
    text = page.read_text()
    assert "identity drop" in text
    assert "<svg" in text
    assert "<script" not in text
    n_classes = len(audit.of("trained", OFF, "perturbation")[0].class_recall)
    assert f"chance is a recall of\n    {1 / n_classes:.3f}" in text
    console = Console(width=200, record=True)
    console.print(audit_text(audit, "trained"), proposal_text(proposals))
    assert "blur_sigma_px" in console.export_text()
    table = audit_table(audit)
    n_classes = sum(len(row.class_recall) for row in audit.rows)
    assert table.num_rows == len(audit.rows) + n_classes
