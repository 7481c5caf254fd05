"""The numbers of a step beside its loss, against what they are computed from."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_poro.config import load_run
from megatron_poro.config.duration import duration_of
from megatron_poro.data import TrainingData, ledger_at
from megatron_poro.observe import Record, read_metrics
from megatron_poro.observe.flops import flops_per_token
from tests.runs import poro, write_llama, write_run, write_tokens

LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "TP2 x PP2 x DP2": {"tensor": 2, "pipeline": 2, "data": 2},
    "DP2 x CP2": {"data": 2, "context": 2},
    "PP2 with 2 virtual stages": {"pipeline": 2, "virtual_stages": 2},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokens(folder)
    write_llama(folder / "hf")
    poro("convert", "to-megatron", folder / "hf", folder / "start")
    return folder


def train(inputs: Path, name: str, **changes: Any) -> tuple[Path, list[Record]]:
    run = inputs / name
    path = write_run(inputs / f"{name}.toml", {"run_directory": str(run), "checkpoint": {"initial": "start"}, **changes})
    poro("train", path)
    return path, [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == "step"]


def losses_by_hand(inputs: Path, path: Path) -> tuple[dict[str, list[float]], torch.nn.Module]:
    """Mean loss of each sequence of the run's first step by source, from transformers."""
    config = load_run(path)
    model = LlamaForCausalLM.from_pretrained(inputs / "hf", dtype=torch.float64)
    data = TrainingData(config.data)
    numbers = range(duration_of(config).samples_before(1))
    found: dict[str, list[float]] = {}
    for row, source in zip(data.samples(numbers), data.sources_of(numbers).tolist(), strict=True):
        tokens = torch.from_numpy(row.astype("int64"))
        with torch.no_grad():
            logits = model(tokens[None, :-1]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, tokens[1:]).item()
        found.setdefault(config.data.sources[source].name, []).append(loss)
    data.close()
    return found, model


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_by_source_are_those_of_the_sources_own_sequences(name: str, inputs: Path) -> None:
    changes = {"parallel": LAYOUTS[name], "training": {"steps": 3}, "observe": {"parameter_norm_every_steps": 1}}
    path, steps = train(inputs, f"run{list(LAYOUTS).index(name)}", **changes)
    by_hand, _ = losses_by_hand(inputs, path)
    assert len(by_hand) == 2
    # The engine computes in fp32, the model by hand in fp64.
    assert steps[0]["losses"] == pytest.approx({name: sum(losses) / len(losses) for name, losses in by_hand.items()}, rel=2e-6)
    counts = {name: len(losses) for name, losses in by_hand.items()}
    for step in steps[:1]:
        whole = sum(step["losses"][name] * counts[name] for name in counts) / sum(counts.values())
        assert step["loss"] == pytest.approx(whole, rel=1e-12)


def test_the_norm_of_the_weights_is_that_of_the_exported_model_on_every_layout(inputs: Path) -> None:
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        changes = {"parallel": layout, "training": {"steps": 3}, "observe": {"parameter_norm_every_steps": 3}}
        _, steps = train(inputs, f"norm{number}", **changes)
        assert ["parameter_norm" in step for step in steps] == [False, False, True], name
        checkpoint = inputs / f"norm{number}" / "checkpoints" / "step_00000003"
        out = inputs / f"norm{number}-hf"
        poro("convert", "to-hf", checkpoint, out, "--reference", inputs / "hf")
        weights = LlamaForCausalLM.from_pretrained(out, dtype=torch.float64).state_dict()
        by_hand = math.sqrt(sum(float(weight.square().sum()) for weight in weights.values()))
        assert steps[-1]["parameter_norm"] == pytest.approx(by_hand, rel=1e-9), name


def test_tokens_by_source_are_the_ledgers_and_the_rates_follow_from_the_seconds(inputs: Path) -> None:
    path, steps = train(inputs, "rates", parallel={"tensor": 2, "data": 2}, training={"steps": 5})
    config = load_run(path)
    data = TrainingData(config.data)
    flops = flops_per_token(config.model, config.data.sequence_length)
    start = next(record for record in read_metrics(inputs / "rates" / "metrics.jsonl") if record["event"] == "start")
    assert start["world_size"] == 4
    assert start["flops_per_token"] == {"causal": flops.causal, "full": flops.full}
    for step in steps:
        ledger = ledger_at(data.order, step["samples"])
        assert step["source_tokens"] == {entry.name: entry.tokens for entry in ledger.sources}
        assert sum(step["source_tokens"].values()) == step["tokens"]
        rate = 8 * 64 / step["seconds"]
        assert step["tokens_per_second_per_device"] == pytest.approx(rate / 4)
        assert step["model_tflops_per_device"] == pytest.approx(rate / 4 * flops.causal / 1e12)
        assert step["mfu"] == pytest.approx(step["model_tflops_per_device"] / start["peak_tflops"])
        assert step["mfu_full_attention"] / step["mfu"] == pytest.approx(flops.full / flops.causal)
        assert step["host_memory_bytes"] > 1e8
        assert 0 < step["data_wait_seconds"] < step["seconds"]
        parts = step["phase_seconds"]
        assert all(parts[name] > 0 for name in ("data", "forward", "backward", "gradients", "optimizer"))
        assert sum(parts.values()) - parts["checking"] <= step["seconds"] * 1.5
    data.close()
