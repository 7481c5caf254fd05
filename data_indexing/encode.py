"""From a chunk of text to the tokens of its documents: what a worker process runs."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import numpy as np
import numpy.typing as npt

from data_indexing.checker import Sample
from data_indexing.chunks import Chunk
from data_indexing.documents import Reject, read_documents
from data_indexing.encoders import Encoder, EncoderName, Ids, build_encoder, probe_texts, spelt_texts
from data_indexing.manifest import Policy
from data_indexing.pieces import Text, to_str
from data_indexing.sentences import SentenceModel
from data_indexing.streams import full_disk_named, write_all
from data_indexing.tokenizer import TextTokenizer

_SAMPLED_DOCUMENTS = 2
_SAMPLED_CHARACTERS = 400
LARGE_PREFIX = "large-"
_NO_IDS = np.empty(0, np.uint32)


@dataclass(frozen=True)
class Packed:
    """Documents as they lie in a pair: their tokens, the tokens of each sequence, the sequences of each document.

    The tokens of a large document are in a file, which is the caller's to remove.
    """

    tokens: npt.NDArray[Any] | Path
    lengths: npt.NDArray[np.int32]
    sequences: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The documents of a chunk; `num_read` counts those written, the empty ones, the rejects and those lost by damage."""

    packed: Packed
    rejects: list[Reject]
    num_read: int
    num_text_bytes: int
    sample: Sample


@dataclass
class ChunkEncoder:
    """Chunk to documents; without a chunk, the sample of the texts that bring out differences between encoders."""

    encoder_name: EncoderName
    tokenizer: TextTokenizer
    policy: Policy
    dtype: np.dtype[Any]
    text_field: str
    max_document_bytes: int
    sentences: SentenceModel | None = None
    folder: Path | None = None
    """Where the tokens of large documents go; without it, into memory."""
    _built: Encoder | None = field(default=None, init=False, repr=False)

    def prepare(self) -> None:
        """Build the encoder, which takes most of a second; EncoderFaultError where it does not fit the tokenizer."""
        self._built = build_encoder(self.encoder_name, self.tokenizer)

    def __call__(self, chunk: Chunk | None) -> Encoded:
        """EncoderFaultError where the encoder fails on a text."""
        if chunk is None:
            facts = self.tokenizer.facts
            return Encoded(
                self._pack([]), [], 0, 0, self._sample(probe_texts(facts.special_tokens) + spelt_texts(facts.added_tokens))
            )
        documents = read_documents(chunk, self.text_field, limit=self.max_document_bytes)
        texts = documents.texts
        sample = self._sample(list(_excerpts(texts)))
        is_large = self.folder is not None and self.sentences is None and not all(isinstance(text, str) for text in texts)
        packed = self._pack_in_file(texts) if is_large else self._pack(texts)
        # After the encoding: a text keeps its UTF-8 once it was asked for it.
        num_text_bytes = sum(len(text.encode()) if isinstance(text, str) and not text.isascii() else len(text) for text in texts)
        return Encoded(packed, documents.rejects, documents.num_read, num_text_bytes, sample)

    @property
    def _encoder(self) -> Encoder:
        if self._built is None:
            self._built = build_encoder(self.encoder_name, self.tokenizer)
        return self._built

    def _sample(self, texts: list[str]) -> Sample:
        return Sample(texts, [ids.tolist() for ids in self._encoder.encode(texts)])

    def _pack(self, texts: Sequence[Text]) -> Packed:
        """Put BOS before and EOD after each document; sequences and documents without tokens are left out."""
        ids, counts = self._sequences(texts)
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        if not (lengths.all() and counts.all()):
            ids, counts = _without_empty(ids, lengths, counts)
            lengths = lengths[lengths > 0]
        ends = np.cumsum(counts)
        # Each sequence with what stands before and after it: one list, for the arrays are many and small.
        pieces: list[Ids] = [_NO_IDS] * (3 * len(ids) + 1)
        pieces[1::3] = ids
        for token_id, places, offset in ((self.policy.bos_id, ends - counts, 0), (self.policy.eod_id, ends - 1, 2)):
            if token_id is not None:
                token = np.array([token_id], np.uint32)
                lengths[places] += 1
                for place in (3 * places + offset).tolist():
                    pieces[place] = token
        return Packed(_to_dtype(np.concatenate(pieces), self.dtype), lengths, counts)

    def _pack_in_file(self, texts: Sequence[Text]) -> Packed:
        """Documents of one sequence each; the memory holds the tokens of a piece of one."""
        bos, eod = ([] if token is None else [np.array([token], np.uint32)] for token in (self.policy.bos_id, self.policy.eod_id))
        descriptor, name = mkstemp(dir=self.folder, prefix=LARGE_PREFIX)
        lengths = []
        with full_disk_named(Path(name)), open(descriptor, "wb", buffering=0) as stream:
            for text in texts:
                num_ids = 0
                for ids in chain(bos, self._encoder.encode_in_pieces(text), eod):
                    write_all(stream, _to_dtype(ids, self.dtype).data)
                    num_ids += ids.size
                if num_ids > len(bos) + len(eod):
                    lengths.append(num_ids)
                else:
                    stream.seek(-num_ids * self.dtype.itemsize, os.SEEK_CUR)
                    stream.truncate()
        return Packed(Path(name), np.array(lengths, np.int32), np.ones(len(lengths), np.int64))

    def _sequences(self, texts: Sequence[Text]) -> tuple[list[Ids], npt.NDArray[np.int64]]:
        """Ids of each sequence, and the number of sequences of each text."""
        if self.sentences is None:
            return self._encoder.encode(texts), np.ones(len(texts), np.int64)
        split = [self.sentences.split(to_str(text)) for text in texts]
        sequences = [sentence for sentences in split for sentence in sentences]
        return self._encoder.encode(sequences), np.fromiter(map(len, split), np.int64, len(split))


def _excerpts(texts: Sequence[Text]) -> Iterable[str]:
    """Pieces of a few texts from all over a chunk, each from another part of its text."""
    step = max(1, len(texts) // _SAMPLED_DOCUMENTS)
    for number, text in enumerate(texts[::step][:_SAMPLED_DOCUMENTS]):
        start = max(0, len(text) - _SAMPLED_CHARACTERS) * number // _SAMPLED_DOCUMENTS
        excerpt = text[start : start + _SAMPLED_CHARACTERS]
        yield excerpt if isinstance(excerpt, str) else str(excerpt, "utf-8", "ignore")


def _without_empty(
    ids: list[Ids], lengths: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
) -> tuple[list[Ids], npt.NDArray[np.int64]]:
    """Drop sequences without ids, and documents without sequences."""
    owners = np.repeat(np.arange(counts.size), counts)
    kept = np.bincount(owners[lengths > 0], minlength=counts.size)
    return [item for item in ids if item.size], kept[kept > 0]


def _to_dtype(tokens: Ids, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Ids are below 2**31, so that of the same size the bytes are the same."""
    return tokens.view(dtype) if dtype.itemsize == tokens.itemsize else tokens.astype(dtype)
