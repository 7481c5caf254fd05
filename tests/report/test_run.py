"""What is said of a run: its state, what happened to it, its ledger, its chain of proofs."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.errors import PoroError
from megatron_poro.report.goodput import Goodput, Stay
from megatron_poro.report.ledger import find_ledger
from megatron_poro.report.proofs import find_chain
from megatron_poro.report.run import Run, load, marks_of, state_of
from megatron_poro.report.sections import show_goodput
from tests.report.synthetic import RESTART_EVERY, write_synthetic
from tests.report.test_series import start, trained, write
from tests.runs import poro, write_run, write_tokens


def run_of(folder: Path, *written: dict[str, Any], events: tuple[dict[str, Any], ...] = ()) -> Run:
    folder.mkdir(exist_ok=True)
    write(folder / "metrics.jsonl", *written)
    write(folder / "events.jsonl", *events)
    return load(folder, "run")


def failed(time: float, message: str = "no luck") -> dict[str, Any]:
    return {"event": "failed", "kind": "bug", "rank": 3, "host": "node7", "code": 1, "message": message, "time": time}


def ended(step: int, by: str) -> dict[str, Any]:
    return {"event": "end", "step": step, "time": float(step), "stopped_by": by}


def test_a_run_says_what_became_of_it(tmp_path: Path) -> None:
    steps = [start(0), *trained(1, 2)]
    assert state_of(run_of(tmp_path / "r", *steps), now=60.0) == "running"
    assert state_of(run_of(tmp_path / "r", *steps), now=1e6) == "ended without a word"
    assert state_of(run_of(tmp_path / "r", *steps, ended(2, "SIGUSR1")), now=60.0) == "stopped by SIGUSR1"
    assert state_of(run_of(tmp_path / "r", *steps, ended(2, "")), now=60.0) == "stopped where it was told to"
    assert "no luck" in state_of(run_of(tmp_path / "r", *steps, events=(failed(5.0),)), now=60.0)
    write_run(tmp_path / "r" / "config.toml", {"training": {"steps": 2}})
    assert state_of(load(tmp_path / "r", "run"), now=1e6) == "done"


def test_every_new_start_has_a_cause(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "r",
        start(0),
        *trained(1, 2, 3),
        {**start(2), "time": 10.0},
        ended(2, "SIGTERM"),
        {**start(2), "time": 20.0},
        {**start(1), "time": 30.0, "left_out": [8, 15]},
        {**start(1), "time": 40.0},
        events=(failed(5.0), {"event": "failed", "time": 35.0}),
    )
    whys = [(mark.kind, mark.step, mark.why) for mark in marks_of(run)]
    assert sorted(whys) == sorted(
        [
            ("restart", 2, "rank 3 on node7, exit code 1: no luck; steps taken again: 1"),
            ("restart", 2, "stopped by SIGTERM"),
            ("rollback", 1, "bad steps in a row; samples 8-15 are left out; steps taken again: 1"),
            ("restart", 1, "of something that events.jsonl does not tell whole"),
        ]
    )


def test_an_element_that_ended_with_a_code_is_a_cause(tmp_path: Path) -> None:
    (tmp_path / "r" / "slurm").mkdir(parents=True)
    write(tmp_path / "r" / "slurm" / "elements.jsonl", {"event": "end", "time": 5.0, "job": "7_0", "code": 137})
    run = run_of(tmp_path / "r", start(0), *trained(1), {**start(0), "time": 10.0})
    assert marks_of(run)[0].why.startswith("element 7_0 ended with exit code 137")


def test_skipped_steps_and_stages_are_marked(tmp_path: Path) -> None:
    marks = marks_of(load(write_synthetic(tmp_path, RESTART_EVERY + 1000, spikes={777: 50.0}), "run"))
    assert [(mark.kind, mark.step) for mark in marks] == [("skipped", 777), ("mix", 3000), ("restart", RESTART_EVERY - 10)]


def test_a_folder_without_metrics_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PoroError, match=r"no metrics.jsonl there"):
        load(tmp_path, "run")
    (tmp_path / "metrics.jsonl").write_text('{"event": "st')
    with pytest.raises(PoroError, match="no line of it can be read"):
        load(tmp_path, "run")


def test_a_run_without_config_has_no_ledger_and_says_why(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", start(0), *trained(1))
    assert find_ledger(run) is None
    assert "config.toml" in run.problem


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_tokens(folder)
    poro("train", write_run(folder / "run.toml", {"training": {"steps": 6}, "checkpoint": {"save_every_steps": 3}}))
    return folder / "run"


def test_the_ledger_is_as_planned(trained_run: Path) -> None:
    view = find_ledger(load(trained_run, "run"))
    assert view is not None
    assert view.is_as_planned
    assert view.step == 6
    assert sum(line.read or 0 for line in view.lines) == 6 * 8 * 64
    assert {line.name: line.planned for line in view.lines} == {line.name: line.read for line in view.lines}


def test_the_chain_says_what_is_verified_missing_or_wrong(trained_run: Path) -> None:
    kinds = {link.what: link.kind for link in find_chain(load(trained_run, "run")).checkpoints}
    assert kinds == {"step_00000003": "good", "step_00000006": "good"}
    kinds = {link.what: link.kind for link in find_chain(load(trained_run, "run"), read_bytes=0).checkpoints}
    assert kinds == {"step_00000003": "unread", "step_00000006": "unread"}
    chain = find_chain(load(trained_run, "run"))
    assert [link.kind for link in chain.tokens] == ["missing", "missing"]  # IndexedWriter alone writes no manifest
    victim = trained_run / "checkpoints" / "step_00000003" / "model.json"
    content = victim.read_bytes()
    victim.write_bytes(content[:-2] + b" \n")
    chain = find_chain(load(trained_run, "run"))
    assert [link.kind for link in chain.checkpoints] == ["bad", "good"]
    victim.unlink()
    assert [link.kind for link in find_chain(load(trained_run, "run")).checkpoints] == ["bad", "good"]
    victim.write_bytes(content)
    files = trained_run / "checkpoints" / "step_00000003" / "files.json"
    listed = files.read_text()
    files.write_text(json.dumps({"format": 1, "files": {}}))
    assert [link.kind for link in find_chain(load(trained_run, "run")).checkpoints] == ["missing", "good"]
    files.write_text(listed)


def test_goodput_is_a_share_of_all_time() -> None:
    stay = Stay("", begin=0.0, end=6000.0, devices=8)
    stay.add("queued", 600.0)
    stay.add("productive steps", 4860.0)
    stay.add("start-up", 540.0)
    shown = show_goodput(Goodput((stay,), gpus_per_device=0.5))
    assert "1 h 40 min, 6.00 GPU-hours, of which 90.0% went into steps that count." in shown
    assert "5.40" in shown
    assert "nothing is known" in show_goodput(Goodput((), 1.0))
