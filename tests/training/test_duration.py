"""A run with its length in tokens, batches that grow, a mix that changes and a wsd schedule, stopped, and resumed elsewhere."""

from pathlib import Path

import pytest

from megatron_poro.config import load_run
from megatron_poro.config.duration import duration_of
from megatron_poro.engine.paths import list_checkpoints, read_state
from megatron_poro.engine.schedule import learning_rate
from megatron_poro.observe import Record, read_metrics
from tests.runs import RUN, poro, write_run

CHANGES = {
    "training": {
        "steps": 0,
        "tokens": 100 * 64,
        "batch_ramp": [{"from_tokens": 40 * 64, "global_batch_size": 12}, {"from_tokens": 60 * 64, "global_batch_size": 16}],
        "validate_at_steps": [2],
        "validation_samples": 4,
    },
    "optimizer": {"schedule": "wsd", "warmup_fraction": 0.0, "warmup_tokens": 1000, "decay_steps": 2, "decay_shape": "sqrt"},
    "checkpoint": {"save_every_steps": 0},
}
BATCHES = [8, 8, 8, 8, 8, 12, 12, 16, 16, 16]


def run_file(folder: Path, inputs: Path) -> Path:
    folder.mkdir(exist_ok=True)
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    stages = [{"from_tokens": 52 * 64, "weights": {"fi": 1.0}}]
    checkpoint = {"initial": str(inputs / "start"), "save_every_steps": 0}
    return write_run(folder / "run.toml", {**CHANGES, "data": {"sources": sources, "stages": stages}, "checkpoint": checkpoint})


def records_of(run: Path, event: str) -> list[Record]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == event]


@pytest.fixture(scope="module")
def straight(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    poro("train", run_file(folder, inputs))
    return folder / "run"


def test_steps_have_the_planned_batches_rates_and_end(straight: Path) -> None:
    config = load_run(straight / "config.toml")
    duration = duration_of(config)
    steps = records_of(straight, "step")
    assert [record["samples"] for record in steps] == [sum(BATCHES[:n]) for n in range(1, 11)]
    assert [record["tokens"] for record in steps] == [64 * sum(BATCHES[:n]) for n in range(1, 11)]
    assert [record["learning_rate"] for record in steps] == [learning_rate(n, duration, config.optimizer) for n in range(10)]
    assert steps[-1]["learning_rate"] == config.optimizer.final_learning_rate


def test_validations_stand_where_they_were_asked_for_with_loss_and_perplexity(straight: Path) -> None:
    validations = records_of(straight, "validation")
    assert [record["step"] for record in validations] == [0, 2, 10]
    for record in validations:
        assert record["perplexities"]["fi"] == pytest.approx(2.718281828 ** record["losses"]["fi"], rel=1e-6)


def test_the_ledger_sees_the_change_of_the_mix(straight: Path) -> None:
    (checkpoint,) = list_checkpoints(straight)
    counts = {source["name"]: source["samples"] for source in read_state(checkpoint)["ledger"]["sources"]}
    total = sum(BATCHES)
    assert counts["fi"] + counts["en"] == total
    assert counts["fi"] == pytest.approx(0.3 * 52 + (total - 52), abs=1)


def test_stopped_in_tokens_and_resumed_on_two_stages_it_goes_on_as_if_never_stopped(
    straight: Path, inputs: Path, tmp_path: Path
) -> None:
    path = run_file(tmp_path, inputs)
    poro("train", path, f"--stop-after={41 * 64}tokens")
    (stopped,) = list_checkpoints(tmp_path / "run")
    assert read_state(stopped)["step"] == 6
    poro("train", path, "parallel.pipeline=2", "training.micro_batch_size=2")
    for left, right in zip(records_of(straight, "step"), records_of(tmp_path / "run", "step"), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=2e-5)  # fp32 sums in another order
        assert right["samples"] == left["samples"]
