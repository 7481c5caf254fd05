"""The live view: what it says, that it fits, and that it follows."""

import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest

from megatron_poro.report.watch import describe_ranks, draw_curve
from tests.runs import command, poro, write_run, write_tokens

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    write_tokens(folder)
    return write_run(folder / "run.toml", {"training": {"steps": 8}, "parallel": {"tensor": 2}})


def test_one_screen_of_a_run_that_is_over_fits_80_columns(run_file: Path) -> None:
    poro("train", run_file)
    said = poro("watch", run_file, COLUMNS="80").stdout
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("run  done")
    assert "100.0%  step 8 of 8" in lines[1]
    last = [json.loads(line) for line in (run_file.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    loss = next(record["loss"] for record in reversed(last) if record["event"] == "step")
    for wanted in (
        f"loss       {loss:.4f}",
        "held out   fi",
        "by source",
        "MFU",
        "step 8 saved",
        "step 8: done",
    ):
        assert wanted in said
    narrow = poro("watch", run_file, "--once", COLUMNS="60").stdout
    assert max(map(len, narrow.splitlines())) <= 60


def test_a_terminal_is_kept_up_to_date_until_the_run_is_done(run_file: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.toml", {"training": {"steps": 12}})
    path.write_text(
        run_file.read_text().replace('run_directory = "run"', 'run_directory = "live"').replace("steps = 8", "steps = 12")
    )
    path = path.rename(run_file.parent / "live.toml")
    poro("train", path, "--stop-after", "6")
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        command("watch", path, "--every", "0.2"), stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    training = subprocess.Popen(command("train", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shown = b""
    while watching.poll() is None or shown.endswith(b"\n"):
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
    assert training.wait(timeout=300) == 0
    assert watching.wait(timeout=60) == 0
    told = ESCAPES.sub(b"", shown).decode()
    assert "step 6 of 12" in told
    assert "step 12 of 12" in told
    assert told.rstrip().endswith("step 12: done")


def test_ctrl_c_ends_it_well(run_file: Path) -> None:
    path = run_file.with_name("half.toml")
    path.write_text(run_file.read_text().replace('run_directory = "run"', 'run_directory = "half"'))
    poro("train", path, "--stop-after", "3")
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        command("watch", path, "--every", "0.2"), stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    while b"3 of 8" not in shown:
        shown += os.read(ours, 65536)
    time.sleep(0.5)
    os.write(ours, b"")
    watching.send_signal(2)
    assert watching.wait(timeout=60) == 0
    os.close(ours)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "neither launched nor trained" in poro("watch", tmp_path, code=2).stderr
    assert "--every" in poro("watch", tmp_path, "--every", "0", code=2).stderr


def test_ranks_behind_are_named(tmp_path: Path) -> None:
    (tmp_path / "heartbeats").mkdir()
    for rank in range(8):
        beat = {"rank": rank, "host": f"nid{rank}", "step": 40 - (rank == 5), "phase": "forward", "silent_seconds": 3.0}
        (tmp_path / "heartbeats" / f"rank_{rank:05d}.json").write_text(json.dumps(beat))
    (tmp_path / "heartbeats" / "rank_00008.json").write_text('{"rank": 8')  # being written
    assert describe_ranks(tmp_path) == "1 of 8 behind step 40: rank 5 on nid5 at step 39 (forward)"


def test_a_curve_has_its_ends_in_its_corners() -> None:
    lines = [
        line.plain for line in draw_curve([(step, 10.0 - step) for step in range(1, 9)] + [(9, float("nan"))], width=40, height=4)
    ]
    assert len(lines) == 5
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith(" 9.000│⠁") or lines[0].startswith(" 9.000│⠉")
    assert lines[3].startswith(" 2.000│")
    assert lines[3][-1] in "⢀⣀⡀⠠⢠"
    assert lines[4].split() == ["1", "8"]
    assert draw_curve([(1, 2.0)], width=40, height=4) == []
