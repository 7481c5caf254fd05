import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_indexing.chunks import Chunk, Fault
from data_indexing.documents import read_documents
from data_indexing.errors import DataError

REFUSED = {
    b"{'text': 1}": "not JSON",
    b'{"text": "cut': "not JSON (Unterminated string",
    b'{"text": "a"} {"text": "b"}': "not JSON (Extra data",
    b'{"text": "tab\there"}': "not JSON (Invalid control character",
    b'\xef\xbb\xbf{"text": "x"}': "not JSON (Unexpected UTF-8 BOM",
    b'["text"]': "not an object that could hold 'text', but list",
    b'{"body": "x", "id": 1}': "field 'text' is missing (found 'body', 'id'); see --text-field",
    b"{}": "field 'text' is missing (found nothing)",
    b'{"text": null}': "field 'text' is NoneType, not a string",
    b'{"text": 5}': "field 'text' is int, not a string",
    b'{"text": ["a"]}': "field 'text' is list, not a string",
    b'{"text": "a\\ud800b"}': "field 'text' holds a lone surrogate at character 1",
    b'{"text": "\xff"}': "not UTF-8 at byte 10 of the line",
    b'{"text": "\xed\xa0\x80"}': "not UTF-8 at byte 10 of the line",
    b'{"text": ' + b"9" * 5000 + b"}": "",
    b'{"text": ' + b"[" * 100_000: "recursion",
    b'{"text": "' + b"x" * 200_000 + b'"}': "more than 200000 bytes; see --max-document-bytes",
}


def lines(data, field="text", limit=100_000, **more):
    return read_documents(Chunk(Path("x"), num_bytes=len(data), data=data, **more), field, limit=limit)


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:20].decode("latin-1"))
def test_a_line_that_holds_no_text_is_refused_by_number_and_reason(line):
    found = lines(b'{"text": "good"}\n' + line + b"\n" + b'{"text": "good"}\n', limit=200_000)
    (reject,) = found.rejects
    assert (reject.number, found.num_read, found.texts) == (2, 3, ["good", "good"])
    assert REFUSED[line].lower() in reject.reason.lower()
    assert "\n" not in reject.reason


ACCEPTED = {
    b'{"text": "a\\u0000b"}': "a\0b",
    b'{"text": "x", "other": NaN, "more": -Infinity}': "x",
    b'{"text": "x", "other": "\\udc00"}': "x",
    b'{"text": "x", "other": 123456789012345678901234567890}': "x",
    b'{"text": "first", "text": "last"}': "last",
    b'  {"text": "x"}\t\r': "x",
    b'{"text": "\\ud83d\\ude42"}': "\U0001f642",
    b'{"text": "\xf0\x9f\x99\x82\xe2\x80\xa8"}': "\U0001f642\u2028",
    b'{"text": " "}': " ",
    b'{"text": "", "x": 1}': None,
    b"": None,
    b" \r": None,
}


@pytest.mark.parametrize("line", ACCEPTED, ids=lambda line: line[:30].decode("latin-1"))
def test_a_line_that_holds_a_text_gives_it(line):
    found = lines(line + b"\n" + line + b"\n")
    text = ACCEPTED[line]
    assert (found.texts, found.rejects, found.num_read) == ([text] * 2 if text is not None else [], [], 2)


@given(st.lists(st.text(max_size=30), max_size=10), st.booleans())
def test_any_json_of_pythons_is_read(texts, escaped):
    found = lines("".join(json.dumps({"a": {"b": text}}, ensure_ascii=escaped) + "\n" for text in texts).encode(), "a.b")
    assert (found.texts, found.rejects) == ([text for text in texts if text], [])


def test_a_key_with_a_dot_in_it_is_found_before_one_inside_another():
    assert lines(b'{"a.b": "x"}\n{"a": {"b": "y"}}\n{"a": {"b": "y"}, "a.b": "x"}\n', "a.b").texts == ["x", "y", "x"]
    assert lines(b'{"a.b": "x"}\n', "a.b").texts == ["x"]


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_as_the_standard_library_would(line):
    line = line.replace(b"\n", b"")
    found = lines(line + b"\n")
    assert found.num_read == 1
    assert not found.texts
    assert len(found.rejects) == (1 if line.strip() else 0)


def test_rows_are_texts_nulls_and_bytes_that_are_none():
    data = b"abc\xff\xffde"
    found = lines(data, lengths=(3, -1, 2, 0, 2))
    assert (found.texts, found.num_read) == (["abc", "de"], 5)
    assert [reject.number for reject in found.rejects] == [2, 3]
    assert lines(b"abc", lengths=(3,), limit=2).rejects[0].reason.startswith("more than 2 bytes")


def test_a_fault_counts_as_one_more_line():
    found = lines(b'{"text": "a"}\n', fault=Fault("too large"))
    assert (found.num_read, found.rejects[0]) == (2, (2, "too large", 0))


def test_a_damage_counts_as_all_the_documents_it_takes():
    found = lines(b'{"text": "a"}\n', fault=Fault("damaged", num_damaged=5))
    assert (found.num_read, found.rejects) == (6, [(2, "damaged", 5)])


def test_a_file_that_shrank_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"{}")
    with pytest.raises(DataError, match="the file changed"):
        read_documents(Chunk(tmp_path / "x", num_bytes=9), "text", limit=9)
