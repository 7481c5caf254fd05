import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_poro.config import ModelConfig
from megatron_poro.conversion import to_huggingface
from megatron_poro.engine.rope import rotary_frequencies


def llama(**changes: float) -> ModelConfig:
    shape = {"num_layers": 1, "hidden_size": 256, "ffn_hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    return ModelConfig(**shape, vocab_size=8, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 10000.0},
        {"rope_scaling_factor": 8.0},
        {"rope_scaling_factor": 32.0, "rope_low_freq_factor": 2.0, "rope_high_freq_factor": 5.0, "rope_original_length": 512},
    ],
)
def test_frequencies_equal_transformers(changes: dict[str, float]) -> None:
    model = llama(**changes)
    theirs = LlamaRotaryEmbedding(LlamaConfig(**to_huggingface(model, {}, torch.float32))).inv_freq
    torch.testing.assert_close(rotary_frequencies(model), theirs, rtol=1e-6, atol=0)
