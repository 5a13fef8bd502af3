from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cytolake.models import VisionTransformer, save_encoder
from cytolake.models.checkpoints import CheckpointError
from cytolake.models.config import ModelConfig
from cytolake.qc.detector.detector import ArtefactDetector, Example
from cytolake.qc.detector.encoders import (
    UNTRAINED,
    EncoderFeatures,
    FeatureConfig,
    FeatureError,
    TimmFeatures,
    build_extractors,
    features_key,
    features_of_key,
)
from cytolake.qc.detector.features import feature_names, measure_sites, plate_reference, plate_scale

STAINS = ("DNA", "ER", "AGP")
MODEL = "test_resnet"  # of timm itself: 0.5 million weights, windows of 160 px


@pytest.fixture(scope="module")
def sites() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 4000, (3, 170, 200)).astype(np.uint16) for _ in range(2)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the model as timm publishes them: with the classifier."""
    import timm

    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL, pretrained=False).state_dict(), path)
    return path


def checkpoint(folder: Path, seed: int = 0, **changes: object) -> Path:
    torch.manual_seed(seed)
    config = {"channels": ("DNA", "ER"), "crop_size": 32, "width": 32, "depth": 2, "heads": 2} | changes
    path = folder / f"encoder-{seed}.safetensors"
    save_encoder(VisionTransformer(ModelConfig(**config)), path)
    return path


def measure(extractor, pixels, channels=STAINS):
    return extractor.measure([pixels], [channels], plate_scale([pixels], [channels]))[0]


def test_a_timm_model_sees_each_channel_as_a_grey_image(sites, weights):
    import timm

    extractor = TimmFeatures(MODEL, weights, windows_per_side=1)
    found = measure(extractor, sites[0])
    model = timm.create_model(MODEL, pretrained=False, num_classes=0, checkpoint_path="").eval()
    state = {k: v for k, v in timm.models.load_state_dict(str(weights)).items() if k in model.state_dict()}
    model.load_state_dict(state)
    scaled = plate_scale(sites[:1], [STAINS]).apply(sites[0], STAINS)
    for c, channel in enumerate(scaled):
        grey = np.repeat(channel[None, 5:165, 20:180], 3, axis=0)  # the middle 160 px
        mean, sd = (np.array(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
        with torch.inference_mode():
            expected = model(torch.from_numpy(((grey - mean) / sd).astype(np.float32))[None])[0].numpy()
        np.testing.assert_allclose(found[c], expected, rtol=1e-4, atol=1e-5)
    assert len(extractor.names) == found.shape[1]


HEADS = {
    "resnet18": 512,
    "vgg11": 4096,  # two hidden layers before the classifier; num_features says 512
    "mobilenetv3_small_100": 1024,  # one; num_features says 576
    "convnext_atto": 320,
    "vit_tiny_patch16_224": 192,
}


@pytest.mark.parametrize(
    ("name", "width"),
    [
        pytest.param(
            name, width, marks=() if name in ("mobilenetv3_small_100", "vit_tiny_patch16_224") else pytest.mark.slow
        )
        for name, width in HEADS.items()
    ],
)
def test_a_timm_model_has_as_many_features_as_its_classifier_has_inputs(name, width, sites):
    import timm

    extractor = TimmFeatures(name, UNTRAINED, windows_per_side=1)
    found = measure(extractor, sites[0][:1], STAINS[:1])
    assert found.shape == (1, len(extractor.names)) == (1, width)
    classifier = timm.create_model(name, pretrained=False).get_classifier()
    assert classifier.in_features == width


@pytest.mark.parametrize("name", ["test_vit", pytest.param("vgg11", marks=pytest.mark.slow)])
def test_a_detector_is_fitted_to_what_a_timm_model_gives(name, sites):
    extractors = build_extractors(FeatureConfig(statistics=False, timm_model=name, timm_weights=UNTRAINED))
    pixels = [site[:1] for site in sites]
    raw = measure_sites(pixels, [STAINS[:1]] * 2, extractors, plate_scale(pixels, [STAINS[:1]] * 2))
    reference = plate_reference(raw)
    examples = [Example(reference.deviations(each), label) for each, label in zip(raw, ("normal", "blur"), strict=True)]
    detector = ArtefactDetector.fit(examples, feature_names(extractors))
    assert np.isfinite(detector.artefact_probabilities([each.deviations for each in examples])).all()


def test_a_model_of_one_plane_is_given_one(sites, monkeypatch):
    import timm

    create = timm.create_model

    def of_one_plane(name, **settings):
        model = create(name, in_chans=1, **settings)
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 160, 160)}
        return model

    monkeypatch.setattr(timm, "create_model", of_one_plane)
    extractor = TimmFeatures(MODEL, UNTRAINED)
    assert measure(extractor, sites[0]).shape == (3, len(extractor.names))


def test_untrained_weights_are_the_same_whatever_was_drawn_before(sites):
    torch.manual_seed(1)
    first = TimmFeatures(MODEL, UNTRAINED)
    torch.manual_seed(2)
    again = TimmFeatures(MODEL, UNTRAINED)
    assert first.key == again.key
    np.testing.assert_array_equal(measure(first, sites[0]), measure(again, sites[0]))


def test_weights_of_torch_and_of_safetensors_are_the_same_weights(sites, weights, tmp_path):
    import timm

    state = timm.models.load_state_dict(str(weights))
    expected = measure(TimmFeatures(MODEL, weights), sites[0])
    for saved in (state, {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}):
        path = tmp_path / "model.pth"
        torch.save(saved, path)
        np.testing.assert_array_equal(measure(TimmFeatures(MODEL, path), sites[0]), expected)


def test_more_windows_are_averaged_and_a_small_site_is_enlarged(sites, weights):
    four = measure(TimmFeatures(MODEL, weights, windows_per_side=2), sites[0])
    one = TimmFeatures(MODEL, weights, windows_per_side=1)
    scale = plate_scale(sites[:1], [STAINS])
    corners = [
        one.measure([sites[0][:, y : y + 160, x : x + 160]], [STAINS], scale)[0] for y in (0, 10) for x in (0, 40)
    ]
    np.testing.assert_allclose(four, np.mean(corners, axis=0), rtol=1e-4, atol=1e-5)
    assert np.isfinite(measure(one, sites[0][:, :50, :64])).all()


def test_weights_that_cannot_be_used_are_refused_with_what_to_do(weights, tmp_path):
    with pytest.raises(FeatureError, match=r"'resnet_of_mine'.*does not have it"):
        TimmFeatures("resnet_of_mine", weights)
    with pytest.raises(FeatureError, match="no such file"):
        TimmFeatures(MODEL, tmp_path / "none.safetensors")
    with pytest.raises(FeatureError, match=r"weights of another model: \d+ of \d+ differ, first.*differ: blocks\.0"):
        TimmFeatures("test_vit", weights)
    code = tmp_path / "code.pth"
    torch.save({"model": FeatureConfig()}, code)  # an object, whose loading would run code
    with pytest.raises(FeatureError, match="not a file of weights alone"):
        TimmFeatures(MODEL, code)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FeatureError, match="not a whole safetensors file"):
        TimmFeatures(MODEL, torn)


def test_a_hub_that_cannot_be_reached_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FeatureError, match=r"timm/resnet18\.a1_in1k.*set timm_weights"):
        TimmFeatures("resnet18.a1_in1k")


def test_an_encoder_of_ours_sees_each_channel_by_itself(sites, tmp_path):
    extractor = EncoderFeatures(checkpoint(tmp_path))
    found = measure(extractor, sites[0])
    assert found.shape == (3, 32) == (3, len(extractor.names))
    order = [2, 0, 1]
    turned = measure(extractor, sites[0][order], tuple(STAINS[c] for c in order))
    np.testing.assert_allclose(turned, found[order], atol=1e-5)
    other = sites[0].copy()
    other[1] = other[1].T.reshape(other[1].shape)
    changed = np.abs(measure(extractor, other) - found).max(axis=1) > 1e-3
    assert changed.tolist() == [False, True, False]


def test_an_encoder_of_fused_stains_says_the_same_of_every_channel(sites, tmp_path):
    extractor = EncoderFeatures(checkpoint(tmp_path, architecture="mae_vit", channels=STAINS))
    found = measure(extractor, sites[0])
    assert np.ptp(found, axis=0).max() == 0
    with pytest.raises(ValueError, match="AGP"):
        measure(extractor, sites[0][:2], STAINS[:2])


def test_blocks_are_counted_from_either_end(sites, tmp_path):
    path = checkpoint(tmp_path)
    last, first = EncoderFeatures(path, -1), EncoderFeatures(path, 0)
    assert last.key == EncoderFeatures(path, 1).key != first.key
    assert np.abs(measure(last, sites[0]) - measure(first, sites[0])).max() > 1e-3
    with pytest.raises(FeatureError, match="block 2 of an encoder with 2; expected 0 to 1"):
        EncoderFeatures(path, 2)


def test_extractors_stand_side_by_side_and_are_found_again_by_their_key(sites, weights, tmp_path):
    config = FeatureConfig(checkpoint=str(checkpoint(tmp_path)), timm_model=MODEL, timm_weights=str(weights))
    extractors = build_extractors(config)
    key = features_key(config, extractors)
    again, rebuilt = features_of_key(key)
    assert again == config
    scale = plate_scale(sites, [STAINS] * 2)
    first, second = (measure_sites(sites, [STAINS] * 2, each, scale) for each in (extractors, rebuilt))
    np.testing.assert_array_equal(first[1].values, second[1].values)
    alone = [extractor.measure(sites, [STAINS] * 2, scale)[1] for extractor in extractors]
    np.testing.assert_allclose(first[1].values, np.concatenate(alone, axis=1), atol=1e-5)
    assert len(feature_names(extractors)) == first[0].values.shape[1] + 4


def test_features_of_an_encoder_that_was_exchanged_are_refused(tmp_path):
    path = checkpoint(tmp_path)
    config = FeatureConfig(checkpoint=str(path))
    key = features_key(config, build_extractors(config))
    path.write_bytes(checkpoint(tmp_path, seed=1).read_bytes())
    with pytest.raises(FeatureError, match=r"found encoder/1/.*expected encoder/1/.*as at its training"):
        features_of_key(key)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        features_of_key(key)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"statistics": False}, "nothing to look at"),
        ({"windows_per_side": 0}, "windows_per_side: found 0"),
        ({"reference_sites": 0}, "reference_sites: found 0"),
        ({"timm_weights": "x"}, "without timm_model"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FeatureConfig(**values)
