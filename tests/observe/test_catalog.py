"""The catalog of metrics: complete, and what docs/metrics.md says."""

from pathlib import Path

import pytest

from megatron_poro.config import ModelConfig
from megatron_poro.observe import read_records
from megatron_poro.observe.catalog import METRICS, numbers_of
from megatron_poro.observe.flops import flops_per_token, peak_tflops
from megatron_poro.observe.reference import render_metrics
from tests.runs import poro, write_run, write_tokens

BESIDE = {"event", "step", "time", "path", "ledger", "data", "forward", "products"}
"""Keys of records that are no metrics."""


def test_the_page_is_made_from_the_catalog() -> None:
    assert (Path(__file__).parents[2] / "docs" / "metrics.md").read_text() == render_metrics(), "run `make docs`"


def test_names_are_unique_and_each_says_what_it_is() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert len({(metric.event, metric.key) for metric in METRICS}) == len(METRICS)
    assert all(metric.meaning and metric.source for metric in METRICS)


def test_every_number_of_a_run_is_in_the_catalog_and_every_metric_is_written(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    changes = {
        "parallel": {"tensor": 2, "data": 2},
        "training": {"validate_every_steps": 4},
        "observe": {"parameter_norm_every_steps": 4},
        "faults": {"straggler_every_steps": 8},
    }
    poro("train", write_run(tmp_path / "run.toml", changes))
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    events = {metric.event for metric in METRICS}
    assert events == {record["event"] for record in records} - {"start", "end", "stragglers"}
    known = {(metric.event, metric.key) for metric in METRICS}
    written = {(record["event"], key) for record in records if record["event"] in events for key in record if key not in BESIDE}
    assert written | {("step", "device_memory_bytes")} == known  # which a CPU has not
    names = {name for record in records for name in numbers_of(record)}
    assert {"train/loss", "loss_by_source/fi", "tokens_by_source/en", "validation_loss/fi", "time/forward", "speed/data"} <= names


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Something Else", None),
    ],
)
def test_peaks_are_found_by_the_drivers_names(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_flops_of_llama_3_1_70b_are_those_that_megatron_prints() -> None:
    model = ModelConfig(
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    flops = flops_per_token(model, 8192)
    # Megatron-LM's formula since March 2025 and before, in GFLOP: see the sources in flops.py.
    assert (flops.causal / 1e9, flops.full / 1e9) == pytest.approx((449.2, 481.4), abs=0.05)
