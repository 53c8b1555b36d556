"""Protocols: what the recipes and stages need from the world. One file, one port, its invariants in its docstring."""

from crucible_train.ports.blob_store import BlobStore
from crucible_train.ports.dataset_store import DatasetStore, SourceInfo, SourceRow
from crucible_train.ports.metrics_logger import (
    METRIC_AREAS,
    Cell,
    LoggedArtifact,
    LoggerUnavailable,
    MetricsLogger,
    Opened,
    RecordedRun,
    RunInfo,
    RunStatus,
)
from crucible_train.ports.sampling import NextTokenScorer, SamplingClient
from crucible_train.ports.tokenizer import Encoded, Tokenizer
from crucible_train.ports.training import ModelInfo, StepOutput, TrainingClient

__all__ = [
    "METRIC_AREAS",
    "BlobStore",
    "Cell",
    "DatasetStore",
    "Encoded",
    "LoggedArtifact",
    "LoggerUnavailable",
    "MetricsLogger",
    "ModelInfo",
    "NextTokenScorer",
    "Opened",
    "RecordedRun",
    "RunInfo",
    "RunStatus",
    "SamplingClient",
    "SourceInfo",
    "SourceRow",
    "StepOutput",
    "Tokenizer",
    "TrainingClient",
]
