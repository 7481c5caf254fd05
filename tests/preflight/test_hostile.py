"""Files that are missing, damaged or not to be read, and checks that crash: a red line each, and the others go on."""

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_indexing.reader import IndexedReader
from megatron_poro.errors import ConfigError
from megatron_poro.preflight import check, files, overlap
from megatron_poro.preflight.check import Question, check_run
from megatron_poro.preflight.findings import Finding, green, red, worst
from tests.preflight.breaks import VALIDATION, first_documents_of_fi
from tests.preflight.cases import Run, colours, write_all, write_checkpoint

NAMES = ["fi.bin", "fi.idx", "fi.json", "start/model.json", "start/conversion.json", "start/files.json", "start/.metadata"]
NAMES += ["run/slurm/job.json", "run/slurm/job.sh", "run/slurm/run.toml", "run/metrics.jsonl"]
CONTENTS = [b"", b"\0" * 64, b"{}", b'{"format_version": 1}', b'{"files": {"a": 1}}', b"\xff\xfe", b"null"]
_CAPABILITY_VERSION_3, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 0x20080522, 1, 2
OF_CHECKPOINT = ["config.toml", "state.json", "files.json", "__0_0.distcp"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_all(tmp_path)


def crashes(found: list[Finding]) -> list[str]:
    return [finding.text for finding in found if "the check itself failed" in finding.text]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_any_content_is_no_crash(name: str, run: Run) -> None:
    for content in CONTENTS:
        (run.folder / name).write_bytes(content)
        found = run.check()
        assert not crashes(found)
        assert len(colours(found)) > 40 or name.endswith("job.json")
    (run.folder / name).unlink()
    assert not crashes(run.check())
    (run.folder / name).mkdir()
    assert not crashes(run.check())


@pytest.mark.parametrize("name", OF_CHECKPOINT)
def test_a_damaged_checkpoint_is_named(name: str, run: Run) -> None:
    path = write_checkpoint(run) / name
    for content in CONTENTS:
        path.write_bytes(content)
        found = run.check()
        assert not crashes(found)
        assert worst([f for f in found if f.subject == "resume"]) == "red"


@pytest.fixture
def readable() -> Iterator[Run]:
    """A run in a folder that others may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield write_all(Path(folder))


@contextmanager
def as_an_owner() -> Iterator[None]:
    """Root reads everything, by two capabilities (capabilities(7)); without them it is an owner like others."""
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_file_without_permission_is_named(name: str, readable: Run) -> None:
    (readable.folder / name).chmod(0)
    with as_an_owner():
        found = readable.check()
    assert not crashes(found)
    assert any(Path(name).name in f.text for f in found if f.colour != "green"), found


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "fi.bin"), OSError(5, "Input/output error", "fi.bin")])
def test_a_pair_that_cannot_be_read_is_named_and_the_others_are_checked(
    error: OSError, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = IndexedReader

    def open_pair(path: str) -> Any:
        if path.endswith("fi"):
            raise error
        return real(path)

    monkeypatch.setattr(files, "IndexedReader", open_pair)
    (found,) = run.of("data.files")
    assert (found.colour, "data.sources[0] (fi): fi.bin: " in found.text) == ("red", True)


def test_a_check_that_crashes_is_a_red_line_and_the_others_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(case: Any) -> list[Finding]:
        raise ZeroDivisionError("by nothing")

    before = colours(run.check())
    monkeypatch.setattr(check, "CHECKS", {**check.CHECKS, "mix.epochs": crash})
    found = run.check()
    (line,) = crashes(found)
    assert "ZeroDivisionError: by nothing" in line
    after = colours(found)
    assert after.pop("mix.epochs") == {"red"}
    assert after == {name: seen for name, seen in before.items() if name != "mix.epochs"}


def test_a_run_file_with_problems_names_all_of_them_and_checks_what_it_can(run: Run) -> None:
    found = run.check("parallel.tensor=3", "optimizer.adam_beta1=2.0", script=run.directory / "slurm" / "job.sh")
    problems = [f.text for f in found if f.check == "run.file" and f.colour == "red"]
    assert len(problems) == 4
    assert {"script.time", "environment.known_bad", "script.files"} <= colours(found).keys()


@pytest.mark.parametrize("text", ["", "]", "run_directory = 3", "\0"])
def test_a_run_file_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert worst(check_run(Question(tmp_path / "run.toml"), {})) == "red"
    assert worst(check_run(Question(tmp_path / "none.toml"), {})) == "red"


def test_a_cluster_or_script_that_is_not_there_is_the_callers_mistake(run: Run) -> None:
    with pytest.raises(ConfigError, match="no such profile"):
        run.check(cluster="mars")
    with pytest.raises(ConfigError, match=r"--script: .*none.sh: No such file"):
        run.check(script=run.folder / "none.sh")


def test_hash_finds_the_byte_that_sizes_do_not_show(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHEAP_BYTES", 0)
    for name in ("fi.bin", "start/__0_0.distcp"):
        with (run.folder / name).open("r+b") as file:
            file.seek(500)
            file.write(b"\1\1")
    assert worst([f for f in run.check() if f.check in ("data.files", "start.files")]) == "green"
    found = run.check(reads_all=True)
    assert any("fi: manifest: sha256 of the .bin" in f.text for f in found if f.check == "data.files")
    assert any("__0_0.distcp is damaged" in f.text for f in found if f.check == "start.files")


def test_documents_of_large_files_are_compared_when_all_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "SMALL_BYTES", 0)
    monkeypatch.chdir(run.folder)
    first_documents_of_fi(run)
    assert "--hash compares" in run.of("heldout.documents", VALIDATION)[0].text
    (found,) = run.of("heldout.documents", VALIDATION, reads_all=True)
    assert (found.colour, "7 of its documents stand in source fi" in found.text) == ("red", True)


def test_a_check_that_yields_before_it_fails_keeps_what_it_said() -> None:
    def half(case: None = None) -> Any:
        yield green("a.b", "good")
        raise OSError(2, "No such file", "x")

    assert list(check.run_guarded("a.b", half)) == [
        green("a.b", "good"),
        red("a.b", "x: No such file; check that it is there and who may read it"),
    ]
