"""Encoders and their pretraining objective. Needs torch, numpy and safetensors alone."""

from cytolake.models.augment import flip_rotate
from cytolake.models.checkpoints import CheckpointError, load_encoder, model_id, save_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.crops import CropBatch, collate, standardise
from cytolake.models.encoder import POOLINGS, Encoder
from cytolake.models.mae import MaskedAutoencoder, Reconstruction, build_model
from cytolake.models.masking import masking_noise

__all__ = [
    "POOLINGS",
    "CheckpointError",
    "CropBatch",
    "Encoder",
    "MaskedAutoencoder",
    "ModelConfig",
    "Reconstruction",
    "build_model",
    "collate",
    "flip_rotate",
    "load_encoder",
    "masking_noise",
    "model_id",
    "save_encoder",
    "standardise",
]
