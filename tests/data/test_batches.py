"""Training and validation read the right tokens from real files, and say clearly when they cannot."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path
from data_indexing.manifest import Counts, Manifest, file_sha256, save_manifest
from data_indexing.writer import IndexedWriter
from megatron_poro.config import DataConfig, SourceConfig, StageConfig, ValidationConfig
from megatron_poro.data import TrainingData
from megatron_poro.data.batches import _WINDOW_SAMPLES
from megatron_poro.errors import ConfigError

LENGTH = 8
NUM_TOKENS = {"finnish": 337, "english": 500, "heldout": 100}
FIRST_TOKEN = {"finnish": 0, "english": 1000, "heldout": 2000}


def write_pair(prefix: Path, tokens: NDArray[np.int64]) -> None:
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        for document in np.array_split(tokens, 7):
            writer.add_document(document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose token ids count up, so that a token tells where it lies."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, num_tokens in NUM_TOKENS.items():
        write_pair(folder / name, FIRST_TOKEN[name] + np.arange(num_tokens))
    return folder


def describe(folder: Path, **changes: Any) -> DataConfig:
    config = DataConfig(
        sequence_length=LENGTH,
        sources=(
            SourceConfig(name="finnish", path=str(folder / "finnish"), weight=0.6),
            SourceConfig(name="english", path=str(folder / "english"), weight=0.4),
        ),
        stages=(StageConfig(from_tokens=50 * LENGTH, weights={"english": 1.0, "finnish": 1.0}),),
        validation=(
            ValidationConfig(name="end", source="finnish", last_sequences=5),
            ValidationConfig(name="own", path=str(folder / "heldout")),
        ),
    )
    return replace(config, **changes)


def describe_one(prefix: Path) -> DataConfig:
    return DataConfig(sequence_length=LENGTH, sources=(SourceConfig(name="a", path=str(prefix), weight=1.0),))


@pytest.fixture(scope="module")
def data(folder: Path) -> Iterator[TrainingData]:
    data = TrainingData(describe(folder))
    yield data
    data.close()


def test_a_sample_is_the_located_sequence_and_the_first_token_of_the_next(data: TrainingData) -> None:
    where = data.order.locate(0, 200)
    first_tokens = np.array([0, 1000])[where.sources] + where.sequences * LENGTH
    assert np.array_equal(data.samples(range(200)), first_tokens[:, None] + np.arange(LENGTH + 1))
    assert np.array_equal(data.sources_of(range(200)), where.sources)
    assert data.samples(range(0)).shape == (0, LENGTH + 1)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 120)))
def test_batches_of_any_size_join_to_the_same_samples(data: TrainingData, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), 120]
    pieces = [data.samples(range(start, end)) for start, end in pairwise(bounds)]
    assert np.array_equal(np.concatenate(pieces), data.samples(range(120)))


def test_the_last_sequences_of_a_source_are_held_out_and_never_trained_on(data: TrainingData) -> None:
    held_out = data.validation["end"]
    assert held_out.num_samples == 5  # of (337 - 1) // 8 = 42
    assert held_out.samples(range(5)).tolist() == [list(range(n * 8, n * 8 + 9)) for n in range(37, 42)]
    trained = data.samples(range(300))
    assert set(trained[data.sources_of(range(300)) == 0][:, :-1].ravel().tolist()) == set(range(37 * 8))


def test_a_held_out_pair_is_read_whole_in_its_own_order(data: TrainingData) -> None:
    held_out = data.validation["own"]
    assert held_out.num_samples == 12  # (100 - 1) // 8
    assert held_out.samples(range(3, 12))[:, 0].tolist() == [2000 + 8 * n for n in range(3, 12)]
    with pytest.raises(IndexError):
        held_out.samples(range(11, 13))


def test_nothing_is_held_out_that_the_run_file_does_not_name(folder: Path) -> None:
    data = TrainingData(describe(folder, validation=(), stages=()))
    read = data.samples(range(160))[:, :-1]  # finnish has 42 sequences, english 62
    assert set(read.ravel().tolist()) == {*range(42 * 8), *range(1000, 1000 + 62 * 8)}


def test_samples_far_apart_or_across_a_window_are_those_of_the_order(data: TrainingData) -> None:
    for first in (_WINDOW_SAMPLES - 3, 10**12, 0, 7 * _WINDOW_SAMPLES - 1):
        where = data.order.locate(first, 6)
        starts = np.array([0, 1000])[where.sources] + where.sequences * LENGTH
        assert data.samples(range(first, first + 6))[:, 0].tolist() == starts.tolist()
    with pytest.raises(ValueError):
        data.samples(range(-1, 2))


def test_rows_have_the_type_of_the_files_and_the_widest_where_they_differ(folder: Path, tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "narrow", np.dtype(np.uint16)) as writer:
        writer.add_document(np.arange(65_000, 65_100))
    alone = TrainingData(describe_one(tmp_path / "narrow"))
    assert alone.samples(range(3)).dtype == np.uint16
    narrow = SourceConfig(name="narrow", path=str(tmp_path / "narrow"), weight=1.0)
    both = TrainingData(describe(folder, sources=(narrow, *describe(folder).sources), stages=(), validation=()))
    rows, sources = both.samples(range(50)), both.sources_of(range(50))
    assert rows.dtype == np.int32
    assert rows[sources == 0].min() >= 65_000 > rows[sources > 0].max()
    assert np.array_equal(rows[:, 1:], rows[:, :-1] + 1)


def test_sample_numbers_must_be_consecutive(data: TrainingData) -> None:
    with pytest.raises(ValueError):
        data.samples(range(0, 10, 2))


def test_the_fingerprint_survives_json_and_names_what_decides_the_order(data: TrainingData, folder: Path) -> None:
    fingerprint = data.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert [source["sequences"] for source in fingerprint["sources"]] == [37, 62]
    assert [source["held_out_sequences"] for source in fingerprint["sources"]] == [5, 0]
    for change in ({"seed": 5}, {"sequence_length": 4}, {"stages": ()}, {"validation": ()}):
        assert TrainingData(describe(folder, **change)).fingerprint() != fingerprint


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    tokens = np.arange(1000)
    for name, content in (("one", tokens), ("copy", tokens), ("changed", np.where(tokens == 500, 7, tokens))):
        write_pair(tmp_path / name, content)
    one, copy, changed = (TrainingData(describe_one(tmp_path / name)) for name in ("one", "copy", "changed"))
    assert one.fingerprint() == copy.fingerprint()
    assert np.array_equal(one.samples(range(50)), copy.samples(range(50)))
    assert one.fingerprint() != changed.fingerprint()


def test_a_large_file_without_a_manifest_is_known_by_samples_of_its_content(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 1000, 3_000_000)  # 12 MB, of which 4 MiB are looked at
    for name, content in (("one", tokens), ("copy", tokens), ("shuffled", np.roll(tokens, 1)), ("longer", [*tokens, 1])):
        write_pair(tmp_path / name, np.asarray(content))
    contents = [
        TrainingData(describe_one(tmp_path / name)).sources[0].fingerprint for name in ("one", "copy", "shuffled", "longer")
    ]
    assert contents[0].startswith("sampled:")
    assert contents[0] == contents[1]
    assert len(set(contents)) == 3


def write_manifest(prefix: Path, num_tokens: int) -> None:
    counts = Counts(num_documents=7, num_tokens=num_tokens, num_empty_documents=0, num_text_bytes=None)
    manifest = Manifest(
        tokenizer=None,
        policy=None,
        dtype="int32",
        counts=counts,
        inputs=(),
        bin_sha256=file_sha256(bin_path(prefix)),
        idx_sha256=file_sha256(idx_path(prefix)),
    )
    save_manifest(prefix, manifest)


def test_a_manifest_gives_the_content_and_must_belong_to_the_pair(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", np.arange(1000))
    config = describe_one(tmp_path / "a")
    write_manifest(tmp_path / "a", 1000)
    content = f"sha256:{file_sha256(tmp_path / 'a.bin')}"
    assert TrainingData(config).fingerprint()["sources"][0]["content"].startswith(content)
    write_manifest(tmp_path / "a", 999)
    with pytest.raises(DataError, match=r"a\.json: counts 999 tokens, the pair holds 1000"):
        TrainingData(config)


def test_a_bin_that_was_replaced_beside_its_old_manifest_is_noticed(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", np.arange(1000))
    write_manifest(tmp_path / "a", 1000)
    before = TrainingData(describe_one(tmp_path / "a")).fingerprint()
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(content[::-1])
    assert TrainingData(describe_one(tmp_path / "a")).fingerprint() != before


def test_a_bin_that_shrinks_while_the_run_reads_it_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", np.arange(1000))
    data = TrainingData(describe_one(tmp_path / "a"))
    os.truncate(tmp_path / "a.bin", 100)
    with pytest.raises(DataError, match=r"a\.bin"):
        data.samples(range(120))


def test_of_several_files_the_one_that_shrinks_is_named(folder: Path, tmp_path: Path) -> None:
    write_pair(tmp_path / "short", np.arange(1000))
    short = SourceConfig(name="short", path=str(tmp_path / "short"), weight=1.0)
    data = TrainingData(describe(folder, sources=(*describe(folder).sources, short), stages=(), validation=()))
    os.truncate(tmp_path / "short.bin", 2000)
    with pytest.raises(DataError, match=r"short\.bin: read \d+ bytes, expected 36; the file changed"):
        data.samples(range(1000))


def test_a_bin_that_can_no_longer_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "a", np.arange(1000))
    data = TrainingData(describe_one(tmp_path / "a"))

    def stale(*_: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "preadv", stale)
    with pytest.raises(DataError, match=r"a\.bin: Stale file handle"):
        data.samples(range(1))


def test_a_missing_pair_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path / "a")):
        TrainingData(describe_one(tmp_path / "a"))


def held(**values: Any) -> tuple[ValidationConfig, ...]:
    return (ValidationConfig(name="v", **values),)


BAD_VALIDATION = {
    "data.validation[0] (v): give either path or source, not both": held(path="x", source="finnish"),
    "data.validation[0] (v): give either path or source, there is neither": held(),
    "data.validation[0].source: 'finish' is no source": held(source="finish", last_sequences=1),
    "data.validation[0].last_sequences: 0 holds nothing out": held(source="finnish"),
    "data.validation[0].last_sequences: 3 needs source": held(path="x", last_sequences=3),
    "data.validation[].name: 'v' stands 2 times": held(path="x") * 2,
    "data.validation[].source: 'finnish' stands 2 times": held(source="finnish", last_sequences=1) * 2,
    "data.sources[0] (finnish)": held(source="finnish", last_sequences=42),
}


def test_a_training_source_cannot_be_a_held_out_pair(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation\[0\]\.path: training reads it as 'english'"):
        TrainingData(describe(folder, validation=held(path=str(folder / "english"))))


@pytest.mark.parametrize("message", BAD_VALIDATION)
def test_a_held_out_set_that_cannot_be_is_refused_with_its_key(folder: Path, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainingData(describe(folder, validation=BAD_VALIDATION[message]))
    assert [problem for problem in error.value.problems if problem.startswith(message)]


def test_a_pair_too_small_for_one_sequence_is_refused_with_its_numbers(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\[0\] \(finnish\): .* has 337 tokens, 0 sequences .* \(337\)"):
        TrainingData(describe(folder, sequence_length=337, stages=(), validation=()))
    with pytest.raises(ConfigError, match=r"data\.validation\[0\] \(v\): .* has 100 tokens, 0 sequences .* \(100\)"):
        TrainingData(describe(folder, sequence_length=100, stages=(), validation=held(path=str(folder / "heldout"))))
