import json

import pytest

from data_indexing.errors import DataError
from data_indexing.format import manifest_path
from data_indexing.manifest import (
    Counts,
    InputFile,
    Manifest,
    Part,
    Policy,
    TokenizerRecord,
    file_sha256,
    load_manifest,
    save_manifest,
)

FULL = Manifest(
    tokenizer=TokenizerRecord("llama3", "ab", 128_256),
    policy=Policy("document", 128_000, "none", None),
    dtype="int32",
    counts=Counts(2, 10, 0, 7),
    inputs=(InputFile("ä.jsonl", 9, "cd"),),
    bin_sha256="ef",
    bin_crc32=7,
    idx_sha256="01",
    parts=(Part("fi", 1, 5, None, None),),
    shuffle_seed=4,
)
OPEN = Manifest(
    tokenizer=None,
    policy=None,
    dtype="uint16",
    counts=Counts(0, 0, None, None),
    inputs=(),
    bin_sha256="",
    idx_sha256="",
)


@pytest.mark.parametrize("manifest", [FULL, OPEN])
def test_a_manifest_comes_back(tmp_path, manifest):
    save_manifest(tmp_path / "p", manifest)
    assert load_manifest(tmp_path / "p") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_manifest_of_before_the_crc32_is_understood(tmp_path):
    save_manifest(tmp_path / "p", OPEN)
    path = manifest_path(tmp_path / "p")
    raw = json.loads(path.read_text())
    del raw["bin_crc32"]
    path.write_text(json.dumps(raw))
    assert load_manifest(tmp_path / "p") == OPEN


def test_a_pair_without_manifest_has_none(tmp_path):
    assert load_manifest(tmp_path / "p") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, r"p\.json: manifest version 2, expected 1"),
        ({"colour": "red"}, r"p\.json: TypeError: .*colour.*; restore the manifest or remove it"),
        ({"counts": {}}, r"p\.json: TypeError: .*num_documents"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_named(tmp_path, change, message):
    save_manifest(tmp_path / "p", FULL)
    path = manifest_path(tmp_path / "p")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path / "p")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}'])
def test_a_manifest_that_is_none_is_named(tmp_path, text):
    manifest_path(tmp_path / "p").write_text(text)
    with pytest.raises(DataError, match=r"p\.json: "):
        load_manifest(tmp_path / "p")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f").startswith("ba7816bf8f01cfea414140de5dae2223")
