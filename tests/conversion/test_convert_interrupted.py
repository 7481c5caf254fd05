"""A conversion that is killed, interrupted or out of disk leaves no target, and the same command started again finishes it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_poro.conversion import to_hf, to_megatron, verify
from megatron_poro.errors import ConversionError
from tests.conversion.llamas import LLAMA, save_llama
from tests.runs import REPOSITORY

BIG = replace(LLAMA, num_layers=24, hidden_size=512, ffn_hidden_size=512)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 MB, so that there is time to interrupt."""
    return save_llama(tmp_path_factory.mktemp("big") / "hf", BIG)


def start(*words: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "megatron_poro", "convert", *map(str, words)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until a file is there, or the process has ended."""
    while process.poll() is None and not path.exists():
        time.sleep(0.002)


@pytest.mark.parametrize("moment", ["__0_0.distcp", ".metadata", "conversion.json"])
def test_a_killed_conversion_leaves_no_target_and_the_next_finishes(source: Path, tmp_path: Path, moment: str) -> None:
    process = start("to-megatron", source, tmp_path / "out")
    wait_for(tmp_path / ".out.partial" / moment, process)
    process.kill()
    process.wait()
    killed = process.returncode == -signal.SIGKILL
    assert not killed or not (tmp_path / "out").exists()
    if killed:
        assert start("to-megatron", source, tmp_path / "out").wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert ".lock" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert verify(source, tmp_path / "out") == []


def test_an_interrupt_from_the_keyboard_ends_it_at_once_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    process = start("to-megatron", source, tmp_path / "out")
    wait_for(tmp_path / ".out.partial" / "__0_0.distcp", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_all_the_same_leaves_nothing(source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConversionError, match=r"disk has 0\.008 GB free, out takes 0\.1"):
        to_megatron(source, small_disk / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**15}))
    with pytest.raises(ConversionError, match=r"No space left on device; free space"):
        to_megatron(source, small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_a_file_system_without_direct_writing_is_written_all_the_same(small_disk: Path, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    to_megatron(source, small_disk / "out")
    to_hf(small_disk / "out", small_disk / "back")
    assert verify(source, small_disk / "back") == []
