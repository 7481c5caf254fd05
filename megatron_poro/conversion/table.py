"""Which Hugging Face tensors make which Megatron tensor: one table, read in both directions.

Every entry is an interleaving: its parts (q, k, v; gate and up; or one tensor alone) are cut into groups of rows
and written group by group. So a conversion moves runs of whole rows and changes no bit, and its inverse moves them back.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megatron_poro.config.schema import ModelConfig, head_dim
from megatron_poro.conversion.arrays import Shape


@dataclass(frozen=True)
class Row:
    """One Megatron tensor and the Hugging Face tensors it is made of, first axis after first axis.

    `parts` maps each Hugging Face name to the names of its axes (`sizes`). With `{layer}` in the names, the Megatron
    tensor stacks all layers on an extra leading axis. `by_group` cuts the parts into one group per key/value head. The ranks of
    a tensor-parallel group share a tensor's rows (each has its share of every part) or columns, or have each the whole.
    """

    megatron: str
    parts: Mapping[str, tuple[str, ...]]
    shared: Literal["rows", "columns", ""]
    by_group: bool = False

    @property
    def stacked(self) -> bool:
        """True when the tensor holds all layers."""
        return any("{layer}" in name for name in self.parts)


TABLE = (
    Row("embedding.word_embeddings.weight", {"model.embed_tokens.weight": ("vocab", "hidden")}, "rows"),
    Row(
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        {"model.layers.{layer}.input_layernorm.weight": ("hidden",)},
        "",
    ),
    Row(
        "decoder.layers.self_attention.linear_qkv.weight",
        {
            "model.layers.{layer}.self_attn.q_proj.weight": ("query", "hidden"),
            "model.layers.{layer}.self_attn.k_proj.weight": ("key_value", "hidden"),
            "model.layers.{layer}.self_attn.v_proj.weight": ("key_value", "hidden"),
        },
        "rows",
        by_group=True,
    ),
    Row(
        "decoder.layers.self_attention.linear_proj.weight",
        {"model.layers.{layer}.self_attn.o_proj.weight": ("hidden", "query")},
        "columns",
    ),
    Row(
        "decoder.layers.mlp.linear_fc1.layer_norm_weight",
        {"model.layers.{layer}.post_attention_layernorm.weight": ("hidden",)},
        "",
    ),
    Row(
        "decoder.layers.mlp.linear_fc1.weight",
        {
            "model.layers.{layer}.mlp.gate_proj.weight": ("ffn", "hidden"),
            "model.layers.{layer}.mlp.up_proj.weight": ("ffn", "hidden"),
        },
        "rows",
    ),
    Row("decoder.layers.mlp.linear_fc2.weight", {"model.layers.{layer}.mlp.down_proj.weight": ("hidden", "ffn")}, "columns"),
    Row("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}, ""),
    Row("output_layer.weight", {"lm_head.weight": ("vocab", "hidden")}, "rows"),
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

    def merged_shape(self, model: ModelConfig) -> Shape:
        """Shape of the Megatron tensor of this layer."""
        shapes = self.shapes(model)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def global_shape(self, model: ModelConfig) -> Shape:
        """Shape of the whole Megatron tensor, with its leading layer axis where it has one."""
        return ((model.num_layers,) if self.row.stacked else ()) + self.merged_shape(model)

    def runs(self, model: ModelConfig) -> Iterator["Run"]:
        """Where the rows of the parts lie in the Megatron tensor: group 0 of every part, then group 1 of every part, ..."""
        num_groups = model.num_key_value_heads if self.row.by_group else 1
        counts = [shape[0] // num_groups for shape in self.shapes(model)]
        merged = 0
        for group in range(num_groups):
            for part, count in enumerate(counts):
                yield Run(part, group * count, merged, count)
                merged += count


class Run(NamedTuple):
    """`num_rows` rows of part number `part`, from its row `part_row` on, are those of the Megatron tensor from `merged_row` on."""

    part: int
    part_row: int
    merged_row: int
    num_rows: int


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


def is_dropped(name: str, patterns: Mapping[str, str]) -> bool:
    """True when a table of dropped names has `name`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
