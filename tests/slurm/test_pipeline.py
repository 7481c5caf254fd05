"""A recipe of steps on a real Slurm: text to tokens, a model in, trained, and out again; what fails stops what comes after."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from megatron_poro.errors import ConfigError
from megatron_poro.slurm.pipeline import load_pipeline
from tests.runs import MODEL, command, write_llama, write_run
from tests.slurm.cluster import Slurm
from tests.slurm.test_examples import write_tokenizer

TOKENIZE = ["data", "tokenize", "text", "--output", "tokens/{index}", "--shard", "{index}/{count}", "--tokenizer", "tokenizer"]
STEPS: list[dict[str, Any]] = [
    {"name": "tokenize", "command": [*TOKENIZE, "--preset", "poro2"], "shares": 2},
    {"name": "merge", "command": ["data", "merge", "tokens/0", "tokens/1", "--output", "tokens/all"], "after": ["tokenize"]},
    {"name": "convert", "command": ["convert", "to-megatron", "llama", "start"]},
    {"name": "train", "run": "run.toml", "nodes": 2, "tasks_per_node": 1, "elements": 2, "after": ["merge", "convert"]},
    {
        "name": "export",
        "command": ["convert", "to-hf", "run/checkpoints/step_00000004", "a model's name", "--reference", "llama"],
        "after": ["train"],
    },
]


def write_pipeline(folder: Path, steps: list[dict[str, Any]] = STEPS) -> Path:
    steps = [{"time": "0:10:00", "memory": "1G", **step} for step in steps]
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps({"directory": "recipe", "cluster": "test", "steps": steps}))
    return path


def write_inputs(folder: Path) -> None:
    write_tokenizer(folder / "tokenizer")
    size = len(json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]) + 8
    (folder / "tokens").mkdir()
    model = {**MODEL, "vocab_size": max(size, 256)}
    write_llama(folder / "llama", model)
    write_run(
        folder / "run.toml",
        {
            "model": model,
            "parallel": {"tensor": 2},
            "data": {"sources": [{"name": "all", "path": "tokens/all", "weight": 1.0}], "validation": []},
            "training": {"steps": 4},
            "checkpoint": {"initial": "start"},
        },
    )


def write_text(folder: Path) -> None:
    (folder / "text").mkdir()
    lines = (json.dumps({"text": f"sanoja ja lauseita, kerran ja toisen {n}"}) + "\n" for n in range(400))
    (folder / "text" / "a.jsonl").write_text("".join(lines))


def states(slurm: Slurm, path: Path) -> dict[str, str]:
    lines = slurm.run(*command("status", path)).stdout.splitlines()
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


def launch_and_wait(slurm: Slurm, path: Path) -> str:
    said = slurm.run(*command("launch", "--pipeline", path)).stdout
    deadline = time.monotonic() + 240
    while slurm.run("squeue", "--noheader", "--user", str(os.getuid()), check=False).stdout.strip():
        assert time.monotonic() < deadline, slurm.run("squeue").stdout
        time.sleep(0.3)
    return said


def test_a_step_that_fails_stops_those_after_it_and_the_next_launch_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    path = write_pipeline(tmp_path)
    launch_and_wait(slurm, path)
    after = states(slurm, path)
    assert after["tokenize"].startswith("failed exit code 2"), after
    assert after["convert"] == "done"
    assert "tokenize must be done before" in after["merge"]
    assert "merge must be done before" in after["train"]
    assert "must be done before" in after["export"]

    write_text(tmp_path)
    said = launch_and_wait(slurm, path)
    assert "convert: done" in said
    logs = "\n".join(log.read_text() for log in sorted(tmp_path.glob("**/logs/*.log")))
    assert set(states(slurm, path).values()) == {"done"}, logs
    assert (tmp_path / "a model's name" / "model.safetensors").exists()
    assert all(line.endswith(": done") for line in slurm.run(*command("launch", "--pipeline", path)).stdout.splitlines())


def test_a_recipe_is_stopped_and_cancelled_as_a_whole(slurm: Slurm, tmp_path: Path) -> None:
    path = write_pipeline(
        tmp_path, [{"name": "first", "command": ["doctor"]}, {"name": "second", "command": ["doctor"], "after": ["first"]}]
    )
    slurm.run("scontrol", "update", "PartitionName=dev-g", "State=DOWN")
    try:
        slurm.run(*command("launch", "--pipeline", path))
        said = slurm.run(*command("stop", path)).stdout.splitlines()
        assert [line.endswith("none was running; 1 element that waited cancelled") for line in said] == [True, True]
        slurm.run(*command("launch", "--pipeline", path))
        said = slurm.run(*command("cancel", path)).stdout.splitlines()
        assert [": 1 element cancelled" in line for line in said] == [True, True]
        told = json.loads(slurm.run(*command("status", "--json", path)).stdout)
        assert [(step["step"], step["state"]) for step in told] == [("first", "failed"), ("second", "failed")]
    finally:
        slurm.run("scontrol", "update", "PartitionName=dev-g", "State=UP")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "a/b", "command": ["doctor"]}, r"steps\[0\]\.name: 'a/b' must be a plain name"),
        ({"name": "..", "command": ["doctor"]}, r"steps\[0\]\.name: '\.\.' must be a plain name"),
        ({"name": "a"}, r"steps\[0\]: give either `command` or `run`"),
        ({"name": "a", "command": ["doctor"], "after": ["b"]}, r"steps\[0\]\.after: 'b' is no earlier step; there are none"),
        ({"name": "a", "command": ["doctor"], "shares": 0}, r"steps\[0\]: shares, attempts and cpus"),
        ({"name": "a", "share": 2}, r"share: unknown key; did you mean 'shares'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(step: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_pipeline(write_pipeline(tmp_path, [step]))
