"""Encoders and what trains them. Needs torch, numpy and safetensors alone."""

from cytolake.models.checkpoints import CheckpointError, load_encoder, model_id, save_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.crops import CropBatch, collate, standardise
from cytolake.models.encoder import POOLINGS, Encoder, build_encoder
from cytolake.models.masking import masking_noise
from cytolake.models.sizes import SIZES, published_size

__all__ = [
    "POOLINGS",
    "SIZES",
    "CheckpointError",
    "CropBatch",
    "Encoder",
    "ModelConfig",
    "build_encoder",
    "collate",
    "load_encoder",
    "masking_noise",
    "model_id",
    "published_size",
    "save_encoder",
    "standardise",
]
