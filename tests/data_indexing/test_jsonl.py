import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing import jsonl
from data_indexing.errors import DataError
from data_indexing.jsonl import BadLineError, Chunk, check_inputs, read_chunks, read_texts
from data_indexing.manifest import InputFile

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=12)


def write(path, lines, *, final_newline):
    raw = b"\n".join(lines) + (b"\n" if final_newline and lines else b"")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@settings(max_examples=60, deadline=None)
@given(
    lines=texts,
    chunk_bytes=st.integers(1, 60),
    final_newline=st.booleans(),
    name=st.sampled_from(["a.jsonl", "a.jsonl.gz"]),
)
def test_chunks_of_any_size_hold_every_line_once(tmp_path_factory, lines, chunk_bytes, final_newline, name):
    path = tmp_path_factory.mktemp("text") / name
    encoded = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in lines]
    write(path, encoded, final_newline=final_newline)
    sealed: list[InputFile] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jsonl, "CHUNK_BYTES", chunk_bytes)
        chunks = list(read_chunks(path, sealed))
    assert [text for chunk in chunks for text in read_texts(chunk, "text")] == lines
    (file,) = sealed
    assert (file.name, file.num_bytes) == (name, path.stat().st_size)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(chunk.num_file_bytes for chunk in chunks) <= file.num_bytes


CORRUPT = {
    b"": "not JSON (Expecting value at column 1)",
    b"{'text': 1}": "not JSON",
    b'{"text": "cut': "not JSON (Unterminated string",
    b'\xef\xbb\xbf{"text": "x"}': "not JSON (Unexpected UTF-8 BOM",
    b'["text"]': "not an object that could hold 'text', but list",
    b'{"body": "x", "id": 1}': "field 'text' is missing (found 'body', 'id'); see --text-field",
    b"{}": "field 'text' is missing (found nothing)",
    b'{"text": null}': "field 'text' is NoneType, not a string",
    b'{"text": 5}': "field 'text' is int, not a string",
    b'{"text": "a\\ud800b"}': "field 'text' holds a lone surrogate at character 1",
    b'{"text": "\xff"}': "not UTF-8 at byte 10 of the line",
    b'{"text": ' + b"9" * 5000 + b"}": "Exceeds the limit",
    b'{"text": ' + b"[" * 100_000: "recursion",
}


@pytest.mark.parametrize("line", CORRUPT, ids=lambda line: line[:20].decode("latin-1"))
def test_a_corrupt_line_is_named_by_number_and_reason(line):
    data = b'{"text": "good"}\n' + line + b"\n" + b'{"text": "good"}\n'
    with pytest.raises(BadLineError) as caught:
        read_texts(Chunk(Path("x"), 0, len(data), data, 0), "text")
    assert caught.value.number == 2
    assert CORRUPT[line].lower() in caught.value.reason.lower()
    assert "\n" not in caught.value.reason


def test_a_nested_field_is_found_by_its_path():
    data = b'{"a": {"b": "deep"}}\n'
    assert read_texts(Chunk(Path("x"), 0, len(data), data, 0), "a.b") == ["deep"]


@pytest.mark.parametrize("keep", [5, 60, -6])
def test_damaged_gzip_data_is_a_bad_line_after_the_good_ones(tmp_path, keep, monkeypatch):
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 10)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"text": "%d"}\n' % number for number in range(300)))[:keep])
    with pytest.raises(BadLineError, match="gzip data damaged"):
        [read_texts(chunk, "text") for chunk in read_chunks(path, [])]


def test_inputs_must_exist_and_stand_once(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match=r"a\.jsonl: No such file"):
        check_inputs([path])
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="not a regular file"):
            check_inputs([special])
    path.touch()
    with pytest.raises(DataError, match="given 2 times"):
        check_inputs([path, str(path)])
