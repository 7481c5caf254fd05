"""`poro check --node`: rates against expected ones, and the line for an exclude list. Devices are judged as by elements."""

from pathlib import Path

import pytest
import tomli_w

from megatron_poro.cli.main import main
from megatron_poro.preflight import node
from megatron_poro.preflight.check import Question
from megatron_poro.preflight.node import check_node, exclude_line, judge_rate, measure_disk
from megatron_poro.slurm.nodes import node_name
from tests.preflight.cases import Run, colours, write_all


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(node, "measure_disk", lambda folder: (1000.0, 2000.0))
    return write_all(tmp_path, launched=False)


def cluster(run: Run, **changes: object) -> str:
    path = run.folder / "own.toml"
    path.write_text(tomli_w.dumps({"base": "local", **changes}))
    return str(path)


def test_a_good_node_is_green_and_gives_no_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(run.file), "--node", "--cluster", "local"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "0 red, 0 yellow, 4 green"
    assert "1,000 MB/s written, 2,000 MB/s read" in said


def test_a_node_without_its_devices_and_links_is_named_for_the_exclude_list(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    own = cluster(run, devices_per_node=8, device_memory_gb=64)
    assert main(["check", str(run.file), "--node", "--cluster", own]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == f"{node_name()} 0 of 8 devices are there"
    own = cluster(run, node_check={"links": ["hsn0"]})
    found = check_node(Question(run.file, cluster=own))
    assert exclude_line(found) == f"{node_name()} not up: hsn0"


@pytest.mark.parametrize(("rate", "colour"), [(5.0, "red"), (100.0, "yellow"), (900.0, "green")])
def test_slow_disks(rate: float, colour: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "measure_disk", lambda folder: (rate, 2000.0))
    found = colours(check_node(Question(run.file)))
    assert found["node.shared_disk"] == found["node.local_disk"] == {colour}


def test_a_disk_that_cannot_be_written_is_red(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> tuple[float, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node, "measure_disk", fail)
    assert "cannot be written: No space left on device" in exclude_line(check_node(Question(run.file)))


@pytest.mark.parametrize(
    ("device", "rate", "colour"),
    [
        ("cuda:0 AMD Instinct MI250X", 124.0, "green"),
        ("cuda:0 AMD Instinct MI250X", 90.0, "red"),
        ("cuda:3 NVIDIA H100 80GB HBM3", 780.0, "green"),
        ("cuda:3 NVIDIA H100 80GB HBM3", 500.0, "red"),
        ("cuda:0 NVIDIA GH200 480GB", 800.0, "green"),
        ("cuda:0 AMD Instinct MI300X", 600.0, "green"),
        ("cuda:0 Something New", 1.0, "yellow"),
    ],
)
def test_rates_against_what_such_devices_reach(device: str, rate: float, colour: str) -> None:
    found = judge_rate(device, rate)
    assert found.colour == colour
    assert device in found.text


def test_disk_rates_are_those_of_a_real_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    writing, reading = measure_disk(tmp_path, 16 * 2**20)
    assert writing > 0
    assert reading > 0
    assert not list(tmp_path.iterdir())
