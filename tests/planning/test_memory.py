"""Memory of a rank: monotone, and as published logs and papers have it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.planning.job import Job, Method, Shape
from megatron_poro.planning.memory import chunks_in_flight, layer_activation_bytes, memory_of_stages, stage_memory
from megatron_poro.topology import Layout
from tests.planning.jobs import job, llama

GPT_22B = Shape(
    num_layers=48,
    hidden_size=6144,
    ffn_hidden_size=4 * 6144,
    num_heads=64,
    num_kv_heads=64,
    head_dim=96,
    vocab_size=51200,
    gated=False,
)


def gpt(layout: Layout, method: Method) -> Job:
    return Job(shape=GPT_22B, layout=layout, sequence_length=2048, micro_batch_size=4, global_batch_size=4, method=method)


@pytest.mark.parametrize(
    ("tensor", "method", "factor"),
    [
        (1, Method(sequence_parallel=False), 34.0),
        (1, Method(sequence_parallel=False, fused_attention=False), 34 + 5 * 64 * 2048 / 6144),
        (8, Method(sequence_parallel=False), 10 + 24 / 8),
        (8, Method(sequence_parallel=True), 34 / 8),
    ],
)
def test_activations_of_a_gpt_layer_are_korthikantis(tensor, method, factor):
    # arXiv 2205.05198, table 2: factors of s b h
    assert layer_activation_bytes(gpt(Layout(tensor), method)) == pytest.approx(factor * 2048 * 4 * 6144)


def test_a_llama_layer_keeps_33_5_sbh():
    # 281 MB a layer and microbatch of the 70B at TP8
    assert layer_activation_bytes(job()) == pytest.approx(33.5 * 8192 * 8192 / 8, rel=0.002)
    assert layer_activation_bytes(job()) / 1e6 == pytest.approx(281, abs=1)


def test_the_first_stage_of_the_target_holds_what_was_derived_for_it():
    # TP8 x PP8, micro-batch 1: 22.5 GB of activations without virtual stages, 26.4 with five; 7.7 GB static at DP32
    plain, interleaved = stage_memory(job(), 0), stage_memory(job(Layout(8, 8, 16, 5)), 0)
    assert plain.activations / 1e9 == pytest.approx(22.5, abs=0.05)
    assert interleaved.activations / 1e9 == pytest.approx(26.4, abs=0.6)  # 47 chunks here, 46.8 by Korthikanti's 1 + (p-1)/(pv)
    assert stage_memory(job(Layout(8, 8, 32)), 0).static / 1e9 == pytest.approx(7.7, abs=0.05)


def test_chunks_in_flight_fall_from_stage_to_stage():
    assert [chunks_in_flight(job(), stage) for stage in range(8)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert chunks_in_flight(job(batch=32), 0) == 2  # only two microbatches
    virtual = job(Layout(8, 8, 16, 5))
    assert [chunks_in_flight(virtual, stage) for stage in (0, 7)] == [47, 33]


def test_logits_are_on_the_last_stage():
    stages = memory_of_stages(job())
    assert [each.logits > 0 for each in stages] == [False] * 7 + [True]
    assert stages[-1].logits / 1e9 == pytest.approx(0.53 + 0.26, abs=0.01)


LAYOUTS = st.builds(
    Layout,
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
)


@given(LAYOUTS, st.sampled_from(["none", "full"]))
def test_memory_grows_with_the_microbatch_and_falls_with_more_ranks(layout, recompute):
    one = job(layout, recompute=recompute)
    first = stage_memory(one, 0)
    assert stage_memory(replace(one, micro_batch_size=2), 0).activations > 1.5 * first.activations
    assert stage_memory(replace(one, sequence_length=16384), 0).total > first.total
    for more in (replace(layout, tensor=2 * layout.tensor), replace(layout, data=2 * layout.data)):
        assert stage_memory(job(more, recompute=recompute), 0).static < first.static
    if layout.pipeline > 1:
        assert all(a.activations >= b.activations for a, b in zip(*_neighbours(one), strict=True))


def _neighbours(one: Job):
    stages = memory_of_stages(one)
    return stages[:-1], stages[1:]


def test_recomputing_everything_keeps_the_layers_inputs():
    # 1.34 GB for 8 microbatches x 10 layers, and one layer that is computed again
    kept = stage_memory(job(recompute="full"), 0).activations / 1e9
    assert kept == pytest.approx(1.34 + 0.28, abs=0.01)


def test_more_parameters_need_more():
    assert stage_memory(job(shape="llama3.1-8b"), 0).total < stage_memory(job(), 0).total
    assert llama("llama3.1-8b").num_layers == 32
