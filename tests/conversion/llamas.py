"""Small random Llamas as Hugging Face directories, written with the safetensors library."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_poro.config import ModelConfig
from megatron_poro.conversion.hf_config import to_huggingface
from megatron_poro.conversion.table import Piece, pieces

LLAMA = ModelConfig(
    num_layers=3,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=511,
    max_position_embeddings=128,
    rope_scaling_factor=8.0,
    rope_low_freq_factor=1.0,
    rope_high_freq_factor=4.0,
    rope_original_length=32,
)
UNSCALED = replace(LLAMA, rope_scaling_factor=1.0)


def random_tensors(model: ModelConfig = LLAMA, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All tensors of a model by Hugging Face name."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: torch.randn(shape, generator=generator).mul(0.1).to(dtype)
        for piece in pieces(model)
        for name, shape in zip(piece.names, piece.shapes(model), strict=True)
    }


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the numbers of a tensor."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def merge(piece: Piece, parts: Sequence[torch.Tensor], model: ModelConfig) -> torch.Tensor:
    """The Megatron tensor of a piece (of one layer) from its parts."""
    return torch.cat([parts[run.part][run.part_row : run.part_row + run.num_rows] for run in piece.runs(model)])


def save_llama(
    directory: Path,
    model: ModelConfig = LLAMA,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a directory of one file; `config` overrides keys of config.json, None removes one."""
    directory.mkdir(parents=True)
    tensors = dict(random_tensors(model) if tensors is None else tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    keys = to_huggingface(model, {"bos_token_id": 3, "eos_token_id": [4, 5]}, torch.float32) | dict(config or {})
    keys = {key: value for key, value in keys.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(keys))
    return directory


def save_sharded(directory: Path, model: ModelConfig = LLAMA) -> Path:
    """Write a directory of two shards and their index."""
    tensors = random_tensors(model)
    save_llama(directory, model, tensors={})
    (directory / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, directory / shard)
    places = {name: shard for shard, held in shards.items() for name in held}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory
