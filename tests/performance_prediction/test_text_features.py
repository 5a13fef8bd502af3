from __future__ import annotations

import json

import numpy as np
import pytest

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


def test_a_vector_is_the_same_whatever_it_is_encoded_beside(model):
    texts = ["a dog runs", "the cat sleeps on the mat on the mat", "a cat", "dog"]
    together = model.encode(texts)
    assert together.shape == (4, 3, 16)  # the embedding layer, then two blocks
    alone = np.concatenate([model.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode(texts, minibatch_size=1), together, atol=1e-6)


def test_one_text_and_another_differ_in_every_layer(model):
    first, second = model.encode(["a dog runs", "the cat sleeps"])
    assert (np.abs(first - second).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_text_half_of_clip_is_a_sentence_model(tmp_path, is_whole):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdogcts")]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(dict.fromkeys(words))}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    if is_whole:
        config = transformers.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
        transformers.CLIPModel(config).save_pretrained(tmp_path)
    else:
        transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).save_pretrained(tmp_path)
    clip = find_sentence_model(str(tmp_path))
    texts = ["a dog", "a cat and dogs", "cat"]
    together = clip.encode(texts)
    assert together.shape == (3, 4, 16)  # the embedding layer, two blocks, the end token
    np.testing.assert_allclose(together, np.concatenate([clip.encode([text]) for text in texts]), atol=1e-5)
    assert np.abs(together[0] - together[1]).max(axis=-1).min() > 1e-3


def test_weights_that_may_hold_code_are_not_read(model, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text((model.folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(SentenceModelError, match="weights in other formats may hold code"):
        find_sentence_model(str(tmp_path))
