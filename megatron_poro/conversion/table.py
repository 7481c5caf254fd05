"""Which Hugging Face tensors make which Megatron tensor: one table, read in both directions.

Every entry is an interleaving: its parts (q, k, v; gate and up; or one tensor alone) are cut into groups of rows
and written group by group. Merge and split are therefore exact inverses and change no bit.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_poro.config.schema import ModelConfig, head_dim

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One Megatron tensor and the Hugging Face tensors it is made of, first axis after first axis.

    `parts` maps each Hugging Face name to the names of its axes (`sizes`). With `{layer}` in the names, the Megatron
    tensor stacks all layers on an extra leading axis. `by_group` cuts the parts into one group per key/value head.
    """

    megatron: str
    parts: Mapping[str, tuple[str, ...]]
    by_group: bool = False

    @property
    def stacked(self) -> bool:
        """True when the tensor holds all layers."""
        return any("{layer}" in name for name in self.parts)


TABLE = (
    Row("embedding.word_embeddings.weight", {"model.embed_tokens.weight": ("vocab", "hidden")}),
    Row(
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        {"model.layers.{layer}.input_layernorm.weight": ("hidden",)},
    ),
    Row(
        "decoder.layers.self_attention.linear_qkv.weight",
        {
            "model.layers.{layer}.self_attn.q_proj.weight": ("query", "hidden"),
            "model.layers.{layer}.self_attn.k_proj.weight": ("key_value", "hidden"),
            "model.layers.{layer}.self_attn.v_proj.weight": ("key_value", "hidden"),
        },
        by_group=True,
    ),
    Row(
        "decoder.layers.self_attention.linear_proj.weight",
        {"model.layers.{layer}.self_attn.o_proj.weight": ("hidden", "query")},
    ),
    Row(
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
        {"model.layers.{layer}.post_attention_layernorm.weight": ("hidden",)},
    ),
    Row(
        "decoder.layers.mlp.linear_fc1.weight",
        {
            "model.layers.{layer}.mlp.gate_proj.weight": ("ffn", "hidden"),
            "model.layers.{layer}.mlp.up_proj.weight": ("ffn", "hidden"),
        },
    ),
    Row("decoder.layers.mlp.linear_fc2.weight", {"model.layers.{layer}.mlp.down_proj.weight": ("hidden", "ffn")}),
    Row("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}),
    Row("output_layer.weight", {"lm_head.weight": ("vocab", "hidden")}),
)

OUTPUT_LAYER = "output_layer.weight"

DROPPED_FROM_HUGGINGFACE = {
    "model.layers.*.self_attn.rotary_emb.inv_freq": "computed from rope_theta and head_dim",
    "model.rotary_emb.inv_freq": "computed from rope_theta and head_dim",
}
DROPPED_IF_TIED = {"lm_head.weight": "the embedding again"}
DROPPED_FROM_MEGATRON = {
    "optimizer.*": "optimizer state of a training checkpoint",
    "*._extra_state*": "FP8 scaling history of Transformer Engine; empty in other precisions",
}
"""Names that hold no weight of ours, with the reason; they are left unread."""


@dataclass(frozen=True)
class Piece:
    """The unit that is converted and held in memory: a row of the table, of one layer where the row is stacked."""

    row: Row
    layer: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Hugging Face names of the parts."""
        return tuple(name.format(layer=self.layer) for name in self.row.parts)

    def shapes(self, model: ModelConfig) -> tuple[Shape, ...]:
        """Shapes of the parts, as Hugging Face stores them."""
        size = sizes(model)
        return tuple(tuple(size[axis] for axis in axes) for axes in self.row.parts.values())

    def merge(self, parts: Sequence[torch.Tensor], model: ModelConfig) -> torch.Tensor:
        """The Megatron tensor (of this layer) from its parts; one part alone is passed through."""
        return interleave(parts, self._num_groups(model))

    def split(self, merged: torch.Tensor, model: ModelConfig) -> tuple[torch.Tensor, ...]:
        """The parts of a Megatron tensor; the inverse of `merge`."""
        return deinterleave(merged, [shape[0] for shape in self.shapes(model)], num_groups=self._num_groups(model))

    def merged_shape(self, model: ModelConfig) -> Shape:
        """Shape of the Megatron tensor of this layer."""
        shapes = self.shapes(model)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def global_shape(self, model: ModelConfig) -> Shape:
        """Shape of the whole Megatron tensor, with its leading layer axis where it has one."""
        return ((model.num_layers,) if self.row.stacked else ()) + self.merged_shape(model)

    def _num_groups(self, model: ModelConfig) -> int:
        return model.num_key_value_heads if self.row.by_group else 1


def sizes(model: ModelConfig) -> dict[str, int]:
    """Sizes of the axes that the table names."""
    return {
        "vocab": model.vocab_size,
        "hidden": model.hidden_size,
        "ffn": model.ffn_hidden_size,
        "query": model.num_attention_heads * head_dim(model),
        "key_value": model.num_key_value_heads * head_dim(model),
    }


def pieces(model: ModelConfig) -> Iterator[Piece]:
    """All pieces of a model: embedding, layer by layer, final norm, and the output layer unless it is tied."""
    stacked = [row for row in TABLE if row.stacked]
    yield Piece(TABLE[0])
    for layer in range(model.num_layers):
        yield from (Piece(row, layer) for row in stacked)
    for row in TABLE[1:]:
        if not row.stacked and not (row.megatron == OUTPUT_LAYER and model.tied_embeddings):
            yield Piece(row)


def interleave(parts: Sequence[torch.Tensor], num_groups: int) -> torch.Tensor:
    """Group 0 of every part, then group 1 of every part, ...: `parts` [rows, ...] -> [sum of rows, ...]."""
    if len(parts) == 1:
        return parts[0]
    grouped = [part.reshape(num_groups, -1, *part.shape[1:]) for part in parts]  # [group, rows of a group, ...]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def deinterleave(merged: torch.Tensor, rows: Sequence[int], *, num_groups: int) -> tuple[torch.Tensor, ...]:
    """Undo `interleave`: [sum of rows, ...] -> parts with the given numbers of rows."""
    grouped = merged.reshape(num_groups, -1, *merged.shape[1:])  # [group, rows of a group, ...]
    parts = torch.split(grouped, [count // num_groups for count in rows], dim=1)
    return tuple(part.flatten(0, 1) for part in parts)


def is_dropped(name: str, patterns: Mapping[str, str]) -> bool:
    """True when a table of dropped names has `name`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
