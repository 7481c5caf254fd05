"""A run killed at any moment and started again gives the bytes of one that was not."""

import errno
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

import pytest

from data_indexing import text_streams, unpublished
from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, manifest_path, rejected_path, unpublished_path
from data_indexing.tokenize import RejectsError, TokenizeOptions, tokenize_files
from data_indexing.unpublished import Unpublished, journal_of
from data_indexing.workers import Team

# The command with small chunks and a commit after each, slow enough to be killed anywhere.
PROGRAM = """
import sys, time
from data_indexing import text_streams, unpublished
from megatron_poro.cli.main import main
text_streams.CHUNK_BYTES = 2000
unpublished.COMMIT_BYTES = int(sys.argv[1])
add = unpublished.Unpublished.add
def slowly(*arguments):
    time.sleep(float(sys.argv[2]))
    add(*arguments)
unpublished.Unpublished.add = slowly
sys.exit(main(sys.argv[3:]))
"""


class StoppedError(Exception):
    """What stands for a kill within the process."""


@pytest.fixture
def inputs(tmp_path, write_lines):
    lines = [{"text": "word " * (number % 40)} if number % 7 else b"bad" for number in range(400)]
    plain = write_lines(lines, "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.txt").write_text("text")
    return [plain, tmp_path / "b.jsonl.gz", tmp_path / "c.txt"]


def outputs(prefix):
    paths = [bin_path(prefix), idx_path(prefix), manifest_path(prefix), rejected_path(prefix)]
    return [path.read_bytes() for path in paths]


def run(inputs, prefix, tokenizer, **changes):
    options = replace(TokenizeOptions(workers=0, max_rejected="50%"), **changes)
    return tokenize_files(inputs, prefix, tokenizer=tokenizer, options=options)


@pytest.fixture
def whole(inputs, tmp_path, byte_tokenizer):
    counts = run(inputs, tmp_path / "whole", byte_tokenizer)
    return counts, outputs(tmp_path / "whole")


@pytest.fixture
def stops(monkeypatch):
    """Have the n-th call of a method of the output fail, before or after its work."""
    monkeypatch.setattr(text_streams, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(unpublished, "COMMIT_BYTES", 1)

    def stop(patched, name, number, *, before):
        method = getattr(Unpublished, name)
        calls = iter(range(number + 1))

        def stopping(*arguments, **more):
            last = next(calls) == number
            if last and before:
                raise StoppedError
            result = method(*arguments, **more)
            if last:
                raise StoppedError
            return result

        patched.setattr(Unpublished, name, stopping)

    return stop


@pytest.mark.parametrize("step", product(["add", "commit", "_note", "_write_index", "publish", "finish_publishing"], [True, False]))
def test_a_run_stopped_in_any_step_is_taken_up(inputs, whole, stops, byte_tokenizer, monkeypatch, step):
    (name, before), tmp_path = step, inputs[0].parent
    for number in range(40) if name in {"add", "commit", "_note"} else [0]:
        with monkeypatch.context() as patched:
            stops(patched, name, number, before=before)
            try:
                run(inputs, tmp_path / "p", byte_tokenizer)
                break
            except StoppedError:
                assert not idx_path(tmp_path / "p").exists() or name in {"publish", "finish_publishing"}
    counts, files = whole
    if name in {"publish", "finish_publishing"} and not before:
        assert outputs(tmp_path / "p") == files
        return
    assert run(inputs, tmp_path / "p", byte_tokenizer, overwrite=idx_path(tmp_path / "p").exists()) == counts
    assert outputs(tmp_path / "p") == files
    assert not unpublished_path(tmp_path / "p").exists()


@pytest.mark.parametrize("number", range(4))
def test_a_run_stopped_between_two_renames_is_completed(inputs, whole, tmp_path, byte_tokenizer, monkeypatch, number):
    renames = iter(range(99))
    rename = type(tmp_path).rename

    def stopping(path, target):
        if path.parent == unpublished_path(tmp_path / "p") and next(renames) == number:
            raise StoppedError
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "rename", stopping)
        with pytest.raises(StoppedError):
            run(inputs, tmp_path / "p", byte_tokenizer)
    counts, files = whole
    assert run(inputs, tmp_path / "p", byte_tokenizer) == counts
    assert outputs(tmp_path / "p") == files


@pytest.mark.parametrize("name", ["in", "in/*", "in/**"])
def test_a_run_into_the_folder_of_its_inputs_leaves_out_what_it_left_there(inputs, whole, stops, byte_tokenizer, monkeypatch, name):
    tmp_path = inputs[0].parent
    (tmp_path / "in").mkdir()
    for path in inputs:
        path.rename(tmp_path / "in" / path.name)
    names, prefix = [tmp_path / name], tmp_path / "in" / "p"
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stops(patched, "add", 25, before=True)
        run(names, prefix, byte_tokenizer)
    with pytest.raises(RejectsError):
        run(names, prefix, byte_tokenizer, max_rejected="0")
    run(names, prefix, byte_tokenizer)
    assert outputs(prefix) == whole[1]
    with pytest.raises(DataError, match="exists; choose another output"):
        run(names, f"{prefix}/", byte_tokenizer)
    run(names, prefix, byte_tokenizer, overwrite=True)
    assert outputs(prefix) == whole[1]


def test_only_what_is_left_is_read_again(inputs, whole, stops, tmp_path, byte_tokenizer, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stops(patched, "add", 25, before=True)
        run(inputs, tmp_path / "p", byte_tokenizer)
    seen = []
    add = Unpublished.add

    def counting(*arguments):
        seen.append(arguments)
        add(*arguments)

    monkeypatch.setattr(Unpublished, "add", counting)
    run(inputs, tmp_path / "p", byte_tokenizer)
    assert outputs(tmp_path / "p") == whole[1]
    all_seen = len(seen)
    seen.clear()
    run(inputs, tmp_path / "q", byte_tokenizer)
    assert all_seen == len(seen) - 25


@pytest.mark.parametrize("change", ["input", "input of the same size and time", "options", "tokenizer", "journal", "tokens"])
def test_a_run_with_anything_changed_begins_anew(inputs, stops, tmp_path, byte_tokenizer, monkeypatch, change):
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stops(patched, "add", 25, before=True)
        run(inputs, tmp_path / "p", byte_tokenizer)
    options = {}
    if change == "input":
        inputs[0].write_bytes(inputs[0].read_bytes().replace(b"word", b"WORD", 1))
    elif change == "input of the same size and time":
        status = inputs[0].stat()
        inputs[0].write_bytes(inputs[0].read_bytes().replace(b"word", b"WORD"))
        os.utime(inputs[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "options":
        options["eod"] = "none"
    elif change == "tokenizer":
        definition = json.loads(byte_tokenizer.definition)
        definition["model"]["ignore_merges"] = True
        byte_tokenizer = type(byte_tokenizer)(json.dumps(definition), name="other", config=byte_tokenizer.config)
    elif change == "journal":
        path = unpublished_path(tmp_path / "p") / "journal.jsonl"
        path.write_bytes(b"\0\xff" + path.read_bytes())
    else:
        os.truncate(unpublished_path(tmp_path / "p") / "tokens", 3)
    run(inputs, tmp_path / "p", byte_tokenizer, **options)
    run(inputs, tmp_path / "q", byte_tokenizer, **options)
    assert outputs(tmp_path / "p") == outputs(tmp_path / "q")


def test_a_journal_cut_short_loses_its_last_line_alone(inputs, whole, stops, tmp_path, byte_tokenizer, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        stops(patched, "add", 25, before=True)
        run(inputs, tmp_path / "p", byte_tokenizer)
    path = unpublished_path(tmp_path / "p") / "journal.jsonl"
    for cut in (1, 30):
        os.truncate(path, path.stat().st_size - cut)
        assert journal_of(tmp_path / "p")[0] is not None
    run(inputs, tmp_path / "p", byte_tokenizer)
    assert outputs(tmp_path / "p") == whole[1]


@pytest.mark.parametrize("place", ["the list of rejects", "the last bytes"])
def test_a_full_disk_is_named_wherever_it_is_met(inputs, tmp_path, byte_tokenizer, monkeypatch, place):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "the list of rejects":
        monkeypatch.setattr(shutil, "copyfile", refuse)
    else:
        monkeypatch.setattr(ExitStack, "close", refuse)
    with pytest.raises(DataError, match=r"/p[^:]*: No space left on device; nothing was written, free space"):
        run(inputs, tmp_path / "p", byte_tokenizer, max_rejected="0")


def test_two_runs_do_not_work_on_one_output(inputs, stops, tmp_path, byte_tokenizer, monkeypatch):
    program = (
        "import sys, fcntl, time\n"
        "stream = open(sys.argv[1], 'a')\n"
        "fcntl.flock(stream, 2)\n"
        "print('held', flush=True)\n"
        "time.sleep(99)"
    )
    unpublished_path(tmp_path / "p").mkdir()
    journal = unpublished_path(tmp_path / "p") / "journal.jsonl"
    with subprocess.Popen([sys.executable, "-c", program, journal], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(DataError, match="another process works on this output"):
            run(inputs, tmp_path / "p", byte_tokenizer)
        other.kill()


def test_an_input_that_changes_while_it_is_read_is_an_error(inputs, tmp_path, byte_tokenizer, monkeypatch):
    add = Unpublished.add

    def touching(*arguments):
        inputs[0].touch()
        add(*arguments)

    monkeypatch.setattr(Unpublished, "add", touching)
    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was read"):
        run(inputs, tmp_path / "p", byte_tokenizer)


@pytest.mark.parametrize("seed", range(3))
def test_the_command_killed_at_random_moments_gives_the_same_bytes(inputs, whole, tmp_path, byte_tokenizer, seed):
    byte_tokenizer.save_hf(tmp_path / "tokenizer")
    chance = random.Random(seed)
    words = ["data", "tokenize", *inputs, "--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "p"]
    words += ["--max-rejected", "50%", "--workers", seed]
    command = [sys.executable, "-c", PROGRAM, chance.choice([1, 5000]), 0.01, *words]
    for _ in range(6):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1, 1.5))
        process.kill()
        if process.wait() == 0:
            break
    if not idx_path(tmp_path / "p").exists():
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    shutil.rmtree(unpublished_path(tmp_path / "p"), ignore_errors=True)
    mine, right = (json.loads(files[2]) for files in (outputs(tmp_path / "p"), whole[1]))
    assert mine == right | {"tokenizer": mine["tokenizer"]}
    assert [file for number, file in enumerate(outputs(tmp_path / "p")) if number != 2] == [
        file for number, file in enumerate(whole[1]) if number != 2
    ]


def test_a_team_ends_with_its_parent():
    program = (
        "import os, sys\n"
        "from data_indexing.workers import Team\n"
        "team = Team(print, 2)\n"
        "print(team._host.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    host = int(done.stdout)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{host}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{host}")
    assert Team.__doc__
