from __future__ import annotations

import json

import numpy as np
import pytest

from cytolake.performance_prediction.prompt_predictor import CARD_FILE, PromptPredictor, load_prompt_predictor
from cytolake.performance_prediction.stack_fitting import StackConfig, fit_stack
from cytolake.performance_prediction.text_features import SURFACE, SentenceModelError, find_sentence_model, surface


def test_counts_of_a_prompt():
    counts = dict(zip(SURFACE, surface(["Two dogs, 3 cats"])[0], strict=True))
    assert counts == {
        "words": 4,
        "characters": 16,
        "word_length": 13 / 4,
        "commas": 1,
        "digits": 1 / 13,
        "capitals": 1 / 13,
    }
    assert surface([]).shape == (0, len(SURFACE))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A sentence model of two blocks and random weights, on disk."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("sentence_model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "sleeps", "on", "the", "mat"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return find_sentence_model(str(folder))


def test_a_vector_is_the_same_whatever_it_is_encoded_with(model):
    texts = ["a dog runs", "the cat sleeps on the mat on the mat", "a cat", "dog"]
    together = np.stack(model.encode(texts))
    assert together.shape == (3, 4, 16)  # the embedding layer, then two blocks
    alone = np.concatenate([model.encode([text]) for text in texts], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode(texts, minibatch_size=1), together, atol=1e-6)


def test_one_text_and_another_differ_in_every_layer(model):
    for layer in model.encode(["a dog runs", "the cat sleeps"]):
        assert np.abs(layer[0] - layer[1]).max() > 1e-3


def stored_clip(folder, kind):
    """A tiny CLIP of random weights on disk, and transformers' own text embeddings of some texts."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdogcts")]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(dict.fromkeys(words))}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": 12}
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        if kind == "whole":
            config = transformers.CLIPConfig(
                text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=12
            )
            clip = transformers.CLIPModel(config).eval()
            features = clip.get_text_features(**tokens)
            expected = getattr(features, "pooler_output", features)
        elif kind == "text half":
            clip = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text)).eval()
            expected = clip(**tokens).text_embeds
        else:
            clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).eval()
            expected = clip(**tokens).pooler_output
        clip.save_pretrained(folder)
        return torch.nn.functional.normalize(expected, dim=-1).numpy()


TEXTS = ["a dog", "a cat and dogs", "cat"]


@pytest.mark.parametrize(("kind", "width"), [("whole", 12), ("text half", 12), ("without projection", 16)])
def test_the_last_layer_of_clip_is_what_transformers_compares_with_images(tmp_path, kind, width):
    expected = stored_clip(tmp_path, kind)
    clip = find_sentence_model(str(tmp_path))
    layers = clip.encode(TEXTS)
    assert [layer.shape for layer in layers] == [(3, 16), (3, 16), (3, 16), (3, width)]
    np.testing.assert_allclose(layers[-1], expected, atol=1e-5)
    for layer, *alone in zip(layers, *(clip.encode([text]) for text in TEXTS), strict=True):
        np.testing.assert_allclose(layer, np.concatenate(alone), atol=1e-5)
        assert np.abs(layer[0] - layer[1]).max() > 1e-3
    assert clip.vectors.endswith("projected") == (width == 12)


def test_weights_that_may_hold_code_are_not_read(model, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text((model.folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(SentenceModelError, match="weights in other formats may hold code"):
        find_sentence_model(str(tmp_path))


def test_a_predictor_of_clip_vectors_before_the_projection_is_not_used_on_those_after_it(tmp_path):
    stored_clip(tmp_path, "whole")
    texts = [f"{word} {place}" for word in ("dog", "cat", "act") for place in ("a", "b", "c", "d")]
    stack = fit_stack(
        {"text": texts}, np.arange(12.0)[:, None], np.arange(12), np.zeros(12, bool),
        StackConfig(families=("tfidf",), folds=2, heteroscedastic=False),
    )  # fmt: skip
    folder = tmp_path / "predictor"
    PromptPredictor(stack, find_sentence_model(str(tmp_path)), {"": (0.0, 1.0)}).save(folder)
    assert load_prompt_predictor(folder).sentence_model.vectors.endswith("projected")
    card = json.loads((folder / CARD_FILE).read_text())
    del card["sentence_model"]["vectors"]  # as stored before projections were read
    (folder / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="fit the predictor again"):
        load_prompt_predictor(folder)
