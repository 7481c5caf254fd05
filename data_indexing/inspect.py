"""Look into a pair: its counts, and documents decoded to the text they were made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_indexing.errors import DataError
from data_indexing.format import Prefix
from data_indexing.manifest import Manifest, load_manifest
from data_indexing.reader import IndexedReader
from data_indexing.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Document:
    """One document: all its ids, and its text without the BOS and EOD of the policy; null without a tokenizer."""

    index: int
    ids: list[int]
    text: str | None


@dataclass(frozen=True)
class Inspection:
    """What a pair holds, and the documents asked for."""

    prefix: Path
    dtype: str
    num_documents: int
    num_sequences: int
    num_tokens: int
    manifest: Manifest | None
    documents: tuple[Document, ...]


def inspect(prefix: Prefix, tokenizer: TextTokenizer | None, *, documents: range) -> Inspection:
    """Counts of a pair and the documents in the range; ids alone where there is no tokenizer."""
    manifest = load_manifest(prefix)
    _check_tokenizer(prefix, manifest, tokenizer)
    with IndexedReader(prefix) as reader:
        if documents and not 0 <= min(documents) <= max(documents) < reader.num_documents:
            found = f"documents 0:{reader.num_documents}"
            raise DataError(f"{prefix}: holds {found}, asked for {documents.start}:{documents.stop}; ask within them")
        decoded = tuple(_decode(reader, index, manifest=manifest, tokenizer=tokenizer) for index in documents)
        return Inspection(
            reader.prefix,
            reader.dtype.name,
            reader.num_documents,
            reader.num_sequences,
            reader.num_tokens,
            manifest,
            decoded,
        )


def render(inspection: Inspection, *, raw: bool) -> Iterator[str]:
    """The inspection as text for people; `raw` gives the documents' text and nothing else."""
    if not raw:
        counts = f"{inspection.num_documents} documents, {inspection.num_sequences} sequences"
        yield f"{inspection.prefix}: {counts}, {inspection.num_tokens} tokens of {inspection.dtype}\n"
    for document in inspection.documents:
        text = " ".join(map(str, document.ids)) if document.text is None else document.text
        yield text if raw else f"=== document {document.index}: {len(document.ids)} tokens ===\n{text}\n"


def _check_tokenizer(prefix: Prefix, manifest: Manifest | None, tokenizer: TextTokenizer | None) -> None:
    record = manifest.tokenizer if manifest else None
    if record and tokenizer and record.sha256 != tokenizer.sha256:
        made = f"made with tokenizer {record.name} ({record.sha256[:16]})"
        raise DataError(f"{prefix}: {made}, not {tokenizer.name} ({tokenizer.sha256[:16]}); give the former")


def _decode(reader: IndexedReader, index: int, *, manifest: Manifest | None, tokenizer: TextTokenizer | None) -> Document:
    ids: list[int] = reader.document(index).tolist()
    if tokenizer is None:
        return Document(index, ids, None)
    policy = manifest.policy if manifest else None
    bos_id, eod_id = (policy.bos_id, policy.eod_id) if policy else (tokenizer.bos_id, tokenizer.eos_id)
    start = 1 if ids and bos_id is not None and ids[0] == bos_id else 0
    stop = len(ids) - 1 if len(ids) > start and eod_id is not None and ids[-1] == eod_id else len(ids)
    return Document(index, ids, tokenizer.decode(ids[start:stop]))
