import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.errors import LayoutError
from megatron_poro.topology import (
    Coordinates,
    Layout,
    build_layout,
    layers_of,
    locate_rank,
    microbatch_samples,
    padded_vocab_size,
    rank_at,
    sequence_chunks,
)

SIZES = st.integers(1, 8)
LAYOUTS = st.builds(Layout, tensor=SIZES, pipeline=SIZES, data=SIZES, virtual_stages=st.integers(1, 4), context=st.integers(1, 4))


@given(LAYOUTS)
def test_every_rank_has_its_own_place_and_back(layout: Layout) -> None:
    places = [locate_rank(rank, layout) for rank in range(layout.world_size)]
    assert len(set(places)) == layout.world_size
    assert [rank_at(place, layout) for place in places] == list(range(layout.world_size))


def test_tensor_ranks_are_neighbours_and_pipeline_ranks_are_furthest_apart() -> None:
    layout = Layout(tensor=2, pipeline=2, data=2)
    assert locate_rank(1, layout) == Coordinates(data=0, pipeline=0, tensor=1)
    assert locate_rank(2, layout) == Coordinates(data=1, pipeline=0, tensor=0)
    assert locate_rank(4, layout) == Coordinates(data=0, pipeline=1, tensor=0)
    layout = Layout(tensor=2, pipeline=2, data=2, context=2)
    assert locate_rank(2, layout) == Coordinates(data=0, pipeline=0, tensor=0, context=1)
    assert locate_rank(4, layout) == Coordinates(data=1, pipeline=0, tensor=0)
    assert locate_rank(8, layout) == Coordinates(data=0, pipeline=1, tensor=0)


@given(SIZES)
def test_context_ranks_hold_every_chunk_once_and_causal_attention_costs_them_the_same(size: int) -> None:
    held = [sequence_chunks(rank, size) for rank in range(size)]
    assert sorted(chunk for pair in held for chunk in pair) == list(range(2 * size))
    assert len({sum(pair) for pair in held}) == 1


@given(LAYOUTS, st.integers(1, 4))
def test_stages_and_chunks_hold_every_layer_exactly_once(layout: Layout, size: int) -> None:
    num_layers = size * layout.pipeline * layout.virtual_stages
    held = [
        layer
        for chunk in range(layout.virtual_stages)
        for stage in range(layout.pipeline)
        for layer in layers_of(stage, chunk, num_layers, layout)
    ]
    assert held == list(range(num_layers))


def test_layers_that_do_not_divide_are_refused_with_both_numbers() -> None:
    with pytest.raises(LayoutError, match=r"num_layers \(5\).*= 2 chunks"):
        layers_of(0, 0, 5, Layout(pipeline=2))


def test_the_data_axis_takes_what_tensor_and_pipeline_leave() -> None:
    assert build_layout(8, 8, 1, world_size=1024).data == 16
    assert build_layout(8, 8, 1, world_size=1024, context=4).data == 4
    with pytest.raises(LayoutError, match=r"parallel.tensor \(8\) x parallel.pipeline \(6\) = 48 does not divide world size 64"):
        build_layout(8, 6, 1, world_size=64)
    with pytest.raises(
        LayoutError, match=r"x parallel.context \(3\) = 48 does not divide .* / parallel.pipeline / parallel.context"
    ):
        build_layout(8, 2, 1, world_size=64, context=3)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_llama_3_needs_no_padding_rows(tensor: int) -> None:
    assert padded_vocab_size(128256, tensor) == 128256


def test_a_vocabulary_is_padded_to_the_next_multiple() -> None:
    assert padded_vocab_size(257, 4) == 260


@given(num_ranks=SIZES, size=SIZES, num_microbatches=SIZES, first=st.integers(0, 10**9))
def test_the_ranks_microbatches_together_are_the_step(num_ranks: int, size: int, num_microbatches: int, first: int) -> None:
    read = [
        sample
        for microbatch in range(num_microbatches)
        for rank in range(num_ranks)
        for sample in microbatch_samples(first, microbatch, size, (rank, num_ranks))
    ]
    assert read == list(range(first, first + num_ranks * size * num_microbatches))
