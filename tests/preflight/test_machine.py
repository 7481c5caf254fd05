"""wandb, clock, locale, umask, quota: each as a machine may have it."""

import os
import socket
import time
from pathlib import Path

import pytest

from megatron_poro.preflight import disk
from tests.preflight.cases import Run, write_all


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_all(tmp_path, launched=False)


def test_a_clock_that_is_not_the_file_systems(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr("megatron_poro.preflight.machine.time.time", lambda: real() + 60)
    (found,) = run.of("machine.clock")
    assert found.colour == "yellow"
    assert "differ by 60.0 s, above 5" in found.text


def test_a_locale_without_utf8(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_poro.preflight.machine.locale.getpreferredencoding", lambda do_setlocale: "ISO-8859-1")
    (found,) = run.of("machine.locale")
    assert (found.colour, "LC_ALL=C.UTF-8" in found.text) == ("yellow", True)


@pytest.mark.parametrize(("mask", "colour"), [(0o077, "yellow"), (0o000, "yellow"), (0o022, "green"), (0o027, "green")])
def test_an_umask_that_hides_or_opens_everything(mask: int, colour: str, run: Run) -> None:
    before = os.umask(mask)
    try:
        (found,) = run.of("machine.umask")
    finally:
        os.umask(before)
    assert found.colour == colour
    assert f"{mask:04o}" in found.text


def test_a_wandb_server_that_never_answers_costs_two_seconds(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        full = [socket.socket() for _ in range(4)]  # the queue is full: further connections hang
        for each in full:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        began = time.monotonic()
        (found,) = run.of("wandb.mode", variables={"WANDB_MODE": "online"})
        for each in full:
            each.close()
    assert time.monotonic() - began < 4
    assert (found.colour, "does not answer" in found.text) == ("yellow", True)


def test_a_wandb_server_that_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        (found,) = run.of("wandb.mode", variables={"WANDB_MODE": "online"})
    assert found.colour == "green"


def test_wandb_without_a_key_or_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (found,) = run.of("wandb.mode", variables={"WANDB_MODE": "online"})
    assert (found.colour, "no key" in found.text) == ("yellow", True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (found,) = run.of("wandb.mode")
    assert (found.colour, "not installed" in found.text) == ("red", True)


def stand_in(folder: Path, answer: str) -> str:
    """A folder with an `lfs` that gives this answer to `lfs quota`; returns PATH."""
    (folder / "bin").mkdir()
    (folder / "bin" / "lfs").write_text(
        f'#!/bin/bash\nif [ "$1" = project ]; then echo "  42 P {folder}"; else echo "{answer}"; fi\n'
    )
    (folder / "bin" / "lfs").chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("used", "limit", "colour"), [(10, 10**9, "green"), (10, 1000, "red"), (9_500_000, 10_000_000, "yellow"), (10, 0, "yellow")]
)
def test_a_quota_of_the_file_system(used: int, limit: int, colour: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = f"{run.folder} {used} {limit} {limit} - 3 0 0 -"
    monkeypatch.setenv("PATH", stand_in(run.folder, answer))
    (found,) = run.of("disk.quota")
    assert found.colour == colour, found


def test_no_quota_where_there_is_no_lustre(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(run.folder))
    assert run.of("disk.quota") == []


def test_an_lfs_that_hangs_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_in(run.folder, "$(sleep 9)"))
    monkeypatch.setattr(disk, "QUOTA_SECONDS", 0.2)
    (found,) = run.of("disk.quota")
    assert "not checked" in found.text


def test_a_folder_without_the_right_to_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**words: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("megatron_poro.preflight.disk.tempfile.NamedTemporaryFile", refuse)
    (found,) = run.of("disk.writable")
    assert (found.colour, "cannot be written (Permission denied)" in found.text) == ("red", True)
    (clock,) = run.of("machine.clock")
    assert "not checked" in clock.text
