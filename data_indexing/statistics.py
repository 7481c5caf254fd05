"""What a pair is made of: how long its documents are, and which tokens it holds most of."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_indexing.errors import DataError
from data_indexing.format import Prefix
from data_indexing.progress import progress
from data_indexing.reader import IndexedReader
from data_indexing.structure import BATCH_SEQUENCES, check_structure
from data_indexing.tokenizer import TextTokenizer

_BATCH_TOKENS = 4 << 20
# Far above any vocabulary; counts of damaged ids would fill the memory.
_MAX_ID = 1 << 24
_BAR_WIDTH = 40


@dataclass(frozen=True)
class LengthBin:
    """Documents of `low` to `high` tokens; the bounds are 0, 1, 2 .. 3, 4 .. 7 and so on."""

    low: int
    high: int
    num_documents: int


@dataclass(frozen=True)
class Frequency:
    """How often a token occurs."""

    token_id: int
    count: int


@dataclass(frozen=True)
class Statistics:
    """Document lengths and the most frequent tokens, most frequent first."""

    num_documents: int
    num_tokens: int
    lengths: tuple[LengthBin, ...]
    tokens: tuple[Frequency, ...]


def measure(prefix: Prefix, *, top: int) -> Statistics:
    """Read the whole pair and count; `top` is the number of tokens to name."""
    with IndexedReader(prefix) as reader:
        check_structure(reader)
        return Statistics(reader.num_documents, reader.num_tokens, _lengths(reader), _frequencies(reader, top))


def render(statistics: Statistics, tokenizer: TextTokenizer | None) -> Iterator[str]:
    """The statistics as text for people, with the tokens spelt out where there is a tokenizer."""
    yield f"tokens in a document ({statistics.num_documents:,} documents)\n"
    most = max((item.num_documents for item in statistics.lengths), default=1)
    for item in statistics.lengths:
        span = f"{item.low:,}" if item.low == item.high else f"{item.low:,} - {item.high:,}"
        bar = "#" * -(-_BAR_WIDTH * item.num_documents // most)
        yield f"{span:>29}{item.num_documents:>14,} {_share(item.num_documents, statistics.num_documents)}  {bar}".rstrip() + "\n"
    yield f"most frequent tokens (of {statistics.num_tokens:,})\n"
    for token in statistics.tokens:
        text = "" if tokenizer is None else repr(tokenizer.decode([token.token_id]))
        yield f"{token.token_id:>29}{token.count:>14,} {_share(token.count, statistics.num_tokens)}  {text}".rstrip() + "\n"


def _lengths(reader: IndexedReader) -> tuple[LengthBin, ...]:
    bounds = np.array([0, *(1 << power for power in range(63))])
    counts = np.zeros(bounds.size, np.int64)
    for first in range(0, reader.num_documents, BATCH_SEQUENCES):
        offsets = reader.document_offsets(first, min(first + BATCH_SEQUENCES, reader.num_documents))
        bins = np.searchsorted(bounds, np.diff(offsets), side="right") - 1
        counts += np.bincount(bins, minlength=bounds.size)
    return tuple(LengthBin(int(bounds[i]), max(0, int(2 * bounds[i]) - 1), int(counts[i])) for i in np.flatnonzero(counts))


def _frequencies(reader: IndexedReader, top: int) -> tuple[Frequency, ...]:
    counts = np.zeros(1, np.int64)
    with progress(f"count {reader.prefix.name}", reader.num_tokens * reader.dtype.itemsize, "B") as advance:
        for start in range(0, reader.num_tokens, _BATCH_TOKENS):
            tokens = reader.read(start, min(_BATCH_TOKENS, reader.num_tokens - start))
            if reader.dtype.kind == "f" or tokens.min() < 0 or tokens.max() >= _MAX_ID:
                raise DataError(f"{reader.prefix}: holds numbers that are no token ids; see `poro data verify`")
            found = np.bincount(tokens, minlength=counts.size)
            found[: counts.size] += counts
            counts = found
            advance(tokens.nbytes)
    # The smaller id first where counts are equal.
    order = np.lexsort((np.arange(counts.size), -counts))[:top]
    return tuple(Frequency(int(token_id), int(counts[token_id])) for token_id in order if counts[token_id])


def _share(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):6.2f} %"
