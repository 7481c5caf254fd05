import gzip
import json
import lzma
import os
import threading
import time
import zlib
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

from data_indexing import chunks, text_streams
from data_indexing.encoders import FastEncoder
from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, rejected_path, unpublished_path
from data_indexing.inputs import find_inputs, inputs_sha256
from data_indexing.inspect import inspect
from data_indexing.manifest import Counts, InputFile, Placement, Tokenization, load_manifest
from data_indexing.reader import IndexedReader
from data_indexing.tokenize import RejectsError, TokenizeOptions, check_preset, tokenize_files
from data_indexing.tokenizer import TextTokenizer
from data_indexing.verify import verify
from tests.shared_data import shared

INLINE = TokenizeOptions(workers=0)
REAL = [
    ("text_fi/wikipedia-fi-validation-sample.jsonl", "text", 100),
    ("text_fi/turku-ner-corpus.jsonl", "text", 40),
    ("text_en/peps.jsonl", "text", 5),
    ("code/cpython-3.11-lib.jsonl", "text", 8),
    ("math/gsm8k/test.jsonl", "question", 60),
    ("math/aqua/dev.jsonl", "rationale", 60),
]


def head(path, count):
    with path.open("rb") as stream:
        return [stream.readline().rstrip(b"\n") for _ in range(count)]


def manifest_of(prefix: Path) -> Any:
    return load_manifest(prefix)


def documents(prefix):
    with IndexedReader(prefix) as reader:
        return [reader.document(index).tolist() for index in range(reader.num_documents)]


@pytest.mark.parametrize(("name", "field", "count"), REAL)
def test_real_documents_come_back_as_they_were(llama3, write_lines, tmp_path, name, field, count):
    lines = head(shared(name), count)
    options = TokenizeOptions(text_field=field, workers=0)
    counts = tokenize_files([write_lines(lines)], tmp_path / "p", tokenizer=llama3, options=options)
    texts = [text for line in lines if (text := json.loads(line)[field])]
    shown = inspect(tmp_path / "p", llama3, documents=range(len(texts)))
    assert [document.text for document in shown.documents] == texts
    assert all((document.ids[0], document.ids[-1]) == (128_000, 128_001) for document in shown.documents)
    assert counts.num_text_bytes == sum(len(text.encode()) for text in texts)
    assert verify(tmp_path / "p", tokenizer=llama3).faults == ()


def test_the_output_does_not_depend_on_workers_or_chunks(byte_tokenizer, tmp_path, monkeypatch):
    inputs = [shared("text_fi/wikipedia-fi-validation-sample.jsonl"), shared("text_fi/ud_finnish-tdt.jsonl")]
    outputs = []
    for workers, chunk_bytes in ((0, 4 << 20), (1, 100_000), (2, 10_000)):
        monkeypatch.setattr(text_streams, "CHUNK_BYTES", chunk_bytes)
        prefix = tmp_path / f"p{workers}"
        tokenize_files(inputs, prefix, tokenizer=byte_tokenizer, options=TokenizeOptions(workers=workers))
        outputs.append((bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes(), manifest_of(prefix)))
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0][2].tokenization == Tokenization(
        "gigatoken", version("gigatoken"), "text", "0/1", "documents", inputs_sha256(find_inputs(inputs))
    )


def test_the_text_is_the_megatron_files_one_would_write_by_hand(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "ab"}, {"text": ""}, {"text": "é"}])
    counts = tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)
    (ab, e_acute) = byte_tokenizer.encode_batch(["ab", "é"])
    assert documents(tmp_path / "p") == [[256, *ab, 257], [256, *e_acute, 257]]
    assert (counts.num_documents, counts.num_empty_documents) == (2, 1)
    assert (counts.num_tokens, counts.num_text_bytes) == (8, 4)
    content = bin_path(tmp_path / "p").read_bytes()
    manifest = manifest_of(tmp_path / "p")
    assert (manifest.bin_sha256, manifest.bin_crc32) == (sha256(content).hexdigest(), zlib.crc32(content))


def test_control_tokens_can_be_left_out(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "ab"}])
    policies: list[tuple[Placement, Placement, int]] = [("none", "document", 3), ("document", "none", 3), ("none", "none", 2)]
    for bos, eod, size in policies:
        options = TokenizeOptions(bos=bos, eod=eod, workers=0, overwrite=True)
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
        policy = manifest_of(tmp_path / "p").policy
        assert (policy.bos_id, policy.eod_id) == (256 if bos != "none" else None, 257 if eod != "none" else None)
        assert len(documents(tmp_path / "p")[0]) == size


def test_a_policy_that_needs_a_token_the_tokenizer_lacks_is_refused(byte_tokenizer, write_lines, tmp_path):
    tokenizer = type(byte_tokenizer)(byte_tokenizer.definition, name="bare", config={"eos_token": "</s>"})
    with pytest.raises(DataError, match=r"tokenizer bare: no bos token.*--bos none"):
        tokenize_files([write_lines([{"text": "a"}])], tmp_path / "p", tokenizer=tokenizer, options=INLINE)


def test_every_form_of_input_gives_the_same_pair(byte_tokenizer, write_lines, tmp_path):
    texts = ["", "CR\r\nLF \r", "\u00e4\u4e2d\U0001f642\0", *(f"line {number}" for number in range(50))]
    plain = write_lines([{"a": {"text": text}} for text in texts])
    lines = plain.read_bytes()
    crlf = lines.replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    table = pa.table({"a": [{"text": text} for text in texts], "n": range(len(texts))})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=7)
    forms = {
        "p.jsonl": lines,
        "crlf.jsonl": crlf,
        "p.jsonl.gz": gzip.compress(lines),
        "p.jsonl.zst": zstandard.compress(lines),
        "p.jsonl.xz": lzma.compress(lines),
        "p.parquet": (tmp_path / "p.parquet").read_bytes(),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        options = TokenizeOptions(text_field="a.text", workers=0, overwrite=True)
        counts = tokenize_files([tmp_path / name], tmp_path / "out", tokenizer=byte_tokenizer, options=options)
        assert (counts.num_documents, counts.num_empty_documents, counts.num_rejected_documents) == (52, 1, 0)
        assert documents(tmp_path / "out") == [[256, *ids, 257] for ids in byte_tokenizer.encode_batch(texts[1:])]
        assert manifest_of(tmp_path / "out").inputs == (InputFile(name, len(content), sha256(content).hexdigest()),)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_text_file_is_one_document_without_its_byte_order_mark(byte_tokenizer, tmp_path, pack):
    name = "t.txt" if pack is bytes else "t.txt.gz"
    for text in ("\ufeffa\r\nb\n", "a\r\nb\n"):
        (tmp_path / name).write_bytes(pack(text.encode()))
        options = TokenizeOptions(workers=0, overwrite=True)
        tokenize_files([tmp_path / name], tmp_path / "out", tokenizer=byte_tokenizer, options=options)
        assert documents(tmp_path / "out") == [[256, *byte_tokenizer.encode_batch(["a\r\nb\n"])[0], 257]]


@pytest.mark.parametrize("workers", [0, 2])
def test_rejects_are_listed_and_the_pair_is_kept_till_they_are_allowed(byte_tokenizer, write_lines, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(text_streams, "CHUNK_BYTES", 200)
    good = [{"text": f"line {number}"} for number in range(100)]
    first = write_lines(good, "first.jsonl")
    second = write_lines([*good[:50], *good, b"{", *good[:30], {"text": 5}, {"text": ""}, *good], "second.jsonl")
    options = TokenizeOptions(workers=workers)
    with pytest.raises(RejectsError, match=r"2 of 383 .* at second\.jsonl:151: not JSON .*--max-rejected 2 to publish"):
        tokenize_files([first, second], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    assert [(r["file"], r["line"]) for r in rejects(tmp_path / "p")] == [("second.jsonl", 151), ("second.jsonl", 182)]
    assert not bin_path(tmp_path / "p").exists()
    assert unpublished_path(tmp_path / "p").is_dir()
    for allowed in ("1", "0.5%"):
        with pytest.raises(RejectsError):
            tokenize_again([first, second], tmp_path, byte_tokenizer, monkeypatch, max_rejected=allowed, workers=workers)
    counts = tokenize_again([first, second], tmp_path, byte_tokenizer, monkeypatch, max_rejected="1%", workers=workers)
    assert counts == Counts(380, counts.num_tokens, 1, counts.num_text_bytes, 2, 0)
    assert len(rejects(tmp_path / "p")) == 2
    assert not unpublished_path(tmp_path / "p").exists()
    assert verify(tmp_path / "p", tokenizer=byte_tokenizer).faults == ()


def tokenize_again(inputs, folder, tokenizer, monkeypatch, **options):
    """What is complete is published without another look at the text."""
    with monkeypatch.context() as patched:
        patched.setattr(chunks, "read_lines", None)
        return tokenize_files(inputs, folder / "p", tokenizer=tokenizer, options=TokenizeOptions(**options))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_a_compressed_file_cut_short_is_damage_that_no_number_of_allowed_rejects_covers(byte_tokenizer, tmp_path, pack):
    name = {gzip.compress: "x.jsonl.gz", lzma.compress: "x.jsonl.xz", zstandard.compress: "x.jsonl.zst"}[pack]
    packed = pack(b"".join(b'{"text": "%d"}\n' % number for number in range(5000)))
    (tmp_path / name).write_bytes(packed[: len(packed) * 9 // 10])
    (tmp_path / "y.jsonl").write_text('{"text": "good"}\n{')
    inputs = [tmp_path / name, tmp_path / "y.jsonl"]
    message = r"at least 1 documents lost by damage .* data damaged from .* --allow-damaged to publish"
    with pytest.raises(RejectsError, match=message):
        tokenize_files(inputs, tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=0, max_rejected="99%"))
    with pytest.raises(RejectsError, match=r"1 of .* rejected, the first"):
        tokenize_files(inputs, tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=0, allow_damaged=True))
    options = TokenizeOptions(workers=0, max_rejected="1", allow_damaged=True)
    counts = tokenize_files(inputs, tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    assert (counts.num_rejected_documents, counts.num_damaged_documents) == (1, 1)
    assert [line.get("num_damaged") for line in rejects(tmp_path / "p")] == [1, None]
    assert manifest_of(tmp_path / "p").counts == counts


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.jsonl.xz", "x.txt.gz"])
def test_a_compressed_file_of_no_bytes_is_damaged(byte_tokenizer, write_lines, tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(RejectsError, match=r"at least 1 documents lost by damage .*--allow-damaged"):
        good = write_lines([{"text": "a"}], "good.jsonl")
        tokenize_files([good, tmp_path / name], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_row_groups_after_a_damaged_one_are_read_and_its_rows_are_counted(byte_tokenizer, tmp_path, monkeypatch, workers):
    path = tmp_path / "x.parquet"
    texts = [f"{number} " * 50 for number in range(1000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    metadata = pq.ParquetFile(path).metadata
    raw = bytearray(path.read_bytes())
    start = metadata.row_group(3).column(0).dictionary_page_offset
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    with pytest.raises(RejectsError, match=r"at least 100 documents lost .*x\.parquet:301: row group 3 of Parquet damaged"):
        tokenize_files(
            [path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=workers, max_rejected="50%")
        )
    counts = tokenize_again([path], tmp_path, byte_tokenizer, monkeypatch, workers=workers, allow_damaged=True)
    assert (counts.num_documents, counts.num_rejected_documents, counts.num_damaged_documents) == (900, 0, 100)
    assert rejects(tmp_path / "p")[0]["num_damaged"] == 100
    written = [byte_tokenizer.decode(ids, skip_special_tokens=True) for ids in documents(tmp_path / "p")]
    assert written == texts[:300] + texts[400:]


def test_the_share_of_rejects_is_compared_exactly(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "a"} if number < 71 else b"bad" for number in range(100)])
    for allowed in ("28%", "28.99999999999999999%", "28"):
        with pytest.raises(RejectsError):
            options = TokenizeOptions(workers=0, max_rejected=allowed)
            tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    options = TokenizeOptions(workers=0, max_rejected="29%")
    assert tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=options).num_rejected_documents == 29


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_at_the_start_of_a_file_is_no_part_of_its_first_line(byte_tokenizer, tmp_path, pack):
    name = "x.jsonl" if pack is bytes else "x.jsonl.gz"
    (tmp_path / name).write_bytes(pack(b'\xef\xbb\xbf{"text": "ab"}\n{"text": "c"}\n'))
    for count in (1, 2):
        found = []
        for number in range(count):
            options = TokenizeOptions(workers=0, shard=(number, count), overwrite=True)
            tokenize_files([tmp_path / name], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
            found += documents(tmp_path / "p")
        assert found == [[256, *ids, 257] for ids in byte_tokenizer.encode_batch(["ab", "c"])]


def rejects(prefix):
    return [json.loads(line) for line in rejected_path(prefix).read_text().splitlines()]


def test_what_is_damaged_or_too_large_is_rejected_and_the_rest_is_read(byte_tokenizer, write_lines, tmp_path, monkeypatch):
    monkeypatch.setattr(text_streams, "CHUNK_BYTES", 64)
    lines = [{"text": "a"}, {"text": "b" * 300}, {"text": "c"}, {"text": "d" * 90}, {"text": "e"}]
    plain = write_lines(lines, "1.jsonl")
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes() * 50)[:-20])
    (tmp_path / "3.txt").write_bytes(b"f" * 101)
    (tmp_path / "4.txt").write_bytes(b"g\xff")
    write = pq.ParquetWriter(tmp_path / "5.parquet", pa.schema({"text": pa.string()}))
    write.write_table(pa.table({"text": ["h", None, "i" * 101]}))
    write.close()
    (tmp_path / "6.parquet").write_bytes((tmp_path / "5.parquet").read_bytes().replace(b"i" * 50, b"\xff" * 50))
    options = TokenizeOptions(workers=0, max_document_bytes=100, max_rejected="100%", allow_damaged=True)
    names = ["1.jsonl", "2.jsonl.gz", "3.txt", "4.txt", "5.parquet"]
    counts = tokenize_files([tmp_path / name for name in names], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    found = [(r["file"], r["line"], r["reason"][:20]) for r in rejects(tmp_path / "p")]
    large = "more than 100 bytes;"
    assert found[:2] == [("1.jsonl", 2, large), ("1.jsonl", 4, large)]
    assert found[-4:] == [
        ("3.txt", 1, large),
        ("4.txt", 1, "not UTF-8 at byte 1"),
        ("5.parquet", 2, "null, not a string"),
        ("5.parquet", 3, large),
    ]
    assert any("gzip data damaged" in r["reason"] for r in rejects(tmp_path / "p"))
    assert (counts.num_rejected_documents, counts.num_damaged_documents) == (len(found) - 1, 1)


@pytest.mark.parametrize("field", ["body", "number", "words.list.element"])
def test_a_parquet_file_without_such_a_column_is_named(byte_tokenizer, tmp_path, field):
    pq.write_table(pa.table({"text": ["a"], "number": [1], "words": [["a"]]}), tmp_path / "x.parquet")
    messages = [r"no column 'body' \(found text, number", "column 'number' is INT64", "column 'words.list.element' is a list"]
    with pytest.raises(DataError, match=rf"x\.parquet: ({'|'.join(messages)})"):
        options = TokenizeOptions(text_field=field, workers=0)
        tokenize_files([tmp_path / "x.parquet"], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    assert not unpublished_path(tmp_path / "p").exists()


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_together_are_the_whole(byte_tokenizer, write_lines, tmp_path, count):
    plain = write_lines([{"text": "x" * (number % 50)} if number % 9 else b"bad" for number in range(300)], "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pq.write_table(pa.table({"text": [str(number) for number in range(90)]}), tmp_path / "c.parquet", row_group_size=8)
    (tmp_path / "d.txt").write_text("text")
    inputs = [plain, tmp_path / "b.jsonl.gz", tmp_path / "c.parquet", tmp_path / "d.txt"]

    def run(prefix, shard):
        options = TokenizeOptions(workers=0, shard=shard, max_rejected="100%")
        counts = tokenize_files(inputs, prefix, tokenizer=byte_tokenizer, options=options)
        return counts, documents(prefix), rejects(prefix) if counts.num_rejected_documents else []

    whole = run(tmp_path / "whole", (0, 1))
    parts = [run(tmp_path / f"{number}", (number, count)) for number in range(count)]
    assert [document for part in parts for document in part[1]] == whole[1]
    assert [reject for part in parts for reject in part[2]] == whole[2]
    for field in asdict(whole[0]):
        assert sum(asdict(part[0])[field] for part in parts) == asdict(whole[0])[field]
    ranges = [file for number in range(count) for file in manifest_of(tmp_path / f"{number}").inputs if file.name == "a.jsonl"]
    assert sum(file.num_bytes for file in ranges) == plain.stat().st_size
    content = plain.read_bytes()
    assert all(sha256(content[f.first_byte :][: f.num_bytes]).hexdigest() == f.sha256 for f in ranges)


def test_a_difference_from_the_reference_falls_back_to_it_and_says_so(byte_tokenizer, write_lines, tmp_path, monkeypatch, capsys):
    path = write_lines([{"text": f"line {number}"} for number in range(50)])
    tokenize_files([path], tmp_path / "right", tokenizer=byte_tokenizer, options=INLINE)
    wrong = FastEncoder._encode

    def encode(self, texts):
        return [ids + 1 if text.startswith("line 49") else ids for text, ids in zip(texts, wrong(self, texts), strict=True)]

    monkeypatch.setattr(FastEncoder, "_encode", encode)
    monkeypatch.setattr("data_indexing.encode._SAMPLED_DOCUMENTS", 50)
    tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)
    assert "gigatoken is not used: other ids than the reference for 'line 49'" in capsys.readouterr().err
    assert bin_path(tmp_path / "p").read_bytes() == bin_path(tmp_path / "right").read_bytes()
    assert manifest_of(tmp_path / "p").tokenization.encoder == "tokenizers"


def test_a_tokenizer_that_gigatoken_does_not_know_is_encoded_by_the_reference(write_lines, tmp_path, capsys):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = TextTokenizer(words.to_str(), name="words", config={})
    options = TokenizeOptions(bos="none", eod="none", workers=1)
    tokenize_files([write_lines([{"text": "b a c"}])], tmp_path / "p", tokenizer=tokenizer, options=options)
    assert documents(tmp_path / "p") == [[1, 0, 2]]
    assert "gigatoken is not used" in capsys.readouterr().err


def test_a_killed_worker_is_an_error_and_nothing_is_published(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "word " * 200_000}] * 60)

    def kill_a_worker():
        while len(found := psutil.Process().children(recursive=True)) < 3:
            time.sleep(0.01)
        found[-1].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(DataError, match="a worker process died"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=2))
    killer.join()
    assert not bin_path(tmp_path / "p").exists()


def test_inputs_without_text_are_refused_but_a_shard_may_have_none(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": ""}] * 2)
    with pytest.raises(DataError, match=r"hold no text \(2 empty documents\)"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)
    assert list(tmp_path.iterdir()) == [path]
    for shard in range(3):
        options = TokenizeOptions(workers=0, shard=(shard, 3))
        tokenize_files([path], tmp_path / f"{shard}", tokenizer=byte_tokenizer, options=options)
        assert documents(tmp_path / f"{shard}") == []


@pytest.mark.parametrize("text", ["x", "-1", "-1%", "1%%", "nan%", "inf%", "1/0%", "1.5"])
def test_options_that_make_no_sense_are_refused(byte_tokenizer, write_lines, tmp_path, text):
    path = write_lines([{"text": "a"}])
    with pytest.raises(DataError, match=r"workers \(-1\) must be at least 0"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=-1))
    with pytest.raises(DataError, match="is neither a number nor a percentage"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(max_rejected=text))
    with pytest.raises(DataError, match=r"max document bytes \(-5\) must be at least 1"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(max_document_bytes=-5))


def test_the_preset_wants_llama_3s_base_tokenizer(llama3, byte_tokenizer):
    check_preset("poro2", llama3, None, "document")
    with pytest.raises(DataError, match="BOS and end are <s> and </s>, preset poro2 wants"):
        check_preset("poro2", byte_tokenizer, None, None)
    with pytest.raises(DataError, match="leave out --bos none"):
        check_preset("poro2", llama3, "none", None)


def test_an_input_that_is_also_the_output_is_refused(byte_tokenizer, tmp_path):
    text = tmp_path / "in.json"
    text.write_text('{"text": "hei"}\n')
    with pytest.raises(DataError, match="both input and output"):
        tokenize_files([text], tmp_path / "in", tokenizer=byte_tokenizer, options=TokenizeOptions(overwrite=True))
    assert text.read_text() == '{"text": "hei"}\n'


def test_a_file_name_that_is_not_utf_8_comes_back_from_the_manifest(byte_tokenizer, write_lines, tmp_path):
    name = os.fsdecode(b"a\xff.jsonl")
    tokenize_files([write_lines([{"text": "a"}], name)], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)
    assert [file.name for file in manifest_of(tmp_path / "p").inputs] == [name]
    assert verify(tmp_path / "p").faults == ()
