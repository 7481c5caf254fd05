import gzip
import hashlib
import io
import lzma
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing import text_streams
from data_indexing.text_streams import DamagedError, HashedStream, decompress, exhaust, find_line_start, read_lines, skip

COMPRESS: dict[Any, Any] = {"gzip": gzip.compress, "zstd": zstandard.compress, "xz": lzma.compress, None: bytes}


def raw_file(raw):
    stream: Any = io.BytesIO(raw)
    return stream


def hashed(raw, size=None):
    return HashedStream(raw_file(raw), size)


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")), max_size=12),
    chunk_bytes=st.integers(1, 60),
    limit=st.integers(1, 50),
    final_newline=st.booleans(),
)
def test_pieces_of_any_size_hold_every_line_once_and_only_long_ones_are_passed_over(lines, chunk_bytes, limit, final_newline):
    raw = b"\n".join(lines) + (b"\n" if final_newline and lines else b"")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_streams, "CHUNK_BYTES", chunk_bytes)
        pieces = list(read_lines(io.BytesIO(raw), 0, limit=limit))
    found: list[bytes | None] = []
    previous = 0
    for data, end in pieces:
        assert data is None or raw[previous:end] == data
        found += (
            [None] if data is None else bytes(data).splitlines(keepends=True) if b"\r" not in data else bytes(data).split(b"\n")
        )
        assert data is None or end == len(raw) or data.endswith(b"\n")
        assert data is not None or len(raw[previous:end].removesuffix(b"\n")) >= limit
        previous = end
    assert previous == len(raw)


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_compression_gives_the_text_and_the_hash_of_the_file(compression):
    text = b"".join(b"line %d\n" % number for number in range(50_000))
    packed = COMPRESS[compression](text)
    # Files put one behind the other are one file, as with the compressors' own tools.
    stream = hashed(packed + (COMPRESS[compression](b"more") if compression else b"more"))
    plain = decompress(stream, compression)
    skip(plain, 10)
    assert b"".join(iter(lambda: plain.read(1000), b"")) == text[10:] + b"more"
    exhaust(stream)
    assert stream.hexdigest() == hashlib.sha256(packed + COMPRESS[compression](b"more")).hexdigest()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "none of it"])
def test_all_before_a_damage_is_read_and_then_the_damage_raised(compression, damage):
    text = b"".join(hashlib.sha256(b"%d" % number).hexdigest().encode() + b"\n" for number in range(40_000))
    packed = bytearray(COMPRESS[compression](text))
    if damage == "cut":
        del packed[-len(packed) // 3 :]
    elif damage == "changed":
        packed[len(packed) // 2 : len(packed) // 2 + 9] = b"!" * 9
    else:
        packed[:] = b"no such format at all" * 9
    stream = decompress(hashed(bytes(packed)), compression)
    found = b""
    with pytest.raises(DamagedError):
        while True:
            block = stream.read(100_000)
            assert block, "the end without an error"
            found += block
    assert damage == "changed" or text.startswith(found)
    assert len(found) > 100_000 or damage == "none of it"


def test_zstd_of_the_longest_window_is_read():
    text = b"line\n" * 100
    compressor = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=31))
    packed = compressor.compressobj()
    stream = decompress(hashed(packed.compress(text) + packed.flush()), "zstd")
    assert stream.read(1000) == text


@given(lines=st.lists(st.integers(0, 5), max_size=8), offset=st.integers(0, 50))
def test_a_line_starts_behind_a_newline(lines, offset):
    raw = b"".join(b"x" * size + b"\n" for size in lines)
    offset = min(offset, len(raw))
    starts = [0, *(place + 1 for place, byte in enumerate(raw) if byte == 10)]
    assert find_line_start(raw_file(raw), offset) == min(start for start in starts if start >= offset)


def test_a_stream_ends_where_it_is_told_to():
    stream = hashed(b"abcdef", 4)
    assert (stream.read(3), stream.read(3), stream.read(3)) == (b"abc", b"d", b"")
    assert (stream.num_bytes, stream.hexdigest()) == (4, hashlib.sha256(b"abcd").hexdigest())
