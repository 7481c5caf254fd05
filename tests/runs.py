"""Tiny runs for tests: token files, a Hugging Face Llama and run files made from fixed numbers, and `poro` as a subprocess."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from data_indexing.writer import IndexedWriter
from megatron_poro.config import ModelConfig
from megatron_poro.config.parse import merge
from megatron_poro.conversion.table import pieces
from megatron_poro.observe import read_metrics
from tests.conversion.llamas import save_llama

REPOSITORY = Path(__file__).parents[1]
MODEL: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 176,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 256,
    "rope_scaling_factor": 8.0,
    "rope_original_length": 32,
}
RUN: dict[str, Any] = {
    "run_directory": "run",
    "model": MODEL,
    "data": {
        "sequence_length": 64,
        "sources": [{"name": "fi", "path": "fi", "weight": 0.3}, {"name": "en", "path": "en", "weight": 0.7}],
        "validation": [{"name": "fi", "source": "fi", "last_sequences": 9}],
    },
    "training": {"steps": 12, "global_batch_size": 8, "precision": "fp32"},
    "optimizer": {"learning_rate": 3e-3, "final_learning_rate": 1e-5, "warmup_fraction": 0.1},
    "checkpoint": {"initial": "random", "save_every_steps": 4},
}


def write_tokens(folder: Path) -> None:
    """Two sources of predictable token walks, the same numbers on every machine."""
    rng = np.random.Generator(np.random.PCG64(0))
    for name in ("fi", "en"):
        with IndexedWriter(folder / name, np.uint16) as writer:
            for length in rng.integers(50, 300, 200):
                walk = rng.integers(0, 256) + np.cumsum(rng.integers(0, 3, length))
                writer.add_document((walk % 256).astype(np.uint16))


def write_llama(folder: Path, model: Mapping[str, Any] = MODEL) -> None:
    """A Hugging Face Llama whose weights are the same numbers on every machine."""
    import torch

    config = ModelConfig(**model)
    rng = np.random.Generator(np.random.PCG64(1))
    tensors = {}
    for piece in pieces(config):
        for name, shape in zip(piece.names, piece.shapes(config), strict=True):
            numbers = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape) * 0.05
            tensors[name] = torch.from_numpy(numbers.astype(np.float32))
    save_llama(folder, config, tensors=tensors)


def write_run(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A run file with `changes` merged over the tiny run."""
    path.write_text(tomli_w.dumps(merge(RUN, changes or {})))
    return path


def poro(*words: str | Path, code: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `poro`; fail the test when the exit code is another than `code`."""
    done = subprocess.run(
        command(*words), capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=300
    )
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return done


def command(*words: str | Path) -> list[str]:
    """The command line of `poro` with these words."""
    return [sys.executable, "-m", "megatron_poro", *map(str, words)]


def losses_of(run_directory: Path) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step that counts."""
    records = read_metrics(run_directory / "metrics.jsonl")
    return {r["step"]: (r["loss"], r["gradient_norm"]) for r in records if r["event"] == "step"}


def ledger_of(checkpoint: Path) -> Any:
    """The ledger that a checkpoint carries."""
    return json.loads((checkpoint / "state.json").read_text())["ledger"]
