"""Benchmark of embeddings of perturbation screens: six tasks, transcriptomics or any other modality."""

from cytolake.benchmark.transcriptomics.benchmark import (
    SCHEMA,
    TASKS,
    BenchmarkConfig,
    benchmark_embeddings,
    difference,
    few_rows,
    score_embeddings,
)
from cytolake.benchmark.transcriptomics.embeddings import BUILT_IN, EmbeddingConfig, ScviConfig
from cytolake.benchmark.transcriptomics.reconstruction import DecoderConfig
from cytolake.benchmark.transcriptomics.screen import ScreenSpec

__all__ = [
    "BUILT_IN",
    "SCHEMA",
    "TASKS",
    "BenchmarkConfig",
    "DecoderConfig",
    "EmbeddingConfig",
    "ScreenSpec",
    "ScviConfig",
    "benchmark_embeddings",
    "difference",
    "few_rows",
    "score_embeddings",
]
