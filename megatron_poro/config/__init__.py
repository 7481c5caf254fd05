"""Run files: strict frozen dataclasses from one TOML plus `section.key=value` overrides. Loads no torch."""

from megatron_poro.config.load import load_run, recipes, save_run, shapes
from megatron_poro.config.schema import (
    RANDOM,
    CheckpointConfig,
    DataConfig,
    DpoConfig,
    ModelConfig,
    ObserveConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SftConfig,
    SourceConfig,
    StageConfig,
    TrainingConfig,
    ValidationConfig,
    head_dim,
)

__all__ = [
    "RANDOM",
    "CheckpointConfig",
    "DataConfig",
    "DpoConfig",
    "ModelConfig",
    "ObserveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RunConfig",
    "SftConfig",
    "SourceConfig",
    "StageConfig",
    "TrainingConfig",
    "ValidationConfig",
    "head_dim",
    "load_run",
    "recipes",
    "save_run",
    "shapes",
]
