"""Megatron-LM's arguments, which its checkpoints carry, to a ModelConfig and back."""

import argparse
from typing import Any

import torch

from megatron_poro.config.parse import Problems, build
from megatron_poro.config.schema import ModelConfig, head_dim
from megatron_poro.config.validate import find_bad_numbers
from megatron_poro.conversion.hf_config import with_default_head_dim
from megatron_poro.conversion.safe_pickle import fields
from megatron_poro.errors import ConversionError

KEYS = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "norm_epsilon",
    "rotary_base": "rope_theta",
    "init_method_std": "initializer_std",
}
"""What is the same under another name. An argument that an older Megatron-LM did not have has the default of ModelConfig."""

REQUIRED: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "position_embedding_type": ("rope",),
    "add_bias_linear": (False,),
    "add_qkv_bias": (False, None),
    "rotary_percent": (1.0, None),
    "rotary_interleaved": (False, None),
    "rotary_seq_len_interpolation_factor": (1, None),
    "apply_layernorm_1p": (False, None),
    "qk_layernorm": (False, None),
    "num_experts": (0, None),
    "multi_latent_attention": (False, None),
    "window_size": (None,),
    "no_rope_freq": (None,),
    "mtp_num_layers": (0, None),
    "hybrid_layer_pattern": (None,),
    "softmax_scale": (None,),
    "attention_output_gate": (False, None),
}
"""Arguments that change the mathematics, with the values under which the model is a Llama."""

_FIRST_REQUIRED = ("normalization", "swiglu", "position_embedding_type", "add_bias_linear")
_SCALING = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_original_length": 8192}
"""What Megatron-LM's --use-rope-scaling implies; only the factor is an argument, 8 before it became one."""


def read_args(args: Any, *, vocab_size: int, where: object) -> ModelConfig:
    """The model that a checkpoint's arguments describe; they know only the padded vocabulary, hence `vocab_size`.

    Raises ConversionError naming each argument that is no Llama's or missing.
    """
    given = fields(args)
    wrong = [f"{name} is {_show(given.get(name))}" for name, allowed in REQUIRED.items() if given.get(name) not in allowed]
    if wrong:
        raise ConversionError(f"{where}: its arguments describe no Llama: {', '.join(wrong)}; only a Llama is converted")
    given = {name: value for name, value in given.items() if isinstance(value, int | float | str)}
    plain = {ours: given[theirs] for theirs, ours in KEYS.items() if theirs in given}
    plain |= {"vocab_size": vocab_size, "tied_embeddings": not given.get("untie_embeddings_and_output_weights", False)}
    if not given.get("group_query_attention") or "num_key_value_heads" not in plain:
        plain["num_key_value_heads"] = plain.get("num_attention_heads")
    if given.get("use_rope_scaling"):
        plain |= _SCALING | {"rope_scaling_factor": given.get("rope_scaling_factor") or 8.0}
    problems = Problems()
    model: ModelConfig | None = build(ModelConfig, plain, "args", problems)
    if model is not None:
        problems.extend(find_bad_numbers(model, "args"))
    if model is None or problems:
        raise ConversionError(f"{where}: its arguments do not describe a model: {'; '.join(problems)}")
    return with_default_head_dim(model)


def build_args(model: ModelConfig, dtype: torch.dtype, *, tensor: int, pipeline: int, virtual: int) -> argparse.Namespace:
    """The arguments under which Megatron-LM trains this model. Raises ConversionError when it has none for its rope scaling."""
    scaled = model.rope_scaling_factor != 1
    if model.rope_theta != int(model.rope_theta):
        raise ConversionError(f"Megatron-LM's --rotary-base is a whole number, this model has {model.rope_theta}")
    if scaled and any(getattr(model, key) != value for key, value in _SCALING.items()):
        raise ConversionError(
            "Megatron-LM knows llama3 rope scaling only with low_freq_factor 1, high_freq_factor 4 and an original length of 8192; "
            "leave --megatron-lm out and train with poro"
        )
    same = {theirs: getattr(model, ours) for theirs, ours in KEYS.items()}
    return argparse.Namespace(
        **same | {"kv_channels": head_dim(model), "rotary_base": int(model.rope_theta)},
        **{name: REQUIRED[name][0] for name in (*_FIRST_REQUIRED, "add_qkv_bias", "rotary_percent", "rotary_interleaved")},
        group_query_attention=model.num_key_value_heads != model.num_attention_heads,
        use_rope_scaling=scaled,
        rope_scaling_factor=model.rope_scaling_factor if scaled else 8.0,
        untie_embeddings_and_output_weights=not model.tied_embeddings,
        padded_vocab_size=padded_vocab_size(model.vocab_size, tensor),
        seq_length=model.max_position_embeddings,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        num_layers_per_virtual_pipeline_stage=model.num_layers // (pipeline * virtual) if virtual > 1 else None,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        iteration=0,
        consumed_train_samples=0,
        consumed_valid_samples=0,
    )


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Rows of Megatron-LM's embedding: the next multiple of 128 x tensor (its --make-vocab-size-divisible-by)."""
    return -(-vocab_size // (128 * tensor)) * 128 * tensor


def _show(value: object) -> str:
    """A value for a message; what is nested may be without end."""
    return repr(value)[:80] if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
