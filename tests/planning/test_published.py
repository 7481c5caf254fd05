"""Accuracy on published runs: the fitted numbers are the training half's, and errors on the rest are within the targets."""

import csv
import statistics

import pytest

from megatron_poro.planning import measured_memory, published_runs
from megatron_poro.planning.calibration import A100, FIXED_SECONDS, H100, MI250X, TRAINING
from megatron_poro.planning.counts import model_flops
from megatron_poro.planning.job import Job, Method, Shape
from megatron_poro.planning.times import step_time
from megatron_poro.topology import Layout
from tests.planning.jobs import machine
from tests.shared_data import shared

DGXC = {
    "source": "dgxc-benchmarking v25.04.02",
    "url": "https://github.com/NVIDIA/dgxc-benchmarking/blob/v25.04.02/llama3.1/README.md",
    "gpu": "H100-80",
    "n_gpus": "64",
    "model": "Llama-3.1-70B",
    "layers": "80",
    "hidden": "8192",
    "seq": "8192",
    "tp": "4",
    "pp": "4",
    "vpp": "5",
    "cp": "2",
    "dp": "2",
    "mbs": "1",
    "gbs": "128",
    "recompute": "none",
    "precision": "bf16",
    "tokens_s_gpu": "1118",
}
"""A published row that is in no file here."""


def read(name: str) -> list[dict[str, str]]:
    with shared(f"../docs/{name}").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def absolute(errors) -> list[float]:
    return sorted(abs(error) for error in errors)


@pytest.fixture(scope="module")
def runs():
    return [row for row in read("published_runs.csv") if not published_runs.unusable(row)]


def test_throughput_of_held_out_runs_is_within_10_and_20_percent(runs):
    rows = [row for row in runs if row["precision"] == "bf16" and published_runs.source_key(row) not in TRAINING]
    assert {published_runs.device_of(row) for row in rows} == {"A100", "H100"}
    errors = absolute(published_runs.predict(row, published_runs.machine_of_row(row)).error for row in rows)
    assert statistics.median(errors) < 0.10
    assert errors[round(0.9 * (len(errors) - 1))] < 0.20


def test_the_fitted_numbers_are_those_of_the_training_half(runs):
    training = published_runs.training_sources(runs)
    assert training == set(TRAINING)
    machines = {device: published_runs.machine_of_row({"gpu": device}) for device in ("A100", "H100")}
    chosen = [row for row in runs if published_runs.source_key(row) in training]
    near = [FIXED_SECONDS - 0.05, FIXED_SECONDS, FIXED_SECONDS + 0.05]
    assert published_runs.fit(chosen, machines, near) == (FIXED_SECONDS, {"A100": A100, "H100": H100})


def test_the_mi250x_is_fitted_to_13b_on_lumi():
    # 74.9 TFLOP/s on one node, without pipeline; GPT-3's 13B and 2,048 tokens were taken, the batch matters little there
    shape = Shape(
        num_layers=40,
        hidden_size=5120,
        ffn_hidden_size=20480,
        num_heads=40,
        num_kv_heads=40,
        head_dim=128,
        vocab_size=51200,
        gated=False,
    )
    one = Job(
        shape=shape,
        layout=Layout(1, 1, 8),
        sequence_length=2048,
        micro_batch_size=1,
        global_batch_size=256,
        method=Method(sequence_parallel=False),
    )
    full = model_flops(shape, 2048).full
    tflops = full * one.step_tokens / step_time(one, machine()).seconds / 8 / 1e12
    assert tflops == pytest.approx(74.9, rel=0.01)
    assert machine().efficiency == MI250X


def test_mi250x_rows_are_inside_the_bracket():
    rows = [row for row in read("published_runs.csv") if published_runs.device_of(row) == "MI250X"]
    found = [(row, verdict) for row in rows if (verdict := published_runs.in_bracket(row))]
    outside = [row["n_gpus"] for row, (rate, low, high) in found if not low <= rate <= high]
    assert len(found) == 6
    assert outside == ["5120"]  # torchtitan, fully sharded over more devices than it was stable on; half its runs failed


def test_memory_of_dense_rows_is_within_8_percent():
    rows = [row for row in read("megatron_measured_memory.csv") if not measured_memory.unusable(row)]
    errors = absolute(measured_memory.predicted_gb(row) / float(row["mem_max_gb"]) - 1 for row in rows)
    assert len(rows) > 200
    assert statistics.median(errors) < 0.08


def test_a_row_of_another_file_is_predicted():
    assert not published_runs.unusable(DGXC)
    assert abs(published_runs.predict(DGXC, published_runs.machine_of_row(DGXC)).error) < 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": "TPU v4"}, "TPU v4: not calibrated"),
        ({"precision": "fp8"}, "fp8: not bf16 or fp16"),
        ({"source": "MaxText"}, "not of Megatron's family"),
        ({"mbs": "", "gbs": "?"}, "incomplete layout: no mbs, gbs"),
        ({"dp": "4"}, "tp x pp x cp x dp = 128, but 64 devices"),
        ({"gbs": "127"}, "dp x mbs = 2 does not divide gbs"),
        ({"tokens_s_gpu": ""}, "no throughput"),
        ({"layers": ""}, "the model's shape is not known"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(change, reason):
    assert reason in published_runs.unusable(DGXC | change)


def test_the_data_axis_follows_where_it_is_not_given():
    row = DGXC | {"dp": ""}
    assert published_runs.job_of_row(row).layout.data == 2


@pytest.mark.parametrize(
    ("notes", "tokens"),
    [("full-attn", 1.0), ("causal", 481.4 / 449.2), ("TF counts the recomputed forward (HFU)", 0.75)],
)
def test_tflops_are_turned_by_the_convention_that_the_notes_name(notes, tokens):
    row = DGXC | {"tokens_s_gpu": "", "tflops_per_gpu": "481.4", "recompute": "full", "notes": notes}
    job = published_runs.job_of_row(row)
    assert published_runs.measured_tokens(row, job) / 1000 == pytest.approx(tokens, rel=0.02)
