"""Seconds of a layer and of a step: published timings, and how they change with the layout."""

from dataclasses import fields, replace

import pytest

from megatron_poro.planning.job import Job, Method
from megatron_poro.planning.machine import data_rate, neighbour_rate, phase_seconds
from megatron_poro.planning.scaling import parse_span, pays_until, strong_scaling, weak_scaling
from megatron_poro.planning.times import StepTime, data_seconds, layer_work, stage_work, step_time
from megatron_poro.slurm.profile import NAMES, load_profile
from megatron_poro.topology import Layout
from tests.planning.jobs import job, machine
from tests.planning.test_memory import GPT_22B


@pytest.mark.parametrize(
    ("method", "milliseconds"),
    [
        (Method(sequence_parallel=False, fused_attention=False), 19.6),
        (Method(sequence_parallel=True, fused_attention=False), 19.0),
        (Method(sequence_parallel=False, fused_attention=False, recompute="full"), 27.2),
        (Method(sequence_parallel=True, fused_attention=False, recompute="selective"), 20.3),
    ],
)
def test_a_layer_of_22b_takes_what_korthikanti_measured(method, milliseconds):
    # arXiv 2205.05198, table 4: forward and backward on 8 A100, micro-batch 4. Within 20 %: one efficiency for all sizes of product
    one = Job(
        shape=GPT_22B,
        layout=Layout(8),
        sequence_length=2048,
        micro_batch_size=4,
        global_batch_size=4,
        method=method,
    )
    forward, backward = layer_work(one, machine("generic-a100"))
    assert (forward.seconds + backward.seconds) * 1e3 == pytest.approx(milliseconds, rel=0.2)


def test_nccl_all_reduces_on_8_h100_are_as_measured():
    # dgxc-benchmarking, nccl/README.md: bus rates of 237, 295, 362 and 400 GB/s at 16, 32, 64 and 128 MB
    h100 = machine("generic-h100")
    for megabytes, rate in ((16, 237), (32, 295), (64, 362), (128, 400)):
        seconds = 2 * phase_seconds(h100, 8, megabytes * 1e6, rate=h100.node_rate)
        assert 2 * 7 / 8 * megabytes * 1e6 / seconds / 1e9 == pytest.approx(rate, rel=0.1)


def test_a_group_is_as_fast_as_its_slowest_link():
    lumi = machine()
    assert neighbour_rate(lumi, 2) > neighbour_rate(lumi, 8) > neighbour_rate(lumi, 16)
    assert data_rate(lumi, Layout(8, 1, 16)) == 12.5e9  # every rank of a node in a group of its own
    assert data_rate(lumi, Layout(1, 1, 64)) == lumi.node_rate  # all eight in one: the node's links are slower than its way out
    assert data_rate(lumi, Layout(2, 1, 4)) == lumi.node_rate
    assert phase_seconds(lumi, 1, 1e9, rate=1e9) == 0


def test_gradients_hide_behind_the_last_backward_pass_and_no_further():
    lumi, one = machine(), job(Layout(8, 8, 16))
    pair = stage_work(one, lumi)[0]
    open_, hidden = replace(one, method=replace(one.method, overlap_data=False)), data_seconds(one, lumi, 0, pair)
    # 4.8 GB of gradients and 2.4 GB of weights at 12.5 GB/s: 0.58 s if nothing overlaps, less the ring's own 1/16
    assert data_seconds(open_, lumi, 0, pair) == pytest.approx(0.58 * 15 / 16, rel=0.01)
    assert hidden < 0.05
    slow = replace(lumi, network_rate=1e9)
    assert data_seconds(one, slow, 0, pair) > 5


def test_recomputing_costs_a_forward_pass():
    lumi = machine()
    forward, backward = layer_work(job(), lumi)
    assert layer_work(job(recompute="full"), lumi)[1].seconds == pytest.approx(backward.seconds + forward.seconds)


def test_a_step_is_the_sum_of_its_terms_and_none_is_negative():
    for layout in (Layout(8, 8, 16), Layout(8, 8, 16, 5), Layout(2, 1, 512), Layout(8, 2, 16, 1, 4)):
        time = step_time(job(layout), machine())
        terms = [getattr(time, f.name) for f in fields(StepTime)]
        assert min(terms) >= 0
        assert time.seconds == pytest.approx(sum(terms))


def test_virtual_stages_make_the_bubble_smaller_and_better_links_the_step_shorter():
    lumi = machine()
    assert step_time(job(Layout(8, 8, 16, 5)), lumi).bubble == pytest.approx(step_time(job(), lumi).bubble / 5)
    assert step_time(job(), replace(lumi, node_rate=150e9)).tensor < step_time(job(), lumi).tensor


def test_scaling_keeps_the_batch_or_the_microbatches():
    strong, weak = strong_scaling(job(), machine(), (64, 4096)), weak_scaling(job(), machine(), (64, 4096))
    assert [point.devices for point in strong] == [64, 128, 256, 512, 1024, 2048, 4096]
    assert {point.job.global_batch_size for point in strong} == {512}
    assert {point.job.num_microbatches for point in weak} == {32}
    assert weak[-1].efficiency == pytest.approx(1, abs=0.02)
    for point in strong:
        assert sum(point.losses.values()) + point.time.compute / point.time.seconds == pytest.approx(1)


def test_doubling_stops_to_pay_where_the_fixed_cost_is_all_there_is():
    slow = replace(machine(), fixed_seconds=30.0)
    points = strong_scaling(job(), slow, (64, 4096))
    last = pays_until(points)
    assert points[0].devices < last.devices < points[-1].devices
    assert parse_span("64..4096") == (64, 4096)


@pytest.mark.parametrize("name", NAMES)
def test_rates_of_a_cluster_have_their_sources(name):
    hardware = load_profile(name).hardware
    if hardware:
        assert all(hardware.sources)
        said = " ".join(hardware.sources)
        for word in ("memory", "node:", "network:", "latency:", "failures:", "restart:"):
            assert word in said, word
        assert all(each.why and each.source for each in hardware.file_systems)
