"""config.json as each generation of Llama has it, with the sizes of a miniature."""

import json
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 259,
    "torch_dtype": "float32",
    "use_cache": True,
}
LATER: dict[str, Any] = {"attention_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA3: dict[str, Any] = {
    **SIZES,
    **LATER,
    "bos_token_id": 250,
    "eos_token_id": 251,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.40.0.dev0",
}
LLAMA31: dict[str, Any] = {
    **LLAMA3,
    "mlp_bias": False,
    "max_position_embeddings": 131072,
    "rope_scaling": LLAMA3_SCALING,
    "transformers_version": "4.43.0.dev0",
}
GENERATIONS: dict[str, dict[str, Any]] = {
    "Llama 2 7B": {
        **SIZES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.31.0.dev0",
    },
    "Llama 3 8B": LLAMA3,
    "Llama 3.1 8B": LLAMA31,
    "Llama 3.1 8B Instruct": {**LLAMA31, "eos_token_id": [251, 252, 253]},
    "Llama 3.2 1B": {
        **LLAMA31,
        "head_dim": 8,
        "rope_scaling": {**LLAMA3_SCALING, "factor": 32.0},
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0.dev0",
    },
    "Llama 3.3 70B": {**LLAMA31, "num_key_value_heads": 1, "eos_token_id": [251, 252, 253], "transformers_version": "4.47.0.dev0"},
}


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    """A directory of this config.json alone."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory
