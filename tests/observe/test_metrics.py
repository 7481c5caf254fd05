import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.config import ObserveConfig
from megatron_poro.errors import ConfigError
from megatron_poro.observe import JsonLinesSink, SinkGroup, open_sinks, read_metrics


def write(path: Path, *records: dict[str, Any]) -> None:
    sink = JsonLinesSink(path)
    for record in records:
        sink.write(record)
    sink.close()


def step(number: int, loss: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss}


def test_records_come_back_in_order(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", step(1, 3.0), step(2, 2.5))
    assert read_metrics(tmp_path / "m.jsonl") == [step(1, 3.0), step(2, 2.5)]


def test_a_restart_takes_back_the_steps_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    start = {"event": "start", "step": 1}
    write(path, step(1, 3.0), step(2, 2.5), step(3, 2.4))
    write(path, start, step(2, 2.6))
    assert read_metrics(path) == [step(1, 3.0), start, step(2, 2.6)]


def test_records_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    # A limit on the size of files stands for the disk.
    program = f"""
import resource, signal
from pathlib import Path
from megatron_poro.observe import JsonLinesSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = JsonLinesSink(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for number in range(100):
    sink.write({{"event": "step", "step": number}})
assert Path({str(path)!r}).stat().st_size == 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.write({{"event": "step", "step": 100}})
sink.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert [record["step"] for record in read_metrics(path)] == list(range(101))
    assert done.stderr.count("records wait in memory") == 1


def test_a_line_torn_by_a_kill_is_left_out_and_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, step(1, 3.0))
    with open(path, "ab") as file:
        file.write(b'{"event": "step", "st')
    write(path, step(2, 2.0))
    assert read_metrics(path) == [step(1, 3.0), step(2, 2.0)]


def test_a_failing_sink_costs_a_warning_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing:
        def write(self, record: dict[str, Any]) -> None:
            raise OSError("no route to host")

        def close(self) -> None:
            raise OSError("no route to host")

    good = JsonLinesSink(tmp_path / "m.jsonl")
    group = SinkGroup([Failing(), good])
    group.write(step(1, 3.0))
    group.write(step(2, 2.0))
    group.close()
    assert len(read_metrics(tmp_path / "m.jsonl")) == 2
    assert capsys.readouterr().err.count("Failing failed and is left out") == 1


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"observe.wandb_project: wandb is not installed"):
        open_sinks(ObserveConfig(wandb_project="poro"), tmp_path, {})


def test_a_torn_line_is_ended_as_soon_as_the_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"event": "st')
    monkeypatch.setattr(JsonLinesSink, "_flush", lambda self: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    sink = JsonLinesSink(path)
    sink.write(step(1, 3.0))
    monkeypatch.undo()
    sink.write(step(2, 2.0))
    sink.close()
    assert read_metrics(path) == [step(1, 3.0), step(2, 2.0)]
