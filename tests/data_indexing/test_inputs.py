import os
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_indexing.errors import DataError
from data_indexing.inputs import InputPath, find_inputs, parse_shard, plan_segments


@pytest.fixture
def folder(tmp_path):
    for name in ("b/1.jsonl", "a/2.jsonl.gz", "a/1.parquet", "c.txt", "_SUCCESS", ".hidden"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x\n")
    return tmp_path / "in"


def test_folders_and_globs_are_taken_in_the_order_of_their_names(folder):
    names = ["a/1.parquet", "a/2.jsonl.gz", "b/1.jsonl", "c.txt"]
    assert [item.name for item in find_inputs([folder])] == names
    assert [item.name for item in find_inputs([f"{folder}/**/*.jsonl*"])] == ["a/2.jsonl.gz", "b/1.jsonl"]
    assert [item.name for item in find_inputs([folder / "c.txt", f"{folder}/?"])] == ["c.txt", *names[:3]]
    kinds = [(item.kind, item.compression) for item in find_inputs([folder])]
    assert kinds == [("parquet", None), ("lines", "gzip"), ("lines", None), ("text", None)]


def test_a_file_given_by_its_name_may_have_any_ending(tmp_path):
    (tmp_path / "corpus[1]").touch()
    assert find_inputs([tmp_path / "corpus[1]"])[0].kind == "lines"


def test_what_cannot_be_read_is_named(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for name, message in {
        tmp_path / "none.jsonl": r"none\.jsonl: No such file",
        tmp_path / "pipe": "not a regular file",
        tmp_path / "empty": "no files in .jsonl",
        f"{folder}/*.zst": "no file matches",
    }.items():
        with pytest.raises(DataError, match=message):
            find_inputs([name])
    with pytest.raises(DataError, match="given 2 times"):
        find_inputs([folder, folder / "c.txt"])
    (folder / "notes.md").touch()
    with pytest.raises(DataError, match=r"notes\.md: a folder may hold files in"):
        find_inputs([folder])


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "1/0", "a/b", "1/2/3"])
def test_a_shard_is_one_of_so_many(text):
    with pytest.raises(DataError, match="is not I/N with I from 0"):
        parse_shard(text)
    assert parse_shard("3/4") == (3, 4)


@given(sizes=st.lists(st.integers(0, 50), max_size=8), count=st.integers(1, 9), packed=st.booleans())
def test_shards_cover_every_byte_once(sizes, count, packed):
    files = [InputPath(Path(str(n)), str(n), "lines", "gzip" if packed else None, size) for n, size in enumerate(sizes)]
    segments = [segment for number in range(count) for segment in plan_segments(files, (number, count))]
    for file in files:
        ranges = [(segment.begin, segment.end) for segment in segments if segment.source == file]
        assert ranges[0][0] == 0
        assert ranges[-1][1] == file.num_bytes
        assert all(before[1] == after[0] for before, after in pairwise(ranges))
        assert not packed or len(ranges) == 1
    assert packed or all(sum(s.num_bytes for s in plan_segments(files, (n, count))) <= sum(sizes) / count + 1 for n in range(count))


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_a_parquet_file_is_cut_at_its_row_groups(tmp_path, count):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"text {number}" * 50 for number in range(100)]}), path, row_group_size=7)
    files = find_inputs([path])
    segments = [segment for number in range(count) for segment in plan_segments(files, (number, count))]
    assert [group for segment in segments for group in range(segment.begin, segment.end)] == list(range(15))
    assert len(segments) > 1 or count == 1


def names_of(*arguments):
    return [item.name for item in find_inputs(*arguments)]


def test_files_of_equal_names_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    for name in ("n1/x.jsonl", "n2/x.jsonl", "n2/deep/y.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert names_of(["n1/x.jsonl", tmp_path / "n2" / "x.jsonl"]) == ["n1/x.jsonl", "n2/x.jsonl"]
    assert names_of(["n?"]) == ["n1/x.jsonl", "n2/deep/y.jsonl", "n2/x.jsonl"]
    assert names_of(["n2"]) == ["deep/y.jsonl", "x.jsonl"]
    assert names_of(["n2/x.jsonl"]) == ["x.jsonl"]


def test_linked_folders_are_entered_once_and_circles_of_links_end(folder, tmp_path):
    (folder / "_SUCCESS").unlink()
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "1.jsonl").touch()
    (folder / "far").symlink_to(tmp_path / "far")
    (folder / "near").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(folder)
    (tmp_path / "far" / "again").symlink_to(folder)
    names = ["a/1.parquet", "a/2.jsonl.gz", "b/1.jsonl", "c.txt", "far/deep/1.jsonl"]
    assert names_of([folder]) == names
    assert names_of([f"{folder}/**/*.jsonl"]) == ["b/1.jsonl", "far/deep/1.jsonl"]
    assert names_of([f"{folder}/**"]) == names


def test_what_a_folder_hides_is_named(folder, monkeypatch):
    (folder / "b" / "gone.jsonl").symlink_to("nowhere")
    for name in (folder, f"{folder}/*/*.jsonl"):
        with pytest.raises(DataError, match=r"b/gone\.jsonl: (a link to nothing|No such file)"):
            find_inputs([name])
    (folder / "b" / "gone.jsonl").unlink()
    listed = Path.iterdir

    def refuse(path):
        if path == folder / "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for name in (folder, f"{folder}/**/*.jsonl", f"{folder}/*/*.jsonl"):
        with pytest.raises(DataError, match=r"in/b: Permission denied"):
            find_inputs([name])


def test_what_a_run_to_the_same_output_left_is_no_input(folder):
    (folder / "_SUCCESS").unlink()
    names = names_of([folder], folder / "out")
    (folder / "out.json").write_text("{}")
    assert names_of([folder], folder / "out") == [*names, "out.json"]
    for name in ("out.bin", "out.idx", "out.bin.partial", "out.rejected.jsonl", "out.unpublished/document_ends"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    for output in (folder / "out", f"{folder}/out/", folder / "a" / ".." / "out"):
        assert names_of([folder], output) == names
        assert names_of([f"{folder}/**"], output) == names
        assert names_of([f"{folder}/*"], output) == names
        with pytest.raises(DataError, match="no file matches"):
            find_inputs([f"{folder}/*.jsonl"], output)
