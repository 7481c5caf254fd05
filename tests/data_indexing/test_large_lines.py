import json
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing import documents, large_lines
from data_indexing.encode import _excerpts
from data_indexing.encoders import FastEncoder, ReferenceEncoder, is_disputed
from data_indexing.large_lines import decode_pieces, is_utf8, read_large_text
from tests.shared_data import shared

texts = st.text(
    st.sampled_from('a "\\/\n\u00e4\u4e2d\U0001f642\0u.') | st.characters(exclude_categories=["Cs"]), min_size=20, max_size=200
)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(large_lines, "_LARGE_STRING_BYTES", 15)
    monkeypatch.setattr(large_lines, "_PIECE_BYTES", 7)


@settings(max_examples=300, deadline=None)
@given(text=texts, other=texts, escaped=st.booleans())
def test_a_large_text_is_what_json_says(text, other, escaped):
    line = json.dumps({"other": other, "a": {"text": text, "n": [1.5, None, other]}, other: 1}, ensure_ascii=escaped).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(large_lines, "_LARGE_STRING_BYTES", 15)
        patched.setattr(large_lines, "_PIECE_BYTES", 7)
        found = read_large_text(line, ["a", "text"])
        assert found == (text.encode() if len(json.dumps(text, ensure_ascii=escaped).encode()) > 15 else None)
        assert "".join(decode_pieces(text.encode())) == text


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "lone surrogate \\ud800 in it, and more"}',
        b'{"text": "bad escape \\x in it, and more"}',
        b'{"text": "a tab \t in it, and then some more"}',
        b'{"text": "not UTF-8 \xff in it, and then more"}',
        b'{"text": "cut short before its end, it seems',
        b'{"text": "good and long and all", "x": tru}',
        b'{"text": "good and long and all"} {}',
        b'{"text": 5, "other": "good and long and all"}',
        b'{"other": "good and long and all"}',
        b'["good and long and all"]',
    ],
)
def test_what_is_wrong_is_left_to_the_usual_way(line):
    assert read_large_text(line, ["text"]) is None


def test_large_texts_are_encoded_as_the_small_ones(llama3, monkeypatch):
    monkeypatch.setattr(documents, "LARGE_LINE_BYTES", 20)
    text = shared("text_fi/kalevala.txt").read_text()[:3000] + "\u088f's \U0001f642"
    for encoder in (FastEncoder(llama3), ReferenceEncoder(llama3)):
        small, large = encoder.encode([text, text.encode()])
        assert small.tolist() == large.tolist()
    assert is_disputed(text.encode())
    assert not is_disputed(b"a" * 99 + "\u00e4".encode())
    assert not is_utf8(b"abcdefgh\xff")
    assert all(excerpt in text for excerpt in _excerpts([text.encode()]))


def test_a_text_of_many_megabytes_stays_within_the_bound_on_memory(tmp_path, byte_tokenizer):
    byte_tokenizer.save_hf(tmp_path / "tokenizer")
    # Held as a string, the last character would make it four bytes a character.
    text = "sana ja toinen\\n" * 3_000_000 + "\U0001f642"
    with (tmp_path / "x.jsonl").open("w", encoding="utf-8") as stream:
        for _ in range(4):
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
