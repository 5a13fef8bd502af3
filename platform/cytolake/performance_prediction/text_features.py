"""Frozen features of a prompt's text: words it uses, how long it is, and what a sentence model makes of it.

N texts, L layers of a sentence model, D values of a layer (of CLIP, the last can have another width).

A sentence model is a folder in the Hugging Face layout (`config.json`, `tokenizer.json`, safetensors weights), or an
installed package that carries one. It is read from disk only, run by `transformers`, and never trained here. As with
images, the layer that predicts best is often not the last, so the mean of token vectors is taken of every layer. CLIP's
text encoder is one too: its projected end token, which CLIP compares with images, is one layer more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

SURFACE = ("words", "characters", "word_length", "commas", "digits", "capitals")
"""What `surface` counts, in order."""
WEIGHTS = "model.safetensors"
CLIP = ("clip", "clip_text_model")
PROJECTION = "text_projection.weight"
MAX_TOKENS = 77
"""Longer prompts are cut, as CLIP's text encoder and with it most generators do."""


class SentenceModelError(ValueError):
    """A sentence model that cannot be used; the text says what was looked for."""


def surface(texts: list[str]) -> NDArray[np.float64]:
    """(N, 6) counts that need no vocabulary; see `SURFACE`."""
    rows = []
    for text in texts:
        words = text.split()
        letters = max(sum(map(len, words)), 1)
        rows.append(
            (
                len(words),
                len(text),
                letters / max(len(words), 1),
                text.count(","),
                sum(c.isdigit() for c in text) / letters,
                sum(c.isupper() for c in text) / letters,
            )
        )
    return np.array(rows, dtype=float).reshape(len(texts), len(SURFACE))


@dataclass(frozen=True, slots=True)
class SentenceModel:
    """A sentence model on disk and what identifies it."""

    name: str
    """A path or a package."""
    folder: Path
    digest: str
    """SHA-256 of its weights: two machines with one digest give the same vectors."""

    @property
    def vectors(self) -> str:
        """What its vectors are: a predictor fitted on others of the same weights can't be used."""
        _, model, projection = _load(str(self.folder))
        if model.config.model_type not in CLIP:
            return "means of tokens"
        return "means of tokens, end token" + (" projected" if projection is not None else "")

    def encode(self, texts: list[str], minibatch_size: int = 128) -> list[Vectors]:
        """The vectors of each layer, of unit length: L arrays of (N, D) float32.

        They are the means of token vectors after the embedding layer and after each block. Of CLIP the last is the end
        token after the final norm and `text_projection`, the vector that CLIP compares with images; of a text half
        that is stored without its projection, before it.

        Texts are sorted by length first, so little is padded; what comes out is in the order given.
        """
        import torch

        tokenizer, model, projection = _load(str(self.folder))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        pieces: list[list[Vectors]] = []
        with torch.inference_mode():
            for start in range(0, len(texts), minibatch_size):
                batch = [texts[i] for i in order[start : start + minibatch_size]]
                tokens = tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
                found = model(**tokens, output_hidden_states=True)
                is_token = tokens["attention_mask"][:, :, None].to(found.hidden_states[0].dtype)
                layers = [(layer * is_token).sum(1) / is_token.sum(1) for layer in found.hidden_states]
                if model.config.model_type in CLIP:
                    end = found.pooler_output
                    layers.append(end if projection is None else end @ projection.to(end.dtype).T)
                pieces.append([torch.nn.functional.normalize(each, dim=-1).float().numpy() for each in layers])
        if not pieces:
            return [np.zeros((0, 1), dtype=np.float32)]
        back = np.argsort(order)
        return [np.concatenate(layer)[back] for layer in zip(*pieces, strict=True)]


def find_sentence_model(name: str) -> SentenceModel:
    """The sentence model in a folder or in an installed package.

    Args:
        name: Path of a folder that holds `config.json`, or the import name of a package that carries such a folder.

    Raises:
        SentenceModelError: Neither; weights that are no safetensors; or `transformers` is not installed.
    """
    if find_spec("transformers") is None:
        raise SentenceModelError(
            f"sentence model {name}: the package transformers is not installed. Install cytolake with its extra `text`."
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        spec = find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise SentenceModelError(
                f"sentence model {name}: no such folder, and no package of that name is installed."
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.rglob(WEIGHTS), key=lambda path: len(path.parts))
    found = [path for path in found if (path.parent / "config.json").is_file()]
    if not found:
        raise SentenceModelError(
            f"sentence model {name}: no config.json next to a {WEIGHTS} in {folder}. Expected a model in the Hugging "
            "Face layout; weights in other formats may hold code and are not read."
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    return SentenceModel(name, found[0].parent, digest)


@lru_cache(maxsize=2)
def _load(folder: str) -> tuple[Any, Any, Any]:
    """Tokenizer, model, and CLIP's (P, D) projection of texts where the weights hold one."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel
    from transformers.utils import logging

    # It reports at length that the pooling head, which is not used, is left out.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    how = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    if AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type not in CLIP:
        return tokenizer, AutoModel.from_pretrained(folder, add_pooling_layer=False, **how).eval(), None
    model = CLIPTextModel.from_pretrained(folder, **how).eval()
    # Of the file itself: transformers would make up a projection at random where there is none.
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as weights:
        projection = weights.get_tensor(PROJECTION) if PROJECTION in weights.keys() else None  # noqa: SIM118
    return tokenizer, model, projection
