"""Check all of a pair: sizes, index, token ids, document ends, and the hashes of its manifest.

Reads everything once, in constant memory. What the files alone cannot tell is reported as unknown.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_indexing.errors import DataError
from data_indexing.format import Prefix, bin_path, idx_path
from data_indexing.manifest import Manifest, file_sha256, load_manifest
from data_indexing.progress import progress
from data_indexing.reader import IndexedReader
from data_indexing.streams import BackgroundHash
from data_indexing.structure import document_fault, pointer_fault
from data_indexing.tokenizer import TextTokenizer

_BATCH_TOKENS = 1 << 20

Outcome = Literal["ok", "fault", "unknown"]


@dataclass(frozen=True)
class Check:
    """One question put to a pair, and the answer."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Report:
    """All answers, in the order of the checks."""

    prefix: Path
    checks: tuple[Check, ...]

    @property
    def faults(self) -> tuple[Check, ...]:
        """Checks that failed; none means nothing wrong was found."""
        return tuple(check for check in self.checks if check.outcome == "fault")


def verify(prefix: Prefix, *, tokenizer: TextTokenizer | None = None) -> Report:
    """Check a pair against itself, its manifest and, when given, the tokenizer it should be made with."""
    try:
        manifest = load_manifest(prefix)
        with IndexedReader(prefix) as reader:
            checks = tuple(_checks(reader, manifest, tokenizer))
    except DataError as error:
        checks = (Check("files", "fault", str(error)),)
    return Report(Path(prefix), checks)


def _checks(reader: IndexedReader, manifest: Manifest | None, tokenizer: TextTokenizer | None) -> Iterator[Check]:
    size = f"{reader.num_documents} documents, {reader.num_tokens} tokens of {reader.dtype.name}"
    yield Check("files", "ok", f"sizes agree: {size}")
    structure = [_check("pointers", pointer_fault(reader)), _check("documents", document_fault(reader))]
    yield from structure
    with closing(BackgroundHash()) as hashed:
        if any(check.outcome == "fault" for check in structure):
            yield Check("tokens", "unknown", "the index is damaged, so documents cannot be told apart")
            if manifest:
                _hash_file(bin_path(reader.prefix), hashed)
        else:
            yield from _token_checks(reader, _expected(manifest, tokenizer), hashed)
        yield _manifest_check(reader, manifest, tokenizer, hashed=hashed)


def _check(name: str, fault: str | None) -> Check:
    return Check(name, "ok", "consistent") if fault is None else Check(name, "fault", fault)


@dataclass(frozen=True)
class _Expected:
    """What tokens must be, None where nobody says."""

    vocab_size: int | None
    bos_id: int | None
    eod_id: int | None
    policy_known: bool


def _expected(manifest: Manifest | None, tokenizer: TextTokenizer | None) -> _Expected:
    policy = manifest.policy if manifest else None
    record = manifest.tokenizer if manifest else None
    vocab_size = tokenizer.vocab_size if tokenizer else record.vocab_size if record else None
    if policy:
        return _Expected(vocab_size, policy.bos_id, policy.eod_id, policy_known=True)
    return _Expected(vocab_size, None, tokenizer.eos_id if tokenizer else None, policy_known=False)


@dataclass
class _Tally:
    """Documents and tokens that break a rule, and where the first one is."""

    count: int = 0
    first: int = -1

    def add(self, wrong: npt.NDArray[np.bool_], start: int) -> None:
        """Take in a batch whose first element is number `start`."""
        places = np.flatnonzero(wrong)
        if self.count == 0 and places.size:
            self.first = start + int(places[0])
        self.count += places.size


def _hash_file(path: Path, hashed: BackgroundHash) -> None:
    with path.open("rb") as stream:
        while block := stream.read(_BATCH_TOKENS):
            hashed.update(block)


def _token_checks(reader: IndexedReader, expected: _Expected, hashed: BackgroundHash) -> list[Check]:
    """What the tokens say; one pass over the .bin, which is hashed meanwhile."""
    strange, unopened, unclosed = _Tally(), _Tally(), _Tally()
    num_bytes = reader.num_tokens * reader.dtype.itemsize
    with progress(f"verify {reader.prefix.name}", num_bytes, "B") as advance:
        for first, end in reader.document_batches(_BATCH_TOKENS):
            offsets = reader.document_offsets(first, end)
            tokens = reader.documents(first, end)
            hashed.update(tokens.view(np.uint8).data)
            strange.add(_outside(tokens, expected.vocab_size), int(offsets[0]))
            begins, ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
            unopened.add(_missing(tokens, begins, begins == ends, expected.bos_id), first)
            unclosed.add(_missing(tokens, ends - 1, begins == ends, expected.eod_id), first)
            advance(tokens.nbytes)
    return [
        _id_check(strange, expected.vocab_size, reader.dtype),
        _placement_check("bos", unopened, expected.bos_id, known=expected.policy_known),
        _placement_check("eod", unclosed, expected.eod_id, known=expected.policy_known),
    ]


def _outside(tokens: npt.NDArray[Any], vocab_size: int | None) -> npt.NDArray[np.bool_]:
    """Tokens that are no ids of the vocabulary; none at all where every token is one."""
    limit = np.inf if vocab_size is None else vocab_size
    if tokens.size == 0 or (tokens.min() >= 0 and tokens.max() < limit):
        return np.zeros(0, np.bool_)
    return ~((tokens >= 0) & (tokens < limit))


def _missing(
    tokens: npt.NDArray[np.integer],
    places: npt.NDArray[np.int64],
    empty: npt.NDArray[np.bool_],
    token_id: int | None,
) -> npt.NDArray[np.bool_]:
    """Documents that lack the token at their place, an empty document among them."""
    if token_id is None:
        return np.zeros(places.size, np.bool_)
    missing = empty.copy()
    missing[~empty] = tokens[places[~empty]] != token_id
    return missing


def _id_check(strange: _Tally, vocab_size: int | None, dtype: np.dtype[Any]) -> Check:
    if dtype.kind == "f":
        return Check("ids", "fault", f"{dtype.name} cannot be token ids")
    if strange.count:
        where = f"{strange.count} ids outside the vocabulary of {vocab_size or 'any size'}"
        return Check("ids", "fault", f"{where}, the first is token {strange.first}")
    if vocab_size is None:
        return Check("ids", "unknown", "none is negative; without manifest or tokenizer the vocabulary is not known")
    return Check("ids", "ok", f"all below {vocab_size}")


def _placement_check(name: str, missing: _Tally, token_id: int | None, *, known: bool) -> Check:
    if missing.count:
        where = f"{missing.count} documents without {token_id}, the first is document {missing.first}"
        return Check(name, "fault", where)
    if token_id is not None:
        return Check(name, "ok", f"{token_id} in every document")
    if known:
        return Check(name, "ok", "none, as the manifest says")
    return Check(name, "unknown", "without a manifest it is not known whether documents have one")


def _manifest_check(
    reader: IndexedReader, manifest: Manifest | None, tokenizer: TextTokenizer | None, *, hashed: BackgroundHash
) -> Check:
    if manifest is None:
        return Check("manifest", "unknown", "none; the origin and the hashes of the pair are not known")
    facts: list[tuple[str, object, object]] = [
        ("documents", manifest.counts.num_documents, reader.num_documents),
        ("tokens", manifest.counts.num_tokens, reader.num_tokens),
        ("dtype", manifest.dtype, reader.dtype.name),
        ("sha256 of the .idx", manifest.idx_sha256, file_sha256(idx_path(reader.prefix))),
        ("sha256 of the .bin", manifest.bin_sha256, hashed.sha256()),
    ]
    if manifest.bin_crc32 is not None:
        facts.append(("crc32 of the .bin", manifest.bin_crc32, hashed.crc32))
    if tokenizer and manifest.tokenizer:
        facts.append(("tokenizer", manifest.tokenizer.sha256, tokenizer.sha256))
    wrong = [f"{name} is {found}, the manifest says {said}" for name, said, found in facts if said != found]
    return _check("manifest", "; ".join(wrong) or None)
