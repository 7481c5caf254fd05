import gzip
import json
import lzma
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_indexing import text_streams
from data_indexing.errors import DataError
from data_indexing.fertility import Fertility, fertility_table, measure_fertility, save_picture
from tests.shared_data import shared

TEXT = "yksi kaksi\nkolme ä\n"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "t.txt").write_bytes(TEXT.encode())
    return tmp_path / "t.txt"


def test_words_bytes_and_tokens_are_counted(text, byte_tokenizer):
    ((row,),) = measure_fertility([text], [byte_tokenizer])
    assert row == Fertility(str(text), "bytes", 4, 20, 20)
    assert (row.tokens_per_word, row.bytes_per_token) == (5.0, 1.0)


def test_json_lines_and_compressed_files_count_the_same(tmp_path, byte_tokenizer):
    lines = "".join(json.dumps({"doc": {"text": part}}) + "\n" for part in TEXT.splitlines(keepends=True)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.txt.gz")]
    *texts, together = measure_fertility(paths, [byte_tokenizer, byte_tokenizer], text_field="doc.text")
    for path, rows in zip(paths, texts, strict=True):
        assert rows == [Fertility(str(path), "bytes", 4, 20, 20)] * 2
    assert together == [Fertility("all", "bytes", 12, 60, 60)] * 2


def test_every_kind_of_file_that_can_be_tokenised_counts_the_same(tmp_path, byte_tokenizer):
    lines = "".join(json.dumps({"text": part}) + "\n" for part in TEXT.splitlines(keepends=True)).encode()
    pq.write_table(pa.table({"text": TEXT.splitlines(keepends=True)}), tmp_path / "a.parquet")
    (tmp_path / "b.ndjson").write_bytes(lines)
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(lines.replace(b"\n", b"\r\n\r\n")))
    (tmp_path / "d.txt.zst").write_bytes(zstandard.compress(TEXT.encode()))
    *texts, together = measure_fertility([tmp_path], [byte_tokenizer])
    assert [rows[0].text for rows in texts] == [str(path) for path in sorted(tmp_path.iterdir())]
    assert together == [Fertility("all", "bytes", 16, 80, 80)]


def test_a_text_is_measured_in_pieces(tmp_path, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(text_streams, "CHUNK_BYTES", 50)
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 20 + b"\xff")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 0, counted from byte 400;"):
        measure_fertility([tmp_path / "a.txt"], [byte_tokenizer])
    (tmp_path / "a.txt").write_bytes(TEXT.encode() * 20)
    assert measure_fertility([tmp_path / "a.txt"], [byte_tokenizer])[0][0].num_bytes == 400


def test_the_table_has_a_line_a_row_and_the_picture_is_one(text, byte_tokenizer, tmp_path):
    rows = measure_fertility([text, text], [byte_tokenizer])
    lines = list(fertility_table(rows))
    assert [line.split()[0] for line in lines] == ["text", str(text), str(text), "all"]
    assert lines[-1].split() == ["all", "bytes", "8", "40", "40", "5.000", "1.000"]
    save_picture(rows, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="choose another picture"):
        save_picture(rows, tmp_path / "p.xyz")


def test_a_text_without_words_has_no_ratio(tmp_path, byte_tokenizer):
    (tmp_path / "empty").touch()
    assert "nan" in list(fertility_table(measure_fertility([tmp_path / "empty"], [byte_tokenizer])))[1]


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DataError, match=r"install megatron_poro\[plot\]"):
        save_picture([], tmp_path / "p.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', r"a\.jsonl:2: field 'text' is missing \(found 'txt'\)"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl:1: field 'text' is int"),
        ("a.jsonl", b'\n{"text": "x"}\nno\n', r"a\.jsonl:3: not JSON \(Expecting value"),
        ("a.jsonl", rb'{"text": "\ud800"}', r"a\.jsonl:1: field 'text' holds a lone surrogate at character 0"),
        ("a.ndjson", b"plain text", r"a\.ndjson:1: not JSON"),
        ("a.parquet", b"no", r"a\.parquet: .*give a whole Parquet file"),
        ("a.txt.xz", b"no", r"a\.txt\.xz: xz data damaged from about here \(.*counted from byte 0"),
        ("a.txt", b"\xff", r"a\.txt: not UTF-8"),
        ("a.gz", b"no", r"a\.gz:1: gzip data damaged from about here \(Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"abc" * 99)[:-9], r"a\.txt\.gz: gzip data damaged from about here \(Compressed file ended"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, byte_tokenizer, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        measure_fertility([tmp_path / name], [byte_tokenizer])


def test_a_missing_text_is_named(tmp_path, byte_tokenizer):
    with pytest.raises(DataError, match=r"none: .*No such file"):
        measure_fertility([tmp_path / "none"], [byte_tokenizer])


def test_finnish_costs_more_tokens_a_word_than_english(llama3):
    (finnish,), (english,), _ = measure_fertility([shared("text_fi/kalevala.txt"), shared("text_en/tinyshakespeare.txt")], [llama3])
    assert 2.5 < finnish.tokens_per_word < 4
    assert 1.2 < english.tokens_per_word < 1.8
