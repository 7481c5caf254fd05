"""Damaged inputs of every form: no crash, no hang, nothing lost in silence."""

import gzip
import io
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_indexing import text_streams
from data_indexing.errors import DataError
from data_indexing.format import rejected_path
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from data_indexing.unpublished import State
from data_indexing.verify import verify

TEXTS = ["ab", "", "\u00e4\u4e2d\U0001f642", "<s>x</s>", "a\nb\r\nc", "x" * 400, "\0", "</s>", "\u088f's", "1 2 3"]
LINES = "".join(json.dumps({"text": text, "n": 1.5, "m": [None]}) + "\n" for text in TEXTS * 3).encode()
RUNS = 340


def parquet():
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": [*TEXTS, None] * 3}), stream, row_group_size=10)
    return stream.getvalue()


FORMS = {
    "x.jsonl": LINES,
    "x.jsonl.gz": gzip.compress(LINES),
    "x.jsonl.zst": zstandard.compress(LINES),
    "x.jsonl.xz": lzma.compress(LINES),
    "x.parquet": parquet(),
    "x.txt": LINES,
}


def mutate(raw, chance):
    data = bytearray(raw)
    for _ in range(chance.choice([1, 1, 3, 20])):
        place, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        kind = chance.randrange(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place:place] = chance.randbytes(chance.randrange(9))
        elif kind == 2:
            del data[place : min(end, place + chance.randrange(60))]
        elif kind == 3:
            data[place:place] = chance.choice([b'"', b"\\", b"\n", b"\r", b"{", b"}", b"\\ud800", b"\xed\xa0\x80", b"NaN", b"\0"])
        elif chance.randrange(4) == 0:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("name", FORMS)
def test_damaged_inputs_are_read_or_rejected_and_the_counts_balance(byte_tokenizer, tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_streams, "CHUNK_BYTES", 300)
    monkeypatch.setattr("data_indexing.encode.probe_texts", lambda specials: ["probe"])
    chance = random.Random(name)
    for number in range(RUNS):
        raw = mutate(FORMS[name], chance)
        (tmp_path / name).write_bytes(raw)
        options = TokenizeOptions(workers=0, max_rejected="100%", allow_damaged=True, max_document_bytes=350, overwrite=True)
        seen: list[State] = []
        try:
            counts = tokenize_files([tmp_path / name], tmp_path / "p", tokenizer=byte_tokenizer, options=options, log=seen.append)
        except DataError as error:
            assert "hold no text" in str(error) or (name == "x.parquet" and "x.parquet" in str(error)), number
            continue
        listed = rejected_path(tmp_path / "p")
        rejects = [json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else []
        damages = [line["num_damaged"] for line in rejects if "num_damaged" in line]
        assert (len(rejects) - len(damages), sum(damages)) == (counts.num_rejected_documents, counts.num_damaged_documents)
        parts = (counts.num_documents, counts.num_empty_documents, counts.num_rejected_documents, counts.num_damaged_documents)
        assert sum(part or 0 for part in parts) == seen[-1].num_read
        if name == "x.jsonl":
            assert seen[-1].num_read == len(raw.split(b"\n")) - raw.endswith(b"\n")
        assert verify(tmp_path / "p", tokenizer=byte_tokenizer).faults == (), number
