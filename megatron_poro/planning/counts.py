"""Parameters and FLOPs of a shape, by formula: the products one by one. `exact.py` counts parameters on the real model."""

from megatron_poro.observe.flops import FlopsPerToken
from megatron_poro.planning.job import Job, Shape, layers_of_stage
from megatron_poro.topology import padded_vocab_size


def layer_weights(shape: Shape) -> int:
    """Weights of one layer's matrices: query, key, value, output projection, feed-forward part."""
    attention = shape.hidden_size * shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    return attention + (3 if shape.gated else 2) * shape.hidden_size * shape.ffn_hidden_size


def total_parameters(shape: Shape) -> int:
    """Parameters of the model, without the vocabulary's padding; norms have one vector, biases are not counted."""
    vocabulary = shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)
    return shape.num_layers * (layer_weights(shape) + 2 * shape.hidden_size) + shape.hidden_size + vocabulary


def rank_parameters(job: Job, stage: int) -> int:
    """Parameters that a rank of a pipeline stage holds: matrices are cut over the tensor axis, norms are not.

    A tied output layer has a copy of the embedding on the last stage, when that is not the first.
    """
    shape, layout = job.shape, job.layout
    vocabulary = padded_vocab_size(shape.vocab_size, layout.tensor) * shape.hidden_size // layout.tensor
    layers = layers_of_stage(job, stage) * (layer_weights(shape) // layout.tensor + 2 * shape.hidden_size)
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    copies = is_first + (is_last and not (shape.tied and is_first))
    return layers + copies * vocabulary + (shape.hidden_size if is_last else 0)


def attention_flops(shape: Shape, sequence_length: int) -> float:
    """Forward FLOPs of scores and values of one token in one layer without a mask: 4 x heads x head size x positions."""
    return 4.0 * shape.num_heads * shape.head_dim * sequence_length


def model_flops(shape: Shape, sequence_length: int) -> FlopsPerToken:
    """Forward and backward FLOPs of a token, in both conventions of `observe.flops`; recomputation is counted in neither."""
    weights = shape.num_layers * layer_weights(shape) + shape.vocab_size * shape.hidden_size
    attention = 3 * shape.num_layers * attention_flops(shape, sequence_length)
    return FlopsPerToken(6.0 * weights + attention / 2, 6.0 * weights + attention)


def hardware_flops(shape: Shape, sequence_length: int, recompute: str) -> float:
    """FLOPs of a token with full attention and what is recomputed: the convention of Narayanan 2021 (HFU)."""
    once_more = {"full": 1 / 3, "none": 0.0}.get(recompute, 0.0)
    model = model_flops(shape, sequence_length).full
    layers = model - 6.0 * shape.vocab_size * shape.hidden_size
    return (
        model + once_more * layers + (shape.num_layers * attention_flops(shape, sequence_length) if recompute == "selective" else 0)
    )
