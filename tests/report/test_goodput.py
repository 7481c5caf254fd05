"""Where the hours of a run went."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.report.goodput import CATEGORIES, Goodput, account, render
from tests.runs import command, poro, write_run, write_tokens

Lines = list[dict[str, Any]]


def write_lines(path: Path, lines: Lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def start(name: str, step: int, *, began: float, time: float, load: float = 1.0, job: str = "", restart: int = 0) -> dict[str, Any]:
    told = {"start": name, "began": began, "load_seconds": load, "job": job, "restart": restart, "world_size": 4}
    return {"event": "start", "step": step, "time": time, **told}


def step(number: int, time: float, *, seconds: float = 1.0, updated: bool = True, stall: float = 0.0) -> dict[str, Any]:
    return {
        "event": "step", "step": number, "time": time, "seconds": seconds, "updated": updated, "save_stall_seconds": stall
    }  # fmt: skip


def account_of(folder: Path, records: Lines, notes: Lines = [], events: Lines = []) -> Goodput:  # noqa: B006
    write_lines(folder / "metrics.jsonl", records)
    if notes:
        write_lines(folder / "slurm" / "elements.jsonl", notes)
    write_lines(folder / "events.jsonl", events)
    return account(folder)


def without_zeros(goodput: Goodput) -> dict[str, float]:
    return {name: round(seconds, 6) for name, seconds in goodput.seconds.items() if round(seconds, 6)}


def test_each_second_of_a_start_is_in_one_category(tmp_path: Path) -> None:
    records = [
        start("a", 0, began=100, time=110, load=2),
        {"event": "validation", "step": 0, "time": 113, "losses": {}, "seconds": 3.0},
        step(1, 115),
        step(2, 117, stall=0.5),
        {"event": "checkpoint", "step": 2, "time": 117.5, "seconds": 0.5},
        step(3, 119, updated=False),
        {"event": "validation", "step": 3, "time": 121, "losses": {}, "seconds": 1.5},
        {"event": "end", "step": 3, "time": 124},
    ]
    goodput = account_of(tmp_path, records)
    assert without_zeros(goodput) == {
        "start-up": 10.0,
        "validation": 4.5,
        "productive steps": 3.5,
        "saving stall": 3.5,
        "skipped": 2.5,
    }
    assert goodput.wall_seconds == 24
    assert sum(goodput.gpu_hours.values()) == pytest.approx(24 * 4 / 3600)


def test_steps_that_a_kill_took_back_and_the_one_that_had_begun_are_lost(tmp_path: Path) -> None:
    records = [
        start("a", 0, began=0, time=5),
        *(step(number, 5 + number) for number in range(1, 7)),
        start("b", 4, began=20, time=24, load=3),
        *(step(number, 24 + number - 4) for number in range(5, 8)),
        {"event": "end", "step": 7, "time": 28},
    ]
    events = [{"event": "failed", "start": "a", "time": 11.5}]
    goodput = account_of(tmp_path, records, events=events)
    assert without_zeros(goodput) == {
        "start-up": 6.0,  # 5 and 20 to 21
        "resume": 3.0,
        "productive steps": 7.0,
        "recomputed steps": 2.5,  # steps 5 and 6, and half a second of the next
        "saving stall": 1.0,
    }
    assert [stay.end - stay.begin for stay in goodput.stays] == [11.5, 8.0]


def test_a_rollback_makes_the_steps_behind_it_lost(tmp_path: Path) -> None:
    records = [
        start("a", 0, began=0, time=1, load=0.0),
        *(step(number, 1 + number, updated=number < 4) for number in range(1, 6)),
        {"event": "start", "step": 3, "time": 8, "left_out": [12, 19]},
        *(step(number, 5 + number) for number in range(4, 6)),
    ]
    assert without_zeros(account_of(tmp_path, records)) == {
        "start-up": 1.0,
        "productive steps": 5.0,
        "recomputed steps": 2.0,
        "resume": 2.0,
    }


def begin(job: str, time: float, restart: int = 0) -> dict[str, Any]:
    return {
        "event": "begin", "job": job, "restart": restart, "time": time, "step": 0, "nodes": ["a"], "devices": 8, "num_events": 0
    }  # fmt: skip


def test_an_array_waits_in_the_queue_hangs_and_fails_before_it_starts(tmp_path: Path) -> None:
    notes = [
        {"event": "launch", "time": 1000},
        begin("7_0", 1100),
        {"event": "end", "job": "7_0", "time": 1200, "code": 70},
        begin("7_1", 1230),
        {"event": "requeue", "job": "7_1", "time": 1240},
        begin("7_1", 1300, restart=1),
        {"event": "end", "job": "7_1", "time": 1330, "code": 0},
    ]
    records = [
        start("x", 0, began=1110, time=1130, job="7_0"),
        step(1, 1150),
        start("y", 0, began=1304, time=1310, job="7_1", restart=1),
        step(1, 1320),
        {"event": "end", "step": 1, "time": 1325},
    ]
    goodput = account_of(tmp_path, records, notes, [{"event": "hang", "start": "x", "time": 1195}])
    assert without_zeros(goodput) == {
        "queued": 190.0,  # 100, 30, 60
        "start-up": 30.0 + 10.0 + 10.0 + 5.0,
        "recomputed steps": 20.0,  # the hang's step was not saved
        "productive steps": 10.0,
        "saving stall": 5.0,
        "hang": 50.0,
    }
    assert goodput.gpu_hours["queued"] == 0
    assert goodput.gpu_hours["hang"] == pytest.approx(50 * 8 / 3600)


def test_a_run_killed_twice_accounts_for_every_second_that_a_clock_beside_it_counted(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    changes = {"training": {"steps": 30}, "parallel": {"tensor": 2}, "checkpoint": {"save_every_steps": 4}}
    path = write_run(tmp_path / "run.toml", changes)
    metrics = tmp_path / "run" / "metrics.jsonl"
    walls = []
    for wanted in (7, 17, None):
        began = time.monotonic()
        process = subprocess.Popen(command("train", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while wanted and f'"step", "step": {wanted},' not in (metrics.read_text() if metrics.exists() else ""):
            assert process.poll() is None
            time.sleep(0.01)
        if wanted:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=300)
        walls.append(time.monotonic() - began)
    told = json.loads(poro("goodput", path, "--json").stdout)
    seconds = told["seconds"]
    assert list(seconds) == list(CATEGORIES)
    assert sum(seconds.values()) == pytest.approx(told["wall_seconds"])
    assert len(told["starts"]) == 3
    assert all(
        told["starts"][n]["end"] - told["starts"][n]["begin"] == pytest.approx(wall, abs=1.0) for n, wall in enumerate(walls)
    )
    assert all(seconds[name] > 0 for name in ("start-up", "resume", "productive steps", "recomputed steps", "validation"))
    assert 0 < told["goodput"] < 1
    table = poro("goodput", tmp_path / "run").stdout
    assert render(account(tmp_path / "run")) + "\n" == table


def test_a_folder_without_a_start_is_refused(tmp_path: Path) -> None:
    assert "no start is noted there" in poro("goodput", tmp_path, code=2).stderr
