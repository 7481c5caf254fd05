"""What a merge leaves behind that could not finish: nothing, whatever stopped it."""

import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_indexing.errors import DataError
from data_indexing.merge import merge
from tests.data_indexing.pairs_of_documents import contents, read_pair, write_pair

MODES = pytest.mark.parametrize("seed", [None, 1])
DOCS = [[[number] * 500] for number in range(400)]
# Merges the pairs in folder/in; the third argument stops it: a size limit, or a signal when the function is called.
PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
from data_indexing import writer
from data_indexing.merge import find_pairs, merge

folder, seed, stop = Path(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]
if stop.isdigit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(stop), int(stop)))
else:
    setattr(writer.IndexedWriter, stop, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
merge(find_pairs(folder / "in"), folder / "out" / "m", shuffle_seed=seed)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_pair(tmp_path / "in" / f"{number}", DOCS[100 * number : 100 * number + 100])
    return tmp_path


def run(folder, seed, stop):
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seed), str(stop)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@MODES
@pytest.mark.parametrize("stop", ["add_lengths", "add_bytes", "seal", "add_manifest", "_publish"])
def test_a_killed_merge_publishes_nothing_and_the_next_cleans_up(folder, seed, stop):
    assert run(folder, seed, stop).returncode == -9
    left = contents(folder / "out")
    assert left
    assert all(name.endswith(".partial") for name in left)
    merge([folder / "in" / f"{number}" for number in range(4)], folder / "out" / "m", shuffle_seed=seed)
    assert sorted(contents(folder / "out")) == ["m.bin", "m.idx", "m.json"]
    assert sorted(read_pair(folder / "out" / "m")) == DOCS


@MODES
@pytest.mark.parametrize("limit", [1_000, 300_000])
def test_a_merge_that_hits_a_limit_of_size_is_one_line_and_leaves_nothing(folder, seed, limit):
    done = run(folder, seed, limit)
    assert (
        done.stderr.strip().splitlines()[-1].endswith("m: File too large; nothing was written, free space or choose another output")
    )
    assert contents(folder / "out") == {}


@MODES
def test_a_full_disk_leaves_the_old_pair_as_it_was(folder, seed, monkeypatch):
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        write_pair(disk / "m", DOCS[:3])
        before = contents(disk)
        pairs = [folder / "in" / f"{number}" for number in range(4)]
        (disk / "filler").write_bytes(bytes(700_000))
        with pytest.raises(DataError, match=r"m: the merge needs 0\.0 GB of disk, 0\.0 GB are free"):
            merge(pairs, disk / "m", shuffle_seed=seed, overwrite=True)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10**9))
        with pytest.raises(DataError, match="No space left on device; nothing was written"):
            merge(pairs, disk / "m", shuffle_seed=seed, overwrite=True)
        (disk / "filler").unlink()
        assert contents(disk) == before
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@MODES
def test_three_thousand_pairs_are_merged_with_sixty_four_open_files(tmp_path, seed):
    source = write_pair(tmp_path / "0", [[[1, 2]], [[3]]])
    prefixes = [source]
    for number in range(1, 3_000):
        prefixes.append(tmp_path / f"{number}")
        for suffix in (".bin", ".idx"):
            os.link(f"{source}{suffix}", f"{prefixes[-1]}{suffix}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, limits[1]))
    try:
        merge(prefixes, tmp_path / "m", shuffle_seed=seed)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    tokens = np.fromfile(tmp_path / "m.bin", np.int32)
    assert np.array_equal(np.bincount(tokens), [0, 3_000, 3_000, 3_000])
