"""Runs with a fault on purpose, and what is left of them: shared by the tests of hangs, failures and comparisons."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.runs import RUN, command, write_run

PATIENCE_SECONDS = 180


def run_file(folder: Path, inputs: Path, **changes: Mapping[str, Any]) -> Path:
    """A tiny run from the inputs' checkpoint; `changes` are sections."""
    folder.mkdir(exist_ok=True)
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    same = {"data": {"sources": sources}, "checkpoint": {"initial": str(inputs / "start"), "save_every_steps": 4}}
    return write_run(folder / "run.toml", {**same, **changes})


def start(path: Path, fault: str = "", **environment: str) -> "subprocess.Popen[str]":
    """Start `poro train` with a fault."""
    variables = {**os.environ, "PORO_FAULT": fault, **environment}
    return subprocess.Popen(command("train", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def finish(process: "subprocess.Popen[str]", code: int) -> str:
    """What a run wrote to stderr; it must end with `code`."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{err}"
    return err


def pids_of(run: Path) -> list[int]:
    """Process ids of the ranks, from their published heartbeats."""
    return [json.loads(path.read_text())["pid"] for path in sorted((run / "heartbeats").glob("rank_*.json"))]


def assert_gone(pids: list[int]) -> None:
    """No process of the run is left."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived the run"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The run's events of one kind."""
    lines = (run / "events.jsonl").read_text().splitlines() if (run / "events.jsonl").is_file() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]
