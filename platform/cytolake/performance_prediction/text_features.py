"""Frozen features of a prompt's text: surface counts, and vectors of a sentence model.

A sentence model is a folder in the Hugging Face layout (`config.json`, `tokenizer.json`, safetensors weights), or an
installed package with such a folder. It is read from disk only, run by `transformers`, and not trained. As with images,
the best layer is often not the last, so there is a mean of token vectors for every layer. CLIP's text encoder has one
more layer: its projected end token, which CLIP compares with images.

Shapes: N texts, L layers of a sentence model, D values of a layer (the last layer of CLIP can have another width).
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
"""Columns of `surface`, in order."""
WEIGHTS = "model.safetensors"
CLIP = ("clip", "clip_text_model")
PROJECTION = "text_projection.weight"
MAX_TOKENS = 77
"""Most tokens; longer prompts are cut, as by CLIP's text encoder and most generators."""


class SentenceModelError(ValueError):
    """A sentence model that cannot be used; the text has the searched place."""


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
    """A sentence model on disk, and its identity."""

    name: str
    """Path or package."""
    folder: Path
    digest: str
    """SHA-256 of the weights: equal digests give equal vectors on two machines."""

    @property
    def vectors(self) -> str:
        """Kind of the vectors; a predictor fitted on another kind cannot be used."""
        _, model, projection = _load(str(self.folder))
        if model.config.model_type not in CLIP:
            return "means of tokens"
        return "means of tokens, end token" + (" projected" if projection is not None else "")

    def encode(self, texts: list[str], minibatch_size: int = 128) -> list[Vectors]:
        """Unit vectors of each layer: L arrays of (N, D) float32.

        They are the means of token vectors after the embedding layer and after each block. The last one of CLIP is the
        end token after the final norm and `text_projection`, the vector that CLIP compares with images; for a text
        encoder that is stored without its projection, the end token before it.

        Texts are encoded in the order of their length, with little padding; the output is in the input order.
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
        name: Path of a folder with `config.json`, or the import name of a package with such a folder.

    Raises:
        SentenceModelError: No such folder or package; weights that are not safetensors; `transformers` is not
            installed.
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

    # Without this it reports that the unused pooling head is missing.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    how = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    if AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type not in CLIP:
        return tokenizer, AutoModel.from_pretrained(folder, add_pooling_layer=False, **how).eval(), None
    model = CLIPTextModel.from_pretrained(folder, **how).eval()
    # From the file itself: transformers initialises a missing projection at random.
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as weights:
        projection = weights.get_tensor(PROJECTION) if PROJECTION in weights.keys() else None  # noqa: SIM118
    return tokenizer, model, projection
