"""In real runs: a flipped bit ends the run and nothing is saved after it, and a slow rank is named."""

from pathlib import Path
from typing import Any

from megatron_poro.engine.paths import list_checkpoints, read_state
from megatron_poro.errors import WEIGHTS_CODE
from megatron_poro.observe import read_metrics
from tests.runs import losses_of, poro
from tests.training.guarded import assert_gone, events, finish, pids_of, run_file, start


def test_a_flipped_bit_in_one_of_three_copies_is_found_before_it_is_saved(inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes: dict[str, dict[str, Any]] = {
        "parallel": {"data": 3},
        "training": {"steps": 12, "global_batch_size": 6, "precision": "bf16"},
        "checkpoint": {"initial": str(inputs / "start"), "save_every_steps": 4, "asynchronous": False},
        "faults": {"weight_hash_every_steps": 3},
    }
    said = finish(start(run_file(tmp_path, inputs, **changes), "flip@rank=1,step=6"), WEIGHTS_CODE)
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert "step 6: weights" in errors[0]
    assert "rank 1 on" in errors[1]
    assert "ranks 0, 2 agree" in errors[1]
    assert len(errors) == 3
    assert [read_state(path)["step"] for path in list_checkpoints(run)] == [4]
    assert max(losses_of(run)) == 6
    (event,) = events(run, "failed")
    assert (event["kind"], event["code"]) == ("weights", WEIGHTS_CODE)
    assert_gone(pids_of(run))
    poro("train", tmp_path / "run.toml")
    assert sorted(losses_of(run)) == list(range(1, 13))


def test_a_flipped_bit_is_found_before_a_checkpoint_whatever_the_interval(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, parallel={"data": 2}, faults={"weight_hash_every_steps": 1000})
    said = finish(start(path, "flip@rank=0,step=4"), WEIGHTS_CODE)
    assert "no majority" in said
    assert list_checkpoints(tmp_path / "run") == []


def test_a_slow_rank_is_named_with_host_and_device(inputs: Path, tmp_path: Path) -> None:
    faults, run = {"straggler_every_steps": 10, "straggler_percent": 150.0}, tmp_path / "run"
    path = run_file(tmp_path, inputs, parallel={"tensor": 2}, training={"steps": 20}, faults=faults)
    said = finish(start(path, "slow@rank=1,step=11,phase=data,factor=6"), 0)
    assert "warning: slow: rank 1 on" in said
    assert "(cpu)" in said
    records = [record for record in read_metrics(run / "metrics.jsonl") if record["event"] in ("speed", "stragglers")]
    assert [record["step"] for record in records if record["event"] == "speed"] == [10, 20]
    named = [(one["rank"], one["measure"]) for record in records if record["event"] == "stragglers" for one in record["ranks"]]
    assert (1, "products") in named
    assert 0 not in [rank for rank, _ in named]
