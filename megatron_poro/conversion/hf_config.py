"""Hugging Face's config.json to a ModelConfig and back. A key that is neither understood nor listed here is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_poro.config.parse import Problems, build
from megatron_poro.config.schema import ModelConfig, head_dim
from megatron_poro.config.validate import find_bad_numbers
from megatron_poro.conversion.files import read_json
from megatron_poro.errors import ConversionError

CONFIG = "config.json"

KEYS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tied_embeddings",
    "initializer_range": "initializer_std",
}
DEFAULTS = {"max_position_embeddings": 2048, "norm_epsilon": 1e-6, "tied_embeddings": False, "initializer_std": 0.02}
"""What transformers' LlamaConfig takes for a key that is absent."""

REQUIRED_VALUES: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0,
    "rope_interleaved": False,
    "is_llama_config": True,
}
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
ROPE_SCALING = {
    "factor": "rope_scaling_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_length",
}
DEFAULT_THETA = 10000.0

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
IGNORED = {
    **dict.fromkeys(TOKEN_IDS, "about text, not weights; carried to exports"),
    "dtype": "the tensors say it themselves",
    "torch_dtype": "the tensors say it themselves",
    "use_cache": "how to generate",
    "pretraining_tp": "slices the same products",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it came from",
    "_attn_implementation_autoset": "which kernel computes attention",
}


def read_config(directory: Path) -> ModelConfig:
    """The model that `directory/config.json` describes, in the style of transformers 4 or 5.

    Raises ConversionError for another architecture, a value that changes the mathematics, or a key not known here.
    """
    path = directory / CONFIG
    config = read_json(path)
    _refuse_other_models(config, path)
    plain = DEFAULTS | {ours: config[theirs] for theirs, ours in KEYS.items() if config.get(theirs) is not None}
    if "num_attention_heads" in plain:
        plain.setdefault("num_key_value_heads", plain["num_attention_heads"])
    plain |= _read_rope(config, path)
    problems = Problems()
    model = build(ModelConfig, plain, path.name, problems)
    if model is not None:
        problems.extend(find_bad_numbers(model, path.name))
    if model is None or problems:
        raise ConversionError(f"{path}: {'; '.join(problems)}")
    return with_default_head_dim(model)


def read_token_ids(directory: Path) -> dict[str, Any]:
    """The special token ids of `directory/config.json`."""
    config = read_json(directory / CONFIG)
    return {key: config.get(key) for key in TOKEN_IDS}


def ignored_keys(directory: Path) -> dict[str, str]:
    """The keys of `directory/config.json` that a conversion passes over, each with the reason."""
    return {key: reason for key, reason in IGNORED.items() if key in read_json(directory / CONFIG)}


def to_huggingface(model: ModelConfig, token_ids: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a model.

    Rotary keys are in the style of transformers 4, which 5 reads too; 4 would pass over the style of 5 without a word.
    """
    return {
        "architectures": REQUIRED_VALUES["architectures"],
        "model_type": REQUIRED_VALUES["model_type"],
        **{theirs: getattr(model, ours) for theirs, ours in KEYS.items()},
        "head_dim": head_dim(model),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rope_theta": model.rope_theta,
        "rope_scaling": _rope_scaling(model),
        **{key: token_ids.get(key) for key in TOKEN_IDS},
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _refuse_other_models(config: dict[str, Any], path: Path) -> None:
    if "model_type" not in config:
        raise ConversionError(f"{path} has no model_type; only llama is converted")
    for key, required in REQUIRED_VALUES.items():
        if config.get(key) not in (None, required):
            raise ConversionError(f"{path}: {key} is {config[key]!r}; only {required!r} is converted")
    known = {*KEYS, *REQUIRED_VALUES, *ROPE_KEYS, *IGNORED}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ConversionError(f"{path}: unknown keys {', '.join(unknown)}, which may change the model; remove them if they do not")


def _read_rope(config: dict[str, Any], path: Path) -> dict[str, Any]:
    tables = [config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    if len(tables) > 1 or not all(isinstance(table, dict) for table in tables):
        raise ConversionError(f"{path}: give rope_parameters or rope_scaling, as one table; remove what does not hold")
    rope = dict(tables[0]) if tables else {}
    theta = _read_theta(config.get("rope_theta"), rope.pop("rope_theta", None), path)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    if kind == "default" and not rope:
        return {"rope_theta": theta}
    if kind != "llama3":
        raise ConversionError(f"{path}: rotary scaling {kind} {rope} is not supported; only llama3 and default are")
    rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    if set(rope) != set(ROPE_SCALING):
        raise ConversionError(f"{path}: rotary scaling llama3 has {', '.join(sorted(rope))}; it needs {', '.join(ROPE_SCALING)}")
    return {"rope_theta": theta} | {ours: rope[theirs] for theirs, ours in ROPE_SCALING.items()}


def _read_theta(outside: object, inside: object, path: Path) -> object:
    if outside is not None and inside is not None and outside != inside:
        raise ConversionError(f"{path}: rope_theta is both {outside} and {inside}; remove the one that does not hold")
    found = inside if outside is None else outside
    return DEFAULT_THETA if found is None else found


def _rope_scaling(model: ModelConfig) -> dict[str, Any] | None:
    if model.rope_scaling_factor == 1:
        return None
    return {"rope_type": "llama3"} | {theirs: getattr(model, ours) for theirs, ours in ROPE_SCALING.items()}


def with_default_head_dim(model: ModelConfig) -> ModelConfig:
    """0 instead of an explicit head size that is the default, as the presets have it."""
    explicit = model.head_dim * model.num_attention_heads != model.hidden_size
    return model if explicit or not model.head_dim else replace(model, head_dim=0)
