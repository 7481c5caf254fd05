"""Model FLOPs of a token, in the two conventions that published numbers use, and what devices can do at most.

Both count what the forward and the backward pass need, 6 for each weight that a token meets in a product; neither counts what
recomputation does twice. They differ in attention: `causal` counts the half of it that a causal mask leaves (Megatron-LM since
March 2025, Megatron-Bridge), `full` all of it (Megatron-LM before, PaLM, NeMo 24). For Llama 3.1 70B at 8,192 tokens that is 7 %.
"""

from dataclasses import dataclass

from megatron_poro.config import ModelConfig, head_dim

PEAKS = {
    "MI250X": 191.5,
    "MI300X": 1307.4,
    "MI325X": 1307.4,
    "MI355X": 2516.6,
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H200": 989.4,
    "GH200": 989.4,
    "B200": 2250.0,
    "GB200": 2500.0,
}
"""Dense bf16 TFLOP/s of a device, from its maker's data sheet; of an MI250X one of the two GCDs that are devices to a program."""


@dataclass(frozen=True)
class FlopsPerToken:
    """Forward and backward FLOPs of one token, `causal` and `full`."""

    causal: float
    full: float


def flops_per_token(model: ModelConfig, sequence_length: int) -> FlopsPerToken:
    """Of a token in a sequence of that length. Source: the products of the model, one by one.

    Six times the weights of a layer's projections, feed-forward part and of the output; and in attention, for scores and values,
    12 x heads x head size x positions that a token sees.
    """
    query = model.num_attention_heads * head_dim(model)
    key_value = 2 * model.num_key_value_heads * head_dim(model)
    layer = model.hidden_size * (2 * query + key_value) + 3 * model.hidden_size * model.ffn_hidden_size
    products = 6.0 * (model.num_layers * layer + model.vocab_size * model.hidden_size)
    attention = 12.0 * model.num_layers * query * sequence_length
    return FlopsPerToken(products + attention / 2, products + attention)


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak of a device by the name that its driver gives it, in TFLOP/s; None for one that is not known."""
    names = [name for name in PEAKS if all(word in device_name for word in name.split())]
    return PEAKS[max(names, key=len)] if names else None
