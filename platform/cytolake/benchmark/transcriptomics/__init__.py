"""Benchmark of embeddings of perturbation screens: six tasks for transcriptomics or any other modality."""

from cytolake.benchmark.transcriptomics.benchmark import SCHEMA, difference, score_embeddings, scores_table
from cytolake.benchmark.transcriptomics.config import TASKS, TranscriptomicsConfig, few_rows
from cytolake.benchmark.transcriptomics.decoder import DecoderConfig
from cytolake.benchmark.transcriptomics.embeddings import BUILT_IN, EmbeddingConfig, ScviConfig
from cytolake.benchmark.transcriptomics.screen import ScreenSpec

__all__ = [
    "BUILT_IN",
    "SCHEMA",
    "TASKS",
    "DecoderConfig",
    "EmbeddingConfig",
    "ScreenSpec",
    "ScviConfig",
    "TranscriptomicsConfig",
    "difference",
    "few_rows",
    "score_embeddings",
    "scores_table",
]
