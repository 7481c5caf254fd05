import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing import documents, pieces
from data_indexing.chunks import Chunk
from data_indexing.documents import read_documents
from data_indexing.encode import _excerpts
from data_indexing.encoders import FastEncoder, ReferenceEncoder, is_disputed
from data_indexing.format import bin_path, idx_path, unpublished_path
from data_indexing.large_lines import read_large_text
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from tests.shared_data import shared

texts = st.text(
    st.sampled_from('a "\\/\n\u00e4\u4e2d\U0001f642\0u.') | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200
)


@settings(max_examples=300, deadline=None)
@given(text=texts, other=texts, escaped=st.booleans())
def test_a_large_text_is_what_json_says(text, other, escaped):
    value = {"other": other, "a": {"text": text, "n": [1.5, None, other]}, "x": {"a.text": other}}
    line = json.dumps(value, ensure_ascii=escaped).encode()
    assert bytes(read_large_text(line, "a.text")) == text.encode()
    whole = json.dumps(value | {"a.text": other}, ensure_ascii=escaped).encode()
    assert bytes(read_large_text(memoryview(whole), "a.text")) == other.encode()


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "lone surrogate \\ud800 in it, and more"}',
        b'{"text": "bad escape \\x in it, and more"}',
        b'{"text": "a tab \t in it, and then some more"}',
        b'{"text": "not UTF-8 \xff in it, and then more"}',
        b'{"text": "not UTF-8 elsewhere", "x": "\xff"}',
        b'{"text": "cut short before its end, it seems',
        b'{"text": "good and long and all", "x": tru}',
        b'{"text": "good and long and all"} {}',
        b'{"text": "good and long and all"} null',
        b'{"text": "good and long and all"} x',
        b'{"text": 5, "other": "good and long and all"}',
        b'{"text": null, "other": "good and long and all"}',
        b'{"other": "good and long and all"}',
        b'["good and long and all"]',
        b"null",
        b"5",
        b'"text"',
        b"",
    ],
)
def test_what_is_wrong_with_a_large_line_is_said(line):
    with pytest.raises(ValueError, match=r"not JSON|not UTF-8|is missing or null"):
        read_large_text(line, "text")


def read(data, field="text", **more):
    return read_documents(Chunk(Path("x"), num_bytes=len(data), data=data, **more), field, limit=len(data))


def test_a_large_line_cut_short_among_many_escapes_is_one_reject_and_the_next_is_read():
    # To look at the rest again from every quotation mark would take an hour.
    line = b'{"text":"' + b'<a href=\\"http://x.y/abc\\">word word</a> ' * 430_000
    found = read(line + b'\n{"text": "good"}\n')
    assert (found.texts, found.num_read, [reject.number for reject in found.rejects]) == (["good"], 2, [1])


def test_lines_of_any_size_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(documents, "LARGE_LINE_BYTES", 30)
    lines = [{"text": "a"}, {"text": "b" * 50}, {"text": ""}, {"n": [1] * 50, "text": "c"}, {"text": 5}, {"text": 5, "n": "d" * 50}]
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    for end in (b"", b"\n"):
        found = read(data + end)
        texts = [text if isinstance(text, str) else str(text, "utf-8") for text in found.texts]
        assert (texts, found.num_read, [reject.number for reject in found.rejects]) == (["a", "b" * 50, "c"], 6, [5, 6])


def test_large_texts_are_encoded_as_the_small_ones(llama3, monkeypatch):
    text = shared("text_fi/kalevala.txt").read_text()[:3000] + "\u088f's \U0001f642"
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 100)
    for encoder in (FastEncoder(llama3), ReferenceEncoder(llama3)):
        small, large = encoder.encode([text, text.encode()])
        parts = list(encoder.encode_in_pieces(memoryview(text.encode())))
        assert small.tolist() == large.tolist() == [number for ids in parts for number in ids.tolist()]
    assert is_disputed(text.encode())
    assert not is_disputed(b"a" * 99 + "\u00e4".encode())
    assert all(excerpt in text for excerpt in _excerpts([text.encode()]))


def test_the_tokens_of_large_documents_are_those_of_small_ones(byte_tokenizer, write_lines, tmp_path, monkeypatch):
    path = write_lines([{"text": f"sana ja toinen {number}" * (number % 30)} for number in range(100)] + [b"bad"])
    for name, size, workers in (("small", 1 << 20, 0), ("large", 100, 0), ("apart", 100, 1)):
        monkeypatch.setattr(documents, "LARGE_LINE_BYTES", size)
        options = TokenizeOptions(workers=workers, max_rejected="1")
        tokenize_files([path], tmp_path / name, tokenizer=byte_tokenizer, options=options)
        assert bin_path(tmp_path / name).read_bytes() == bin_path(tmp_path / "small").read_bytes()
        assert idx_path(tmp_path / name).read_bytes() == idx_path(tmp_path / "small").read_bytes()
        assert not unpublished_path(tmp_path / name).exists()


MEGABYTE_TEXTS = {
    # Held as a string, the last character would make it four bytes a character.
    "four-byte": "sana ja toinen\\n" * 3_000_000 + "\U0001f642",
    "disputed": "sana ja toinen\\n" * 2_000_000 + "\ua7ce",
    "emoji": "\U0001f642 \U0001f600\U0001f602 " * 2_500_000,
    "numbers": 'sana", "n": [' + "12345," * 8_000_000 + '1], "x": "',
}


@pytest.mark.parametrize("kind", MEGABYTE_TEXTS)
def test_a_text_of_many_megabytes_stays_within_the_bound_on_memory(tmp_path, byte_tokenizer, llama3, kind):
    tokenizer = byte_tokenizer if kind == "four-byte" else llama3
    tokenizer.save_hf(tmp_path / "tokenizer")
    text = MEGABYTE_TEXTS[kind]
    with (tmp_path / "x.jsonl").open("w", encoding="utf-8") as stream:
        for _ in range(4 if kind == "four-byte" else 1):
            stream.write('{"text": "' + text + '"}\n')
    command = [sys.executable, "-m", "megatron_poro", "data", "tokenize", tmp_path / "x.jsonl", "--workers", "2"]
    command += ["--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "p"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(memory, [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])))
        time.sleep(0.02)
    assert process.returncode == 0
    assert peak < 1_000_000_000


def memory(process):
    """What is the process's own, and its part of what it shares."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0
