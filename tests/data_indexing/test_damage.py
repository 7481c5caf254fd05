"""Every single flipped byte is found, and no mutated index or manifest gets through or brings the reader down."""

import json
import random
import struct

import numpy as np
import pytest

from data_indexing.errors import DataError
from data_indexing.format import DTYPES, bin_path, idx_path, manifest_path
from data_indexing.merge import merge
from data_indexing.reader import IndexedReader
from data_indexing.verify import verify
from tests.data_indexing.pairs_of_documents import write_pair, write_texts

DOCS = [[[5, 6, 7], [8]], [[9, 10]], [], [[11], [], [12, 13, 14, 15]]]
FLIPS = [1, 2, 4, 8, 16, 32, 64, 128, 255]
SPECIAL = [0, 1, -1, 3, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63)]


@pytest.fixture
def tokenized(byte_tokenizer, tmp_path):
    return write_texts(tmp_path / "p", ["yksi", "ä", "kolme kolme"], byte_tokenizer)


@pytest.fixture
def bare(tmp_path):
    """No manifest."""
    return write_pair(tmp_path / "b", DOCS)


@pytest.mark.parametrize("path", [idx_path, bin_path])
def test_with_a_manifest_every_flipped_byte_is_found(tokenized, path):
    sound = path(tokenized).read_bytes()
    for position in range(len(sound)):
        for flip in FLIPS:
            damaged = bytearray(sound)
            damaged[position] ^= flip
            path(tokenized).write_bytes(damaged)
            assert verify(tokenized).faults, (position, flip)


def test_without_a_manifest_a_flipped_byte_is_found_unless_it_makes_another_sound_index(bare):
    sound = idx_path(bare).read_bytes()
    missed = []
    for position in range(len(sound)):
        for flip in FLIPS:
            damaged = bytearray(sound)
            damaged[position] ^= flip
            idx_path(bare).write_bytes(damaged)
            found = bool(verify(bare).faults)
            assert found != is_sound(bytes(damaged), bin_path(bare).stat().st_size), (position, flip)
            missed += [] if found else [position]
    # All that can be missed lies among the document indices: which sequences make a document is said nowhere else.
    assert all(position >= len(sound) - 8 * (len(DOCS) + 1) for position in missed)


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_mutated_indexes_are_refused_or_sound(bare, seed):
    rng = random.Random(seed)
    sound = idx_path(bare).read_bytes()
    for _ in range(400):
        damaged = mutate(sound, rng)
        idx_path(bare).write_bytes(damaged)
        expected = is_sound(damaged, bin_path(bare).stat().st_size)
        assert bool(verify(bare).faults) != expected, damaged
        read_all(bare)
        try:
            merge([bare], bare.with_name("m"), shuffle_seed=rng.choice([None, 1]), overwrite=True)
        except DataError:
            assert not is_sound(damaged, bin_path(bare).stat().st_size, floats=True)


@pytest.mark.parametrize("seed", range(2))
def test_mutated_manifests_are_faults_or_say_the_same(tokenized, seed):
    rng = random.Random(seed)
    path = manifest_path(tokenized)
    sound = path.read_bytes()
    for _ in range(300):
        damaged = mutate(sound, rng)
        path.write_bytes(damaged)
        assert verify(tokenized).faults or same_facts(damaged, sound), damaged


def read_all(prefix):
    """Whatever the index says, the reader answers or names the fault."""
    try:
        with IndexedReader(prefix) as reader:
            for first, end in reader.document_batches(4):
                reader.documents(first, end)
    except DataError:
        pass


def mutate(raw, rng):
    damaged = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5])):
        position = rng.randrange(max(1, len(damaged)))
        kind = rng.randrange(6)
        if kind == 0:
            damaged[position : position + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            damaged[position : position + 8] = struct.pack("<q", rng.choice(SPECIAL))
        elif kind == 2:
            del damaged[position : position + rng.choice([1, 4, 8, 1000])]
        elif kind == 3:
            damaged[position:position] = rng.randbytes(rng.choice([1, 4, 8, 12, 20]))
        elif kind == 4:
            other = rng.randrange(max(1, len(damaged)))
            damaged[position : position + 8] = damaged[other : other + 8]
        else:
            field = rng.choice([9, 17, 18, 26, *range(34, len(raw), 4)])
            value = struct.unpack_from("<I", raw, field)[0] if field + 4 <= len(raw) else 0
            damaged[field : field + 4] = struct.pack("<I", (value + rng.choice([-1, 1, 2, 4])) % 2**32)
    return bytes(damaged)


def is_sound(raw, bin_bytes, *, floats=False):
    """What a pair must be, said once more in the plainest way."""
    if len(raw) < 34 or raw[:9] != b"MMIDIDX\0\0" or struct.unpack_from("<Q", raw, 9)[0] != 1:
        return False
    code, num_sequences, num_indices = struct.unpack_from("<BQQ", raw, 17)
    if code not in DTYPES or (DTYPES[code].kind == "f" and not floats) or num_indices < 1:
        return False
    if len(raw) != 34 + 12 * num_sequences + 8 * num_indices:
        return False
    numbers = struct.unpack_from(f"<{num_sequences}i{num_sequences}q{num_indices}q", raw, 34)
    lengths, pointers, documents = np.split(np.array(numbers, object), [num_sequences, 2 * num_sequences])
    ends = np.cumsum([0, *lengths * DTYPES[code].itemsize]).tolist()
    in_place = min([0, *lengths]) >= 0 and pointers.tolist() == ends[:-1] and ends[-1] == bin_bytes
    rising = documents.tolist() == sorted(documents) and (documents[0], documents[-1]) == (0, num_sequences)
    return in_place and rising


def same_facts(damaged, sound):
    """Inputs, versions and names of things are no facts of the pair."""
    found, expected = json.loads(damaged), json.loads(sound)
    free = {"inputs", "versions", "parts", "shuffle_seed"}
    return all(found[key] == expected[key] for key in expected.keys() - free - {"tokenizer", "counts", "policy"})
