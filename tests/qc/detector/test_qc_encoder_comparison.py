from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.models import build_encoder, save_encoder
from cytolake.models.config import ModelConfig
from cytolake.qc.detector import plates as qc_plates
from cytolake.qc.detector.compared_encoders import STATISTICS, ComparedEncoder, compared_encoders
from cytolake.qc.detector.detector import DetectorConfig, Example
from cytolake.qc.detector.encoder_comparison import (
    BENCHMARK,
    EncoderComparison,
    EncoderComparisonConfig,
    add_comparison_scores,
    compare_encoders,
    compare_measured,
    comparison_table,
)
from cytolake.qc.detector.encoders import UNTRAINED, FeatureConfig, FeatureError
from cytolake.qc.detector.features import RELATIONS
from cytolake.qc.detector.initial_weights import initial_constants, is_untrained
from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig
from cytolake.qc.detector.learned import LabelledSites

MODEL = "test_vit"
CURVE = LabelEfficiencyConfig(
    detector=DetectorConfig(is_binary=True), labels_per_class=(1, 4, 50), seeds=tuple(range(6)), n_resamples=100
)
CONFIG = EncoderComparisonConfig(labels="plate_map", heads=("knn", "mahalanobis"), curve=CURVE)
ENCODERS = (
    ComparedEncoder(name=STATISTICS, training="none", features=FeatureConfig()),
    ComparedEncoder(
        name="other",
        training="weights of a file",
        features=FeatureConfig(statistics=False, timm_model=MODEL, timm_weights="w"),
    ),
)


def measured(strength: float, seed: int, n_plates: int = 4, plate_sd: float = 0.0) -> LabelledSites:
    """Sites of plates that differ in how clearly 5 features show an artefact."""
    rng = np.random.default_rng(seed)
    examples, plates, wells = [], [], []
    for plate in range(n_plates):
        of_plate = strength + plate_sd * rng.standard_normal()
        for label in ("normal", "defocus"):
            for i in range(15):
                values = rng.standard_normal((1, 5 + len(RELATIONS)))
                values[:, :5] += of_plate * (label != "normal")
                values[:, 5:] = 0
                examples.append(Example(values, label))
                plates.append(f"P{plate}")
                wells.append(f"P{plate}-{label}-{i}")
    names = (*(f"f{i}" for i in range(5)), *RELATIONS)
    return LabelledSites(tuple(examples), tuple(plates), tuple(wells), names, f"key {strength} {seed}")


def compare(ours: LabelledSites, theirs: LabelledSites, config: EncoderComparisonConfig = CONFIG) -> EncoderComparison:
    return compare_measured(ENCODERS, {STATISTICS: ours, "other": theirs}, "plan", config)


@pytest.fixture(scope="module")
def catalog(simulated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("compared") / "catalog"
    shutil.copytree(simulated_root / "catalog", root)
    return cytolake.catalog.open(root)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(tmp_path_factory.mktemp("timm") / "published.safetensors", seed=0)


def save_timm(path: Path, seed: int, *, trained: bool = True) -> Path:
    import timm

    torch.manual_seed(seed)
    model = timm.create_model(MODEL, pretrained=False)
    save_file((one_step(model) if trained else model).state_dict(), path)
    return path


def our_checkpoint(folder: Path, *, trained: bool = True) -> Path:
    path = folder / "run-7" / "encoder.safetensors"
    encoder = build_encoder(ModelConfig(channels=("DNA", "ER"), crop_size=32, width=32, depth=2, heads=2), seed=0)
    save_encoder(one_step(encoder) if trained else encoder, path)
    return path


def one_step(model: torch.nn.Module) -> torch.nn.Module:
    """The model after one step of an optimiser, as small as a warm-up makes it."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    sum((parameter - 0.1).square().sum() for parameter in model.parameters()).backward()
    optimiser.step()
    return model


@pytest.mark.slow
def test_the_same_features_differ_by_nothing_and_better_ones_by_their_gain():
    same = compare(measured(0.6, 0), measured(0.6, 0))
    assert same.difference("other", "knn") == (0, 0, 0)
    assert same.difference(STATISTICS, "mahalanobis") == (0, 0, 0)
    value, low, high = compare(measured(0.4, 0), measured(2.0, 1)).difference("other", "knn")
    assert 0 < low < value < high


@pytest.mark.slow
def test_plates_that_are_hard_for_both_do_not_widen_the_difference():
    """The interval of a difference is over pairs: a plate effect that both encoders share is not in it."""
    theirs = measured(0.8, 0, n_plates=6, plate_sd=0.6)
    noise = np.random.default_rng(1)
    nearly = replace(
        theirs,
        examples=tuple(
            Example(e.deviations + 0.05 * noise.standard_normal(e.deviations.shape), e.label) for e in theirs.examples
        ),
    )
    found = compare(theirs, nearly)
    _, low, high = found.difference("other", "knn")
    alone = found.point("other", "knn")
    assert high - low < 0.5 * (alone.high - alone.low)


@pytest.mark.slow
def test_encoders_without_any_gain_are_said_to_gain_in_at_most_5_of_100_studies():
    config = EncoderComparisonConfig(heads=("mahalanobis",), curve=replace(CURVE, labels_per_class=(10,)))
    n_studies = 24
    gains = [
        compare(measured(0.5, 2 * i), measured(0.5, 2 * i + 1), config).difference("other", "mahalanobis")[1] > 0
        for i in range(n_studies)
    ]
    assert sum(gains) <= 3  # expected 0.6: one side of a 95 % interval; more than 3 has probability 0.003


def test_the_last_point_is_the_most_that_every_split_can_give():
    found = compare(measured(1.0, 0), measured(1.0, 1))
    assert [p.n_labels for p in found.curves[STATISTICS, "knn"].curve("auroc")] == [1, 4, 30]
    assert found.point("other", "knn").n_labels == 30
    assert (found.unit, found.n_groups) == ("plate", 4)


def test_wells_are_held_out_where_there_is_one_plate():
    found = compare(measured(1.0, 0, n_plates=1), measured(1.0, 1, n_plates=1))
    assert (found.unit, found.n_groups) == ("well", 30)
    assert found.point("other", "knn").n_train == 14  # half of the 15 wells of each class


def test_an_encoder_is_looked_at_without_the_correlations_of_channels():
    """They are a statistic of pixels: an encoder that is blind must not be carried by them."""
    blind, seeing = measured(0.0, 0), measured(0.0, 1)
    for sites in (blind, seeing):
        for example in sites.examples:
            example.deviations[:, 5:] = 8.0 * (example.label != "normal")
    found = compare(seeing, blind)
    assert found.point(STATISTICS, "knn").value > 0.95
    assert abs(found.point("other", "knn").value - 0.5) < 0.15


@pytest.mark.slow
def test_a_whole_comparison_measures_every_encoder_once_and_adds_its_scores(catalog, weights, tmp_path, monkeypatch):
    features = FeatureConfig(windows_per_side=1, reference_sites=8)
    config = replace(CONFIG, features=features, curve=replace(CURVE, seeds=(0, 1), n_resamples=20))
    names = [MODEL, f"{MODEL}={weights}", str(our_checkpoint(tmp_path))]
    encoders = compared_encoders(catalog, names, config.features)
    assert [encoder.label for encoder in encoders] == [
        "statistics", "test_vit (untrained)", "test_vit (published)", "run-7", "run-7 (untrained)",
    ]  # fmt: skip
    found = compare_encoders(catalog, encoders, config)
    assert found.unit == "plate"
    assert found.n_of_label["normal"] == 27

    table = comparison_table(found).to_pylist()
    assert {row["encoder"] for row in table} == {encoder.label for encoder in encoders}
    assert {row["training"] for row in table if "untrained" in row["encoder"]} == {"untrained"}
    assert {row["kind"] for row in table} > {""}

    n_scores = add_comparison_scores(catalog, found)
    assert add_comparison_scores(catalog, found) == n_scores
    rows = catalog.table("scores", where=f"benchmark = '{BENCHMARK}'").to_pylist()
    assert len(rows) == n_scores == len({row["score_id"] for row in rows})
    assert len({row["protocol"] for row in rows}) == len(config.heads)  # encoders share a protocol, heads do not
    details = [json.loads(row["details"]) for row in rows if row["seed"] == -1]
    assert {each["encoder"] for each in details} == {encoder.label for encoder in encoders}
    assert all(each["difference_to_statistics"]["value"] == 0 for each in details if each["encoder"] == STATISTICS)

    monkeypatch.setattr(qc_plates, "_measure_part", lambda *_: pytest.fail("a site was measured again"))
    again = compare_encoders(catalog, encoders, config)
    assert [p.value for c in again.curves.values() for p in c.points] == [
        p.value for c in found.curves.values() for p in c.points
    ]
    weights = save_timm(tmp_path / "published.safetensors", seed=1)
    others = compared_encoders(catalog, [f"{MODEL}={weights}"], config.features)
    with pytest.raises(pytest.fail.Exception, match="measured again"):  # other weights are another encoder
        compare_encoders(catalog, others, config)


@pytest.mark.slow
def test_a_damaged_store_of_features_is_measured_again(catalog, tmp_path):
    config = replace(CONFIG, heads=("mahalanobis",), curve=replace(CURVE, seeds=(0, 1), n_resamples=20))
    encoders = compared_encoders(catalog, [MODEL], config.features)
    before = compare_encoders(catalog, encoders, config)
    for file in (catalog.root / "qc" / "features").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    after = compare_encoders(catalog, encoders, config)
    assert after.point(STATISTICS, "mahalanobis").value == before.point(STATISTICS, "mahalanobis").value


def test_timm_names_without_weights_are_untrained_and_never_downloaded(catalog, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("a download was tried"))
    statistics, vit = compared_encoders(catalog, ["resnet18.a1_in1k"], FeatureConfig())
    assert (vit.label, vit.features.timm_weights) == ("resnet18.a1_in1k (untrained)", UNTRAINED)
    assert (statistics.label, statistics.features) == (STATISTICS, FeatureConfig())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_of_random_weights_is_untrained_until_its_first_step(catalog, weights, tmp_path, precision):
    """Random weights must not pass as a model's published ones, whatever the file is called."""
    path = save_timm(tmp_path / "vit.safetensors", seed=3, trained=False)
    save_file({name: value.to(precision) for name, value in load_file(path).items()}, path)
    _, random, trained = compared_encoders(catalog, [f"{MODEL}={path}", f"{MODEL}={weights}"], FeatureConfig())
    assert (random.label, random.training) == ("test_vit (vit, untrained)", "untrained")
    assert (trained.label, trained.training) == ("test_vit (published)", "weights of a file")


def test_a_checkpoint_of_ours_that_was_never_trained_is_untrained_and_needs_no_counterpart(catalog, tmp_path):
    found = compared_encoders(catalog, [str(our_checkpoint(tmp_path, trained=False))], FeatureConfig())
    assert [encoder.label for encoder in found] == [STATISTICS, "run-7 (untrained)"]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("vgg11", marks=pytest.mark.slow),
        "convnext_atto",
        "mobilenetv3_small_050",
        "vit_tiny_patch16_224",
    ],
)
def test_every_family_of_timm_has_constants_that_one_step_changes(name):
    import timm

    torch.manual_seed(0)
    constants = initial_constants(timm.create_model(name, pretrained=False, num_classes=0))
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    assert is_untrained(model, constants)
    assert not is_untrained(one_step(model), constants)
    assert not is_untrained(model, {})


def test_a_file_of_another_model_is_refused_before_anything_is_measured(catalog, weights):
    with pytest.raises(FeatureError, match="weights of another model"):
        compared_encoders(catalog, [f"resnet18={weights}"], FeatureConfig())


def test_an_encoder_of_other_stains_is_refused_before_anything_is_measured(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(qc_plates, "_measure_part", lambda *_: pytest.fail("a site was measured"))
    path = tmp_path / "encoder.safetensors"
    config = ModelConfig(architecture="mae_vit", channels=("DNA", "Mito"), crop_size=32, width=32, depth=2, heads=2)
    save_encoder(one_step(build_encoder(config, seed=0)), path)
    config = replace(CONFIG, features=FeatureConfig(windows_per_side=1, reference_sites=7))  # not in the store
    encoders = compared_encoders(catalog, [f"other={path}"], config.features)
    with pytest.raises(FeatureError, match=r"encoder other: plate .* has the channels .*exactly DNA, Mito\. Leave the"):
        compare_encoders(catalog, encoders, config)


def test_encoders_of_the_catalog_are_found_by_alias_with_their_block(catalog, tmp_path, monkeypatch):
    class Card:
        encoder_path, block = our_checkpoint(tmp_path), 1

    monkeypatch.setattr("cytolake.qc.detector.compared_encoders.resolve_promoted", lambda _, alias: Card)
    _, ours, untrained = compared_encoders(catalog, ["champion"], FeatureConfig())
    assert (ours.label, ours.features.block, ours.training) == ("champion", 1, "self-supervised")
    assert (untrained.label, untrained.features.block) == ("champion (untrained)", 1)
    assert untrained.features.checkpoint != ours.features.checkpoint


def test_names_that_are_no_encoder_and_names_twice_are_refused(catalog):
    with pytest.raises(FeatureError, match=r"'resnet_of_mine'.*near to it: .*resnet.*no file, no representation"):
        compared_encoders(catalog, ["resnet_of_mine"], FeatureConfig())
    with pytest.raises(FeatureError, match=r"found test_vit \(untrained\) twice"):
        compared_encoders(catalog, [MODEL, MODEL], FeatureConfig())
    with pytest.raises(FeatureError, match="pixel statistics alone"):
        compared_encoders(catalog, [STATISTICS], FeatureConfig())


@pytest.mark.parametrize(
    "values",
    [
        {"labels": "none"},
        {"heads": ()},
        {"heads": ("knn", "knn")},
        {"normal_sites": 0},
        {"simulated_per_kind": 0},
        {"simulated_severity": (0.0, 1.0)},
        {"seed": -1},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}: found"):
        EncoderComparisonConfig(**values)
