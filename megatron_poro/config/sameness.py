"""When two model sections describe the same model: every key that changes what it computes is equal."""

from dataclasses import asdict
from typing import Any

from megatron_poro.config.schema import ModelConfig, head_dim

NOT_MATHEMATICS = ("shape", "max_position_embeddings", "initializer_std")


def differing_keys(first: ModelConfig, second: ModelConfig) -> list[str]:
    """The keys that make two models compute different things, one line each."""
    one, other = _mathematics(first), _mathematics(second)
    return [f"model.{key}: {one[key]} against {other[key]}" for key in one if one[key] != other[key]]


def _mathematics(model: ModelConfig) -> dict[str, Any]:
    keys = asdict(model) | {"head_dim": head_dim(model)}
    if model.rope_scaling_factor == 1:
        keys |= dict.fromkeys(("rope_low_freq_factor", "rope_high_freq_factor", "rope_original_length"))
    return {key: value for key, value in keys.items() if key not in NOT_MATHEMATICS}
