from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytolake.qc.detector.compared_encoders import ComparedEncoder
from cytolake.qc.detector.detector import DetectorConfig, Example
from cytolake.qc.detector.encoder_comparison import EncoderComparison, EncoderComparisonConfig, compare_measured
from cytolake.qc.detector.encoders import UNTRAINED, FeatureConfig
from cytolake.qc.detector.features import RELATIONS
from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig
from cytolake.qc.detector.learned import LabelledSites
from cytolake.reports.qc_encoders_page import headline, labels_text, notes, training_effects, write_encoder_page

CONFIG = EncoderComparisonConfig(
    heads=("knn", "knn_distance"),
    curve=LabelEfficiencyConfig(
        detector=DetectorConfig(is_binary=True), labels_per_class=(1, 8), seeds=tuple(range(6)), n_resamples=100
    ),
)
STATISTICS = ComparedEncoder(name="statistics", training="none", features=FeatureConfig())


def encoder(name: str, training: str) -> ComparedEncoder:
    features = FeatureConfig(statistics=False, timm_model=name, timm_weights=UNTRAINED)
    return ComparedEncoder(name=name, training=training, features=features)


def sites(strength: float, n_plates: int, seed: int = 0) -> LabelledSites:
    rng = np.random.default_rng(seed)
    labels = ["normal", "defocus", "debris", "normal"] * 5
    values = rng.standard_normal((n_plates * len(labels), 1, 4 + len(RELATIONS)))
    values[:, :, 4:] = 0
    examples = []
    for i, each in enumerate(values):
        label = labels[i % len(labels)]
        each[:, :4] += strength * (label != "normal")
        examples.append(Example(each, label))
    plates = np.repeat([f"P{p}" for p in range(n_plates)], len(labels)).tolist()
    names = (*"abcd", *RELATIONS)
    return LabelledSites(
        tuple(examples), tuple(plates), tuple(f"W{i}" for i in range(len(values))), names, f"{strength}"
    )


def compared(n_plates: int, statistics: float, **strengths: float) -> EncoderComparison:
    encoders = [STATISTICS, *(encoder(name, "untrained") for name in strengths)]
    measured = {
        each.label: sites(s, n_plates) for each, s in zip(encoders, (statistics, *strengths.values()), strict=True)
    }
    return compare_measured(encoders, measured, "plan", CONFIG)


@pytest.fixture(scope="module")
def on_plates() -> EncoderComparison:
    return compared(6, 0.5, resnet18=0.4, vgg16=3.0)


@pytest.fixture(scope="module")
def on_wells() -> EncoderComparison:
    return compared(1, 1.2, resnet18=0.0)


def test_the_first_sentence_names_an_encoder_that_is_better_with_its_interval(on_plates):
    found = re.fullmatch(
        r"On held-out plates vgg16 \(untrained\) beats pixel statistics by \+(0\.\d{3}) \[\+(0\.\d{3}), \+(0\.\d{3})\] "
        r"AUROC \(knn head, 8 labelled sites of each class; 95 % interval over 6 plates, corrected for 2 encoders\)\.",
        headline(on_plates),
    )
    assert found
    value, low, high = map(float, found.groups())
    assert low < value < high
    _, narrower, _ = on_plates.difference("vgg16 (untrained)", "knn")
    assert low < narrower  # two encoders were tried


def test_the_first_sentence_says_that_none_is_better_and_what_was_held_out(on_wells):
    said = headline(on_wells)
    assert said.startswith("On held-out wells of the one plate no encoder beats pixel statistics: the best, resnet18")
    assert "95 % interval over 20 wells)" in said
    assert "plates" not in said


def test_labels_that_pixel_statistics_predict_without_error_cannot_show_a_better_encoder():
    said = headline(compared(3, 30.0, vgg16=30.0, resnet18=0.0))
    assert said.startswith(
        "On held-out plates pixel statistics rank every spoilt site above every normal one (AUROC 1)"
    )
    assert "[" not in said


def test_two_plates_give_no_interval_and_no_winner():
    found = compared(2, 0.0, vgg16=4.0)
    assert headline(found).startswith("2 plates are too few for an interval, so no encoder is shown to beat pixel")
    assert "[" not in headline(found)
    assert any("too few for an interval" in note for note in notes(found))


def test_notes_say_what_is_untrained_and_what_one_plate_cannot_show(on_plates, on_wells):
    assert any(note.startswith("Untrained: resnet18, vgg16. Their weights are random") for note in notes(on_plates))
    assert not any("There is one plate" in note for note in notes(on_plates))
    assert any(note.startswith("There is one plate, so wells were held out") for note in notes(on_wells))


@pytest.mark.parametrize(("strength", "said"), [(3.0, "an effect is shown"), (0.4, "no effect is shown")])
def test_what_training_changed_is_measured_against_the_same_encoder_untrained(strength, said):
    encoders = [STATISTICS, encoder("run", "self-supervised"), encoder("run", "untrained")]
    strengths = (2.0, strength, 0.4)
    measured = {each.label: sites(s, 6) for each, s in zip(encoders, strengths, strict=True)}
    found = compare_measured(encoders, measured, "plan", CONFIG)
    (text,) = training_effects(found)
    value, low, high = found.difference("run", "knn", baseline="run (untrained)")
    assert f"of run by {value:+.3f} [{low:+.3f}, {high:+.3f}]" in text
    assert said in text
    assert (value == 0) == (strength == 0.4)


def test_an_encoder_without_its_counterpart_has_no_effect_of_training(on_plates):
    assert training_effects(on_plates) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("people", "people gave to sites"),
        ("plate_map", "column artefact"),
        ("focus", "focal planes a, b count as normal"),
        ("simulated", "artefacts are simulated: 2 kinds"),
    ],
)
def test_the_page_says_where_labels_are_from(on_plates, labels, said, tmp_path):
    found = replace(on_plates, config=replace(CONFIG, labels=labels, in_focus=("a", "b")))
    assert re.search(said, labels_text(found))
    page = write_encoder_page(tmp_path / "page.html", "Encoders", found).read_text()
    assert labels_text(found) in page


def test_the_notes_count_sites_of_training_and_test(on_plates):
    point = on_plates.point("statistics", "knn")
    assert any(
        f"60 normal and 60 spoilt sites of 6 plates; each split is fitted on {point.n_train} and scored on "
        f"{point.n_test} of them" in note
        for note in notes(on_plates)
    )


@pytest.mark.parametrize("name", ["on_plates", "on_wells"])
def test_the_page_starts_with_the_result_and_shows_every_encoder_head_and_kind(name, request, tmp_path):
    comparison = request.getfixturevalue(name)
    page = write_encoder_page(Path(tmp_path / "page.html"), "Encoders", comparison).read_text()
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())
    assert text.index(headline(comparison)) < text.index("Every encoder is frozen")
    assert page.index("<svg") < page.index("<table")
    for said in (
        *(each.label for each in comparison.encoders),
        "knn distance",
        "defocus",
        "debris",
        "recall at 1 % FPR",
    ):
        assert said in text
    assert f"intervals over {comparison.n_groups} {comparison.unit}s" in text
    assert "0.030" in text  # chance of AUPRC: the prevalence
