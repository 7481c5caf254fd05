import errno
import fcntl
import hashlib
import os
import zlib
from collections import deque
from io import FileIO

import pytest

from data_indexing import streams
from data_indexing.errors import DataError
from data_indexing.streams import (
    HASHES_BEHIND,
    BackgroundHash,
    HashedOutput,
    full_disk_named,
    open_partial,
    read_exactly,
    run_ahead,
    write_all,
)


def test_what_a_killed_run_left_is_overwritten(tmp_path):
    (tmp_path / "p.bin.partial").write_bytes(b"left")
    with open_partial(tmp_path / "p.bin") as stream:
        write_all(stream, b"new")
    assert (tmp_path / "p.bin.partial").read_bytes() == b"new"


def test_a_file_that_is_being_written_is_refused_until_its_writer_is_gone(tmp_path):
    with open_partial(tmp_path / "p.bin"), pytest.raises(DataError, match=r"p\.bin\.partial: another process is writing it"):
        open_partial(tmp_path / "p.bin")
    open_partial(tmp_path / "p.bin").close()


def test_a_file_renamed_by_its_writer_meanwhile_is_left_alone(tmp_path, monkeypatch):
    real = fcntl.flock
    target, temporary = tmp_path / "p.bin", tmp_path / "p.bin.partial"

    def publish_first(stream, operation):
        if not target.exists():
            temporary.write_bytes(b"published")
            temporary.rename(target)
        real(stream, operation)

    monkeypatch.setattr(fcntl, "flock", publish_first)
    with open_partial(target) as stream:
        write_all(stream, b"next")
    assert (target.read_bytes(), temporary.read_bytes()) == (b"published", b"next")


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    open_partial(tmp_path / "p.bin").close()


@pytest.mark.parametrize("sizes", [[], [0], [1, 70_000, 3, 65_536, 200_000], [5] * 40])
def test_the_hash_and_the_file_are_those_of_the_bytes(tmp_path, sizes, monkeypatch):
    monkeypatch.setattr(streams, "_WINDOW_BYTES", 66_000)
    buffers = deque(bytearray(200_000) for _ in range(HASHES_BEHIND + 1))
    expected = b""
    with FileIO(tmp_path / "f", "w") as stream:
        output = HashedOutput(stream)
        for number, size in enumerate(sizes):
            buffers[0][:size] = bytes([number % 256]) * size
            output.write(memoryview(buffers[0])[:size])
            expected += bytes(buffers[0][:size])
            buffers.rotate(1)
        assert output.seal() == (hashlib.sha256(expected).hexdigest(), zlib.crc32(expected))
        assert output.num_bytes == len(expected)
        output.close()
    assert (tmp_path / "f").read_bytes() == expected


def test_a_hash_can_be_asked_for_before_the_end():
    hashed = BackgroundHash()
    hashed.update(bytes(100_000))
    assert hashed.sha256() == hashlib.sha256(bytes(100_000)).hexdigest()
    hashed.close()


def test_reading_goes_on_after_a_short_read_and_stops_at_the_end(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(bytes(range(10)))
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: real(file, [buffers[0][:3]], offset))
    buffer = bytearray(9)
    with (tmp_path / "f").open("rb") as stream:
        assert read_exactly(stream.fileno(), memoryview(buffer), 2) == 8
    assert bytes(buffer) == bytes(range(2, 10)) + b"\0"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_the_users_to_mend_and_other_failures_are_not(tmp_path, code):
    with pytest.raises(DataError, match="nothing was written, free space"), full_disk_named(tmp_path):
        raise OSError(code, os.strerror(code))
    with pytest.raises(OSError, match="I/O"), full_disk_named(tmp_path):
        raise OSError(errno.EIO, "I/O")


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_a_generator_that_runs_ahead_yields_the_same_and_its_error_comes_in_its_place(depth):
    def numbers():
        yield from range(10)
        raise KeyError("end")

    found: list[int] = []
    with pytest.raises(KeyError, match="end"):
        found.extend(run_ahead(numbers(), depth))
    assert list(run_ahead(iter(range(10)), depth)) == list(range(10))
