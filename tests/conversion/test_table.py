"""The mapping table, in both directions."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.config import ModelConfig, head_dim
from megatron_poro.conversion.table import TABLE, Piece, pieces
from tests.conversion.llamas import LLAMA, merge


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Any small Llama: grouped or not, tied or not, with or without a head size of its own."""
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    head = 2 * draw(st.integers(1, 4))
    own_head = draw(st.booleans())
    heads = groups * per_group
    return ModelConfig(
        num_layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 9)) if own_head else heads * head,
        ffn_hidden_size=draw(st.integers(1, 9)),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head if own_head else 0,
        vocab_size=draw(st.integers(1, 9)),
        tied_embeddings=draw(st.booleans()),
    )


@given(models())
def test_runs_take_each_row_of_each_part_to_one_row_of_the_whole(model: ModelConfig) -> None:
    for piece in pieces(model):
        merged = [run.merged_row + n for run in piece.runs(model) for n in range(run.num_rows)]
        assert merged == list(range(piece.merged_shape(model)[0]))
        parts = [(run.part, run.part_row + n) for run in piece.runs(model) for n in range(run.num_rows)]
        assert sorted(parts) == [(part, n) for part, shape in enumerate(piece.shapes(model)) for n in range(shape[0])]


@given(models())
def test_query_heads_of_a_group_stand_before_its_key_and_value(model: ModelConfig) -> None:
    head, groups = head_dim(model), model.num_key_value_heads
    per_group = model.num_attention_heads // groups
    qkv = next(row for row in TABLE if row.by_group)
    # Every row holds the number of its head: queries from 0, keys from 1000, values from 2000.
    parts = [
        (start + torch.arange(count)).repeat_interleave(head)[:, None].expand(-1, model.hidden_size)
        for start, count in ((0, groups * per_group), (1000, groups), (2000, groups))
    ]
    merged = merge(Piece(qkv), parts, model)
    expected = []
    for group in range(groups):
        expected += [group * per_group + n for n in range(per_group)] + [1000 + group, 2000 + group]
    assert merged[::head, 0].tolist() == expected


def test_gate_rows_stand_before_up_rows() -> None:
    fc1 = next(row for row in TABLE if "mlp.linear_fc1.weight" in row.megatron)
    gate, up = torch.zeros(48, 32), torch.ones(48, 32)
    merged = merge(Piece(fc1), [gate, up], LLAMA)
    assert merged[:48].eq(0).all()
    assert merged[48:].eq(1).all()


def test_a_tied_model_has_no_output_layer() -> None:
    names = [name for piece in pieces(replace(LLAMA, tied_embeddings=True)) for name in piece.names]
    assert "lm_head.weight" not in names
    assert len(names) == 1 + 9 * LLAMA.num_layers + 1


def test_every_tensor_of_a_layer_occurs_once() -> None:
    names = [name for piece in pieces(LLAMA) for name in piece.names]
    assert len(names) == len(set(names)) == 2 + 9 * LLAMA.num_layers + 1
