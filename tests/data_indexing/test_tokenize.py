import gzip
import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data_indexing import jsonl, tokenize
from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path
from data_indexing.inspect import inspect
from data_indexing.manifest import Placement, load_manifest
from data_indexing.reader import IndexedReader
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from data_indexing.verify import verify
from tests.shared_data import shared

INLINE = TokenizeOptions(workers=1)
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
    options = TokenizeOptions(text_field=field, workers=1)
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
    monkeypatch.setattr(tokenize, "_WORKER_BYTES", 1)
    for workers, chunk_bytes in ((1, 4 << 20), (2, 10_000)):
        monkeypatch.setattr(jsonl, "CHUNK_BYTES", chunk_bytes)
        prefix = tmp_path / f"p{workers}"
        tokenize_files(inputs, prefix, tokenizer=byte_tokenizer, options=TokenizeOptions(workers=workers))
        outputs.append((bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes(), manifest_of(prefix)))
    assert outputs[0] == outputs[1]


def test_the_text_is_the_megatron_files_one_would_write_by_hand(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "ab"}, {"text": ""}, {"text": "é"}])
    counts = tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)
    (ab, e_acute) = byte_tokenizer.encode_batch(["ab", "é"])
    assert documents(tmp_path / "p") == [[256, *ab, 257], [256, *e_acute, 257]]
    assert (counts.num_documents, counts.num_empty_documents) == (2, 1)
    assert (counts.num_tokens, counts.num_text_bytes) == (8, 4)


def test_control_tokens_can_be_left_out(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "ab"}])
    policies: list[tuple[Placement, Placement, int]] = [("none", "document", 3), ("document", "none", 3), ("none", "none", 2)]
    for bos, eod, size in policies:
        options = TokenizeOptions(bos=bos, eod=eod, workers=1, overwrite=True)
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
        policy = manifest_of(tmp_path / "p").policy
        assert (policy.bos_id, policy.eod_id) == (256 if bos != "none" else None, 257 if eod != "none" else None)
        assert len(documents(tmp_path / "p")[0]) == size


def test_a_policy_that_needs_a_token_the_tokenizer_lacks_is_refused(byte_tokenizer, write_lines, tmp_path):
    tokenizer = type(byte_tokenizer)(json.loads(byte_tokenizer.to_json())["definition"], name="bare", config={"eos_token": "</s>"})
    with pytest.raises(DataError, match=r"tokenizer bare: no bos token.*--bos none"):
        tokenize_files([write_lines([{"text": "a"}])], tmp_path / "p", tokenizer=tokenizer, options=INLINE)


def test_a_compressed_file_gives_the_same_pair(byte_tokenizer, write_lines, tmp_path):
    plain = write_lines([{"text": f"line {number}"} for number in range(50)])
    packed = tmp_path / "input.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path, prefix in ((plain, tmp_path / "a"), (packed, tmp_path / "b")):
        tokenize_files([path], prefix, tokenizer=byte_tokenizer, options=INLINE)
    assert bin_path(tmp_path / "a").read_bytes() == bin_path(tmp_path / "b").read_bytes()
    assert manifest_of(tmp_path / "b").inputs[0].name == "input.jsonl.gz"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_earliest_bad_line_is_named_and_nothing_is_published(byte_tokenizer, write_lines, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(jsonl, "CHUNK_BYTES", 200)
    monkeypatch.setattr(tokenize, "_WORKER_BYTES", 1)
    good = [{"text": f"line {number}"} for number in range(100)]
    first = write_lines(good, "first.jsonl")
    second = write_lines([*good[:50], *good, b"{", *good[:30], b"[]", *good], "second.jsonl")
    options = TokenizeOptions(workers=workers)
    with pytest.raises(DataError, match=r"second\.jsonl:151: not JSON .*; correct or remove the line"):
        tokenize_files([first, second], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    assert {path.name for path in tmp_path.iterdir()} == {"first.jsonl", "second.jsonl"}


def test_a_killed_worker_is_an_error_and_nothing_is_published(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "word " * 200_000}] * 20)

    def kill_first_child():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_first_child)
    killer.start()
    with pytest.raises(DataError, match="a worker process died"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=2))
    killer.join()
    assert list(tmp_path.iterdir()) == [path]


def test_inputs_without_text_are_refused(byte_tokenizer, write_lines, tmp_path):
    with pytest.raises(DataError, match=r"hold no text \(2 empty documents\)"):
        tokenize_files([write_lines([{"text": ""}] * 2)], tmp_path / "p", tokenizer=byte_tokenizer, options=INLINE)
    assert not bin_path(tmp_path / "p").exists()


def test_no_workers_are_refused(byte_tokenizer, write_lines, tmp_path):
    path = write_lines([{"text": "a"}])
    with pytest.raises(DataError, match=r"workers \(0\) must be at least 1"):
        tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=TokenizeOptions(workers=0))
