"""JSON lines to a Megatron .bin/.idx pair and its manifest, on all cores.

The output is the same, byte for byte, whatever the number of workers: lines are cut into chunks of fixed size, encoded
anywhere, and written in input order. The first bad line of the inputs stops the run and nothing is published.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.format import Prefix, dtype_for_vocab
from data_indexing.jsonl import BadLineError, Chunk, check_inputs, read_chunks, read_texts
from data_indexing.manifest import Counts, InputFile, Manifest, Placement, Policy, TokenizerRecord, save_manifest
from data_indexing.progress import progress
from data_indexing.tokenizer import TextTokenizer
from data_indexing.workers import available_cores, map_in_order
from data_indexing.writer import IndexedWriter, check_output

# Encoded text takes some hundred bytes of memory a token until its ids are taken out.
_ENCODE_BYTES = 1 << 19
# Starting a process costs as much time as encoding this much text.
_WORKER_BYTES = 1 << 20


@dataclass(frozen=True)
class TokenizeOptions:
    """How to tokenise.

    `text_field`: key of the text in each line, `a.b` for one inside another. `bos` and `eod`: a begin-of-text token
    opens, an end-of-text token closes each `document`, or `none`. `workers`: at most so many processes, None for one a
    core, fewer for small inputs; one worker is the calling process, where the tokenizer may use threads. `overwrite`:
    replace an existing output.
    """

    text_field: str = "text"
    bos: Placement = "document"
    eod: Placement = "document"
    workers: int | None = None
    overwrite: bool = False


def tokenize_files(
    inputs: Sequence[str | Path],
    output_prefix: Prefix,
    *,
    tokenizer: TextTokenizer,
    options: TokenizeOptions = TokenizeOptions(),
) -> Counts:
    """Write the documents of all inputs, in order, as one pair; empty texts are counted and left out."""
    paths = check_inputs(inputs)
    check_output(output_prefix, overwrite=options.overwrite)
    policy = _policy(tokenizer, options)
    dtype = dtype_for_vocab(tokenizer.vocab_size)
    encoder = _Encoder(tokenizer, options.text_field, policy, dtype)
    sealed: list[InputFile] = []
    chunks = chain.from_iterable(read_chunks(path, sealed) for path in paths)
    total_bytes = sum(path.stat().st_size for path in paths)
    workers = _num_workers(options, total_bytes)
    with IndexedWriter(output_prefix, dtype) as writer, closing(map_in_order(encoder, chunks, workers=workers)) as done:
        counts = _write(writer, done, total_bytes=total_bytes)
    manifest = Manifest(
        tokenizer=TokenizerRecord(tokenizer.name, tokenizer.sha256, tokenizer.vocab_size),
        policy=policy,
        dtype=dtype.name,
        counts=counts,
        inputs=tuple(sealed),
        bin_sha256=writer.bin_sha256,
        idx_sha256=writer.idx_sha256,
    )
    save_manifest(output_prefix, manifest)
    return counts


@dataclass(frozen=True)
class _Encoded:
    """The documents of one chunk, or the fault in it."""

    path: Path
    num_file_bytes: int
    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    num_lines: int = 0
    num_text_bytes: int = 0
    fault: BadLineError | None = None


@dataclass(frozen=True)
class _Encoder:
    """Chunk to documents; what a worker process runs."""

    tokenizer: TextTokenizer
    text_field: str
    policy: Policy
    dtype: np.dtype[Any]

    def __call__(self, chunk: Chunk) -> _Encoded:
        try:
            texts = read_texts(chunk, self.text_field)
        except BadLineError as fault:
            none = np.empty(0, np.int64)
            return _Encoded(chunk.path, chunk.num_file_bytes, none, none, fault=fault)
        documents = [self._pack(batch) for batch in _batches(filter(None, texts))]
        tokens, lengths = (np.concatenate(arrays) for arrays in zip(*documents, strict=True))
        num_text_bytes = sum(len(text.encode()) for text in texts)
        return _Encoded(chunk.path, chunk.num_file_bytes, tokens, lengths, len(texts), num_text_bytes)

    def _pack(self, texts: list[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        before = [] if self.policy.bos_id is None else [self.policy.bos_id]
        after = [] if self.policy.eod_id is None else [self.policy.eod_id]
        documents = [before + ids + after for ids in self.tokenizer.encode_batch(texts)]
        lengths = np.array([len(document) for document in documents], np.int64)
        return np.fromiter(chain.from_iterable(documents), self.dtype, int(lengths.sum())), lengths


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _ENCODE_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _num_workers(options: TokenizeOptions, total_bytes: int) -> int:
    wanted = available_cores() if options.workers is None else options.workers
    if wanted < 1:
        raise DataError(f"workers ({wanted}) must be at least 1; leave it out for one a core")
    return min(wanted, 1 + total_bytes // _WORKER_BYTES)


def _policy(tokenizer: TextTokenizer, options: TokenizeOptions) -> Policy:
    ids = {"bos": tokenizer.bos_id, "eod": tokenizer.eos_id}
    for name, placement in (("bos", options.bos), ("eod", options.eod)):
        if placement == "none":
            ids[name] = None
        elif ids[name] is None:
            raise DataError(
                f"tokenizer {tokenizer.name}: no {name} token in its tokenizer_config.json; add it or use --{name} none"
            )
    return Policy(options.bos, ids["bos"], options.eod, ids["eod"])


def _write(writer: IndexedWriter, results: Generator[_Encoded, None, None], *, total_bytes: int) -> Counts:
    num_lines: Counter[Path] = Counter()
    num_text_bytes = 0
    with progress("tokenize", total_bytes, "B") as advance:
        for result in results:
            if result.fault is not None:
                line = num_lines[result.path] + result.fault.number
                reason = f"{result.fault.reason}; correct or remove the line and run again"
                raise DataError(f"{result.path}:{line}: {reason}")
            writer.add_documents(result.tokens, result.lengths)
            num_lines[result.path] += result.num_lines
            num_text_bytes += result.num_text_bytes
            advance(result.num_file_bytes)
    num_empty = num_lines.total() - writer.num_documents
    if writer.num_documents == 0:
        raise DataError(f"{writer.prefix}: the inputs hold no text ({num_empty} empty documents); give other inputs")
    return Counts(writer.num_documents, writer.num_tokens, num_empty, num_text_bytes)
