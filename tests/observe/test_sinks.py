import json
import threading
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.observe import background
from megatron_poro.observe.background import BackgroundSink
from megatron_poro.observe.tensorboard import TensorBoardSink
from tests.observe.starts import ended, make_run, started, steps, validated
from tests.runs import poro, write_run


class Recorder:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.is_closed = False

    def write(self, record: dict[str, Any]) -> None:
        if record["event"] == "poison":
            raise OSError("no route to host")
        self.records.append(record)

    def close(self) -> None:
        self.is_closed = True


def test_records_arrive_in_order_and_before_the_end() -> None:
    recorder = Recorder()
    sink = BackgroundSink("it", lambda: recorder)
    for record in steps(1, 100):
        sink.write(record)
    sink.close()
    assert [record["step"] for record in recorder.records] == list(range(1, 101))
    assert recorder.is_closed


def test_a_sink_that_fails_costs_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    sink = BackgroundSink("it", Recorder)
    sink.write({"event": "poison"})
    for record in steps(1, 100):
        sink.write(record)
    sink.close()
    assert capsys.readouterr().err.count("warning: it failed and is left out from here on: OSError: no route to host") == 1


def test_a_sink_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(background, "QUEUE_RECORDS", 10)
    never = threading.Event()

    def build() -> Recorder:
        never.wait()
        return Recorder()

    sink = BackgroundSink("it", build)
    for record in steps(1, 100):
        sink.write(record)
    sink.close()
    assert capsys.readouterr().err.count("warning: it") == 1
    never.set()


def test_tensorboard_shows_one_curve_over_restarts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for records in (
        [started(0), *steps(1, 6)],
        [started(4), *steps(5, 8, plus=0.5)],
        [started(6), *steps(7, 9, plus=0.25), started(8), *steps(9, 10), validated(10, 2.0), ended(10)],
    ):
        sink = TensorBoardSink(tmp_path)
        for record in records:
            sink.write(record)
        sink.close()
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    losses = {event.step: event.value for event in shown.Scalars("train/loss")}
    assert losses == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5.5, 6: 6.5, 7: 7.25, 8: 8.25, 9: 9, 10: 10}
    assert len(shown.Scalars("train/loss")) == 10
    assert [(event.step, event.value) for event in shown.Scalars("validation_loss/fi")] == [(10, 2.0)]


def test_the_dashboard_is_shown_without_network_or_key(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in (run, tmp_path / "run.toml"):
        view = json.loads(poro("dashboard", path, "--dry-run", WANDB_API_KEY="").stdout)
        sections = view["spec"]["section"]["panelBankConfig"]["sections"]
        titles = {section["name"] for section in sections}
        assert titles >= {"Loss", "Optimizer", "Speed", "Memory", "Data", "Goodput and restarts", "Stragglers"}
        text = json.dumps(view)
        for name in ("^loss_by_source/", "train/learning_rate", "throughput/mfu", "${tokens_by_source/fi} / ${progress/tokens}"):
            assert name in text
        assert "0.3 + 0 * ${progress/tokens}" in text


def test_the_dashboard_says_what_is_missing(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.toml")
    assert "observe.wandb_project is empty" in poro("dashboard", path, "--dry-run", code=2).stderr
    path = write_run(path, {"observe": {"wandb_project": "poro"}})
    environment = {"WANDB_API_KEY": "", "HOME": str(tmp_path)}
    assert "no wandb key" in poro("dashboard", path, code=2, **environment).stderr
