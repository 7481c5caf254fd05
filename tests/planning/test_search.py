"""The search: what it finds fits, divides and is fastest."""

import time

import pytest

from megatron_poro.errors import LayoutError
from megatron_poro.planning.memory import memory_of_stages
from megatron_poro.planning.search import ALIKE, CONTEXTS, candidates, rank_layouts, why_it_loses
from megatron_poro.planning.times import step_time
from megatron_poro.topology import Layout
from tests.planning.jobs import job, machine

LIMIT = 64 * 2**30


def test_every_layout_fits_and_uses_all_devices():
    ranking = rank_layouts(job(Layout()), machine(), 1024, limit_bytes=LIMIT)
    for each in ranking.fitting:
        assert each.job.layout.world_size == 1024
        assert max(stage.total for stage in memory_of_stages(each.job)) <= LIMIT
        assert each.job.num_microbatches * each.job.layout.data * each.job.micro_batch_size == 512


def test_the_winner_is_as_fast_as_any_and_the_next_are_said_to_lose():
    lumi = machine()
    ranking = rank_layouts(job(Layout()), lumi, 1024, limit_bytes=LIMIT)
    winner = ranking.fitting[0]
    fastest = min(each.time.seconds for each in ranking.fitting)
    assert winner.time.seconds <= fastest * (1 + ALIKE)
    assert winner.time == step_time(winner.job, lumi)
    assert all(why_it_loses(winner, each) for each in ranking.fitting[1:])


def test_the_8b_on_8_nodes_gets_the_layout_that_poro_2_used():
    winner = rank_layouts(job(Layout(), shape="llama3.1-8b"), machine(), 64, limit_bytes=LIMIT).fitting[0]
    assert winner.job.layout == Layout(2, 1, 32)


def test_2048_devices_take_seconds():
    began = time.process_time()
    rank_layouts(job(Layout()), machine(), 2048, limit_bytes=LIMIT, contexts=CONTEXTS)
    assert time.process_time() - began < 10


def test_a_context_axis_is_used_only_where_it_is_asked_for():
    few = {each.layout.context for each in candidates(job(Layout()), machine(), 512, contexts=(1,))}
    many = {each.layout.context for each in candidates(job(Layout()), machine(), 512, contexts=CONTEXTS)}
    assert (few, many) == ({1}, {1, 2, 4, 8})


def test_what_fits_nowhere_is_said_with_the_numbers():
    with pytest.raises(LayoutError, match=r"no layout fits: the smallest, TP8 .* GB of 68.7; use more nodes"):
        rank_layouts(job(Layout()), machine(), 8, limit_bytes=LIMIT)
    with pytest.raises(LayoutError, match="no layout divides 7 devices"):
        rank_layouts(job(Layout()), machine(), 7, limit_bytes=LIMIT)
