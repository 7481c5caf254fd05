"""The output of a tokenisation until it is complete: a folder PREFIX.unpublished that a killed run leaves and the next takes up.

    journal.jsonl    what the output depends on, then a line for every state that is safely on disk
    tokens           becomes PREFIX.bin
    lengths          int32, tokens of each sequence
    document_ends    int64, sequences up to the end of each document
    rejected.jsonl   becomes PREFIX.rejected.jsonl
    large-*          tokens of large documents, on their way from a worker

A line of the journal is written when the files it speaks of are on the disk; whatever lies behind its sizes is cut off by
the next run. The pair appears by renames, .idx last, once the journal says that they have begun.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from data_indexing.chunks import Place
from data_indexing.encode import LARGE_PREFIX, Packed
from data_indexing.errors import DataError
from data_indexing.format import Header, Prefix, bin_path, idx_path, manifest_path, pack_header, rejected_path, unpublished_path
from data_indexing.manifest import InputFile, Manifest, file_sha256, manifest_text
from data_indexing.streams import Buffer, full_disk_named, partial_path, sync

COMMIT_BYTES = 64 << 20
COMMIT_SECONDS = 5.0
_WRITEBACK_BYTES = 8 << 20
_INDEX_SEQUENCES = 1 << 20
_BEGIN_PUBLISHING = "publishing"
_JOURNAL, _TOKENS, _LENGTHS, _ENDS, _REJECTED = "journal.jsonl", "tokens", "lengths", "document_ends", "rejected.jsonl"
_INDEX, _MANIFEST = "index", "manifest.json"


@dataclass(frozen=True)
class State:
    """How far the work is: the place in the inputs, the lines or rows read of its segment, and the sums so far."""

    place: Place = Place()
    numbers: int = 0
    num_read: int = 0
    num_empty: int = 0
    num_rejected: int = 0
    num_text_bytes: int = 0
    num_documents: int = 0
    num_sequences: int = 0
    num_tokens: int = 0
    rejected_bytes: int = 0
    num_damaged: int = 0


@dataclass(frozen=True)
class Hashes:
    """Those of a pair's files, as its manifest has them."""

    bin_sha256: str
    bin_crc32: int
    idx_sha256: str


def journal_of(prefix: Prefix) -> tuple[str | None, bool]:
    """The fingerprint of what lies in the folder, None where nothing does, and whether its renames have begun."""
    journal = _read_journal(unpublished_path(prefix) / _JOURNAL)
    return journal.fingerprint, journal.publishing


class Unpublished:
    """Context manager of the folder: takes up what a run with the same fingerprint left, or begins anew.

    The caller adds documents in order, each time with the state after them, then publishes. What an exception leaves is
    kept for the next run.
    """

    def __init__(self, prefix: Prefix, dtype: np.dtype[Any], fingerprint: str) -> None:
        """Touch nothing yet."""
        self.prefix = Path(prefix)
        self.state = State()
        self.sealed: list[InputFile] = []
        self.publishing = False
        self._dtype = dtype
        self._fingerprint = fingerprint
        self._folder = unpublished_path(prefix)
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._new_seals: list[InputFile] = []
        self._committed = State()
        self._committed_at = time.monotonic()
        self._started_bytes = 0
        self._open = ExitStack()
        self._journal: BinaryIO
        self._files: dict[str, Any] = {}

    def add(self, packed: Packed, rejected: bytes, state: State, sealed: InputFile | None = None) -> None:
        """Append documents and lines about rejects; `state` is that after them, `sealed` a file that ends with them."""
        ends = self.state.num_sequences + np.cumsum(packed.sequences)
        parts: dict[str, Any] = {_LENGTHS: packed.lengths, _ENDS: ends, _REJECTED: rejected}
        with full_disk_named(self.prefix):
            for tokens in _taken_out(packed.tokens):
                self._files[_TOKENS].write(tokens)
                self._hash(tokens)
            for name, data in parts.items():
                self._files[name].write(data)
        self._new_seals += [sealed] if sealed else []
        self.state = state
        self._start_writeback()

    @property
    def is_due(self) -> bool:
        """Whether there is enough to commit."""
        num_bytes = (self.state.num_tokens - self._committed.num_tokens) * self._dtype.itemsize
        return num_bytes >= COMMIT_BYTES or time.monotonic() - self._committed_at >= COMMIT_SECONDS

    def commit(self) -> None:
        """Bring all to the disk and note it in the journal, from where the next run goes on."""
        if self.state != self._committed or self._new_seals:
            for stream in self._files.values():
                with full_disk_named(self.prefix):
                    sync(stream)
            self._note({"state": asdict(self.state), "sealed": [asdict(seal) for seal in self._new_seals]})
            self.sealed += self._new_seals
            self._new_seals = []
        self._committed = self.state
        self._committed_at = time.monotonic()

    def keep_rejects(self) -> str:
        """Put the list of rejects where it lies when the pair is published, without the pair; returns the first of them."""
        self.commit()
        partial = partial_path(rejected_path(self.prefix))
        with full_disk_named(partial):
            shutil.copyfile(self._folder / _REJECTED, partial)
        partial.rename(rejected_path(self.prefix))
        with rejected_path(self.prefix).open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
        return "{file}:{line}: {reason}".format(**first)

    def publish(self, build_manifest: Callable[[Hashes], Manifest]) -> None:
        """Complete the pair and rename it into place, with the manifest made from its hashes."""
        self.commit()
        with full_disk_named(self.prefix):
            self._write_index()
            hashes = Hashes(self._sha256.hexdigest(), self._crc32, file_sha256(self._folder / _INDEX))
            manifest = build_manifest(hashes)
            with (self._folder / _MANIFEST).open("wb") as stream:
                stream.write(manifest_text(manifest).encode())
                sync(stream)
        self._note({_BEGIN_PUBLISHING: True})
        self.finish_publishing()

    def finish_publishing(self) -> None:
        """Rename what is not renamed yet, and remove the folder."""
        if (self._folder / _INDEX).exists():
            # An older index must never stand beside the new tokens.
            idx_path(self.prefix).unlink(missing_ok=True)
        if self.state.rejected_bytes == 0:
            rejected_path(self.prefix).unlink(missing_ok=True)
            (self._folder / _REJECTED).unlink(missing_ok=True)
        targets = {
            _TOKENS: bin_path(self.prefix),
            _MANIFEST: manifest_path(self.prefix),
            _REJECTED: rejected_path(self.prefix),
            _INDEX: idx_path(self.prefix),
        }
        for name, target in targets.items():
            with suppress(FileNotFoundError):
                (self._folder / name).rename(target)
        _sync_directory(self.prefix.parent)
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        """Open the folder; DataError where another process works in it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._journal = self._open.enter_context((self._folder / _JOURNAL).open("a+b"))
        except OSError as error:
            raise DataError(f"{self._folder}: {error.strerror}; choose another output") from None
        try:
            _hold(self._journal, self._folder)
            if not self._take_up():
                self._begin()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the files; after an exception before the first commit, remove them."""
        with full_disk_named(self.prefix):
            # What the files still keep back is written now.
            self._open.close()
        if kind is not None and self._committed == State():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _take_up(self) -> bool:
        journal = _read_journal(self._folder / _JOURNAL)
        self._journal.truncate(journal.num_bytes)
        if journal.fingerprint != self._fingerprint:
            return False
        self.state = self._committed = journal.state
        self.sealed = journal.sealed
        self.publishing = journal.publishing
        return self.publishing or self._reopen(journal.state)

    def _reopen(self, state: State) -> bool:
        """Cut the files to the sizes of a state; False where they are shorter."""
        for path in self._folder.glob(f"{LARGE_PREFIX}*"):
            path.unlink()
        for name, size in self._sizes(state).items():
            path = self._folder / name
            if not path.exists() or path.stat().st_size < size:
                return False
            os.truncate(path, size)
        with (self._folder / _TOKENS).open("rb") as stream:
            while block := stream.read(_WRITEBACK_BYTES):
                self._hash(block)
        self._open_files("ab")
        return True

    def _begin(self) -> None:
        for path in self._folder.iterdir():
            if path.name != _JOURNAL:
                path.unlink()
        self._journal.truncate(0)
        self.state = self._committed = State()
        self.sealed = []
        self._sha256 = hashlib.sha256()
        self._crc32 = 0
        self._open_files("wb")
        self._note({"fingerprint": self._fingerprint})

    def _hash(self, tokens: Buffer) -> None:
        self._sha256.update(tokens)
        self._crc32 = isal_zlib.crc32(tokens, self._crc32)

    def _open_files(self, mode: str) -> None:
        for name in self._sizes(State()):
            self._files[name] = self._open.enter_context((self._folder / name).open(mode))

    def _sizes(self, state: State) -> dict[str, int]:
        return {
            _TOKENS: state.num_tokens * self._dtype.itemsize,
            _LENGTHS: 4 * state.num_sequences,
            _ENDS: 8 * state.num_documents,
            _REJECTED: state.rejected_bytes,
        }

    def _note(self, entry: Mapping[str, Any]) -> None:
        with full_disk_named(self.prefix):
            self._journal.write(json.dumps(entry).encode() + b"\n")
            sync(self._journal)

    def _start_writeback(self) -> None:
        """Set what is dirty on its way to the disk: left to the final sync, it takes four times as long."""
        num_bytes = self.state.num_tokens * self._dtype.itemsize
        if num_bytes - self._started_bytes >= _WRITEBACK_BYTES:
            stream = self._files[_TOKENS]
            os.posix_fadvise(stream.fileno(), self._started_bytes, num_bytes - self._started_bytes, os.POSIX_FADV_DONTNEED)
            self._started_bytes = num_bytes

    def _write_index(self) -> None:
        state = self.state
        with (self._folder / _INDEX).open("wb") as index, (self._folder / _LENGTHS).open("rb") as lengths:
            index.write(pack_header(Header(self._dtype, state.num_sequences, state.num_documents + 1)))
            shutil.copyfileobj(lengths, index)
            lengths.seek(0)
            pointer = 0
            while raw := lengths.read(4 * _INDEX_SEQUENCES):
                sizes = np.frombuffer(raw, np.int32).astype(np.int64) * self._dtype.itemsize
                ends = pointer + np.cumsum(sizes)
                index.write((ends - sizes).data)
                pointer = int(ends[-1])
            index.write(bytes(8))
            with (self._folder / _ENDS).open("rb") as ends_file:
                shutil.copyfileobj(ends_file, index)
            sync(index)


def _taken_out(tokens: npt.NDArray[Any] | Path) -> Iterator[Any]:
    """Tokens from where they are, and the file that held them removed."""
    if not isinstance(tokens, Path):
        yield tokens.data
        return
    with tokens.open("rb", buffering=0) as stream:
        while block := stream.read(_WRITEBACK_BYTES):
            yield block
    tokens.unlink()


@dataclass(frozen=True)
class _Journal:
    """What a journal says, up to a line that was cut short; its first `num_bytes` are whole."""

    fingerprint: str | None = None
    state: State = State()
    sealed: list[InputFile] = field(default_factory=list)
    publishing: bool = False
    num_bytes: int = 0


def _read_journal(path: Path) -> _Journal:
    journal = _Journal()
    if path.exists():
        with path.open("rb") as stream:
            for line in stream:
                try:
                    journal = _after(journal, json.loads(line), len(line)) if line.endswith(b"\n") else journal
                except (ValueError, TypeError, KeyError):
                    break
    return journal


def _after(journal: _Journal, entry: dict[str, Any], num_bytes: int) -> _Journal:
    changes: dict[str, Any] = {"num_bytes": journal.num_bytes + num_bytes}
    if "fingerprint" in entry:
        changes["fingerprint"] = entry["fingerprint"]
    if "state" in entry:
        place = Place(**entry["state"]["place"])
        changes["state"] = State(**(entry["state"] | {"place": place}))
        journal.sealed.extend(InputFile(**item) for item in entry["sealed"])
    return replace(journal, publishing=_BEGIN_PUBLISHING in entry, **changes)


def _hold(stream: BinaryIO, folder: Path) -> None:
    """Lock the journal of a folder, where the file system can."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{folder}: another process works on this output; wait for it or choose another output") from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise


def _sync_directory(path: Path) -> None:
    """Make renames outlast a crash of the machine."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
