"""Encoders and their training objectives. Needs torch, numpy and safetensors, and timm for ResNets."""

from cytolake.models.build import build_encoder, new_encoder
from cytolake.models.checkpoints import CheckpointError, load_encoder, model_id, save_encoder
from cytolake.models.config import POOLINGS, ModelConfig
from cytolake.models.crops import CropBatch, collate, standardise
from cytolake.models.encoder import Encoder, VisionTransformer
from cytolake.models.masking import masking_noise
from cytolake.models.resnet import ResNet
from cytolake.models.sizes import SIZES, published_size

__all__ = [
    "POOLINGS",
    "SIZES",
    "CheckpointError",
    "CropBatch",
    "Encoder",
    "ModelConfig",
    "ResNet",
    "VisionTransformer",
    "build_encoder",
    "collate",
    "load_encoder",
    "masking_noise",
    "model_id",
    "new_encoder",
    "published_size",
    "save_encoder",
    "standardise",
]
