import struct

import numpy as np
import pytest

from data_indexing.format import HEADER_BYTES, bin_path, idx_path, manifest_path
from data_indexing.tokenizer import TextTokenizer
from data_indexing.verify import verify
from data_indexing.writer import IndexedWriter
from tests.data_indexing.pairs_of_documents import without_crc32, write_pair, write_texts
from tests.shared_data import shared


@pytest.fixture
def prefix(byte_tokenizer, tmp_path):
    """Three documents of three, four and five tokens (uint16), with a manifest."""
    return write_texts(tmp_path / "p", ["x", "xx", "xxx"], byte_tokenizer)


def patch(path, offset, raw):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(raw)] = raw
    path.write_bytes(content)


def outcomes(report):
    return {check.name: check.outcome for check in report.checks}


def details(report):
    return {check.name: check.detail for check in report.checks}


def test_a_sound_pair_passes_every_check(prefix, byte_tokenizer):
    for report in (verify(prefix), verify(prefix, tokenizer=byte_tokenizer)):
        assert set(outcomes(report).values()) == {"ok"}
        assert report.faults == ()


def test_without_manifest_and_tokenizer_the_rest_is_unknown(prefix):
    manifest_path(prefix).unlink()
    report = verify(prefix)
    unknown = {name for name, outcome in outcomes(report).items() if outcome == "unknown"}
    assert unknown == {"ids", "bos", "eod", "manifest"}
    assert report.faults == ()


def test_a_tokenizer_alone_decides_ids_and_document_ends(prefix, byte_tokenizer):
    manifest_path(prefix).unlink()
    found = outcomes(verify(prefix, tokenizer=byte_tokenizer))
    assert (found["ids"], found["eod"], found["bos"]) == ("ok", "ok", "unknown")


@pytest.mark.parametrize(
    ("offset", "value", "check", "detail"),
    [
        (2, 999, "ids", "1 ids outside the vocabulary of 258, the first is token 1"),
        (4, 5, "eod", "1 documents without 257, the first is document 0"),
        (6, 5, "bos", "1 documents without 256, the first is document 1"),
    ],
)
def test_a_changed_token_is_found(prefix, offset, value, check, detail):
    patch(bin_path(prefix), offset, struct.pack("<H", value))
    report = verify(prefix)
    assert details(report)[check] == detail
    assert [fault.name for fault in report.faults] == [check, "manifest"]
    assert "sha256 of the .bin" in report.faults[-1].detail
    assert "crc32 of the .bin" in report.faults[-1].detail
    report = verify(without_crc32(prefix))
    assert "sha256 of the .bin" in report.faults[-1].detail
    assert "crc32" not in report.faults[-1].detail


@pytest.mark.parametrize(
    ("offset", "value", "check"),
    [(12 + 8, 7, "pointers"), (12 + 24 + 8, 3, "documents"), (12 + 24, 1, "documents")],
)
def test_a_changed_index_is_found_and_its_tokens_are_not_judged(prefix, offset, value, check):
    patch(idx_path(prefix), HEADER_BYTES + offset, struct.pack("<q", value))
    report = verify(prefix)
    assert [fault.name for fault in report.faults] == [check, "manifest"]
    assert outcomes(report)["tokens"] == "unknown"


def test_an_empty_document_has_no_end_token(tmp_path, byte_tokenizer):
    with IndexedWriter(tmp_path / "p", np.uint16) as writer:
        writer.add_documents([5, 257], [2, 0][:2])
    assert details(verify(tmp_path / "p", tokenizer=byte_tokenizer))["eod"].endswith("the first is document 1")


def test_a_pair_of_empty_documents_and_one_of_none_can_be_verified(tmp_path):
    assert verify(write_pair(tmp_path / "empty", [[[]], []])).faults == ()
    assert verify(write_pair(tmp_path / "none", [])).faults == ()


def test_numbers_with_a_point_are_no_ids(tmp_path):
    assert outcomes(verify(write_pair(tmp_path / "p", [[[1]]], np.float32)))["ids"] == "fault"


def test_a_negative_id_is_strange_in_any_vocabulary(tmp_path):
    with IndexedWriter(tmp_path / "p", np.int32) as writer:
        writer.add_document([1, -1])
    assert outcomes(verify(tmp_path / "p"))["ids"] == "fault"


def test_another_tokenizer_than_the_manifests_is_a_fault(prefix, byte_tokenizer):
    definition = byte_tokenizer._tokenizer.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
    other = TextTokenizer(definition, name="other", config=byte_tokenizer.config)
    (fault,) = verify(prefix, tokenizer=other).faults
    assert fault.detail.startswith("tokenizer is ")


def test_files_that_cannot_be_opened_are_one_fault(prefix):
    bin_path(prefix).write_bytes(b"")
    (fault,) = verify(prefix).faults
    assert fault.name == "files"
    manifest_path(prefix).write_text("[]")
    (fault,) = verify(prefix).faults
    assert "p.json" in fault.detail


def test_the_foreign_pair_is_sound_as_far_as_can_be_known():
    report = verify(shared("megatron_foreign") / "meg-gpt2-openwebtext_text_document")
    assert report.faults == ()
    assert outcomes(report)["eod"] == "unknown"
