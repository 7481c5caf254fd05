"""From segments of the inputs to documents in an output: read, encoded, checked and written side by side."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from data_indexing.checks import Checks, NoChecks, sample_checks
from data_indexing.chunks import Chunk, Cut, cut_segments, numbers_before
from data_indexing.documents import Reject
from data_indexing.encode import ChunkEncoder, Encoded
from data_indexing.inputs import Segment
from data_indexing.progress import progress
from data_indexing.unpublished import State, Unpublished
from data_indexing.workers import Team

# Results that may wait to be written: at some MB each, what the disk falls behind in a burst.
_WAITING_RESULTS = 8

Map = Callable[[Iterator[Chunk | None]], Iterator[Encoded]]


def add_documents(
    output: Unpublished, segments: Sequence[Segment], encoder: ChunkEncoder, *, workers: int, log: Callable[[State], None]
) -> None:
    """Encode what the output does not hold yet and add it; EncoderFaultError where the fast encoder is found wrong."""
    state = output.state
    cuts = cut_segments(segments, encoder.text_field, limit=encoder.max_document_bytes, start=state.place)
    num_bytes = sum(segment.num_bytes for segment in segments)
    with ExitStack() as stack:
        checks = stack.enter_context(_checks(encoder, workers))
        encode = stack.enter_context(_encoding(encoder, workers))
        write = stack.enter_context(_in_background())
        advance = stack.enter_context(progress("tokenize", num_bytes, "B"))
        name_rejects = _RejectLines(segments)
        for cut, encoded in _encoded(cuts, encode, checks):
            rejected = name_rejects(encoded.rejects, state, cut)
            state = _after(state, cut, encoded, len(rejected))
            write(output.add, encoded.packed, rejected, state, cut.sealed)
            if output.is_due:
                # What is in the journal is never encoded again, so it must be checked before.
                checks.settle()
                write(output.commit)
            advance(cut.num_file_bytes, _said(state))
            log(state)


def _encoded(cuts: Iterator[Cut], encode: Map, checks: Checks) -> Iterator[tuple[Cut, Encoded]]:
    """Each chunk with what became of it, in order, once the encoder is found equal to the reference."""
    taken: deque[Cut] = deque()

    def chunks() -> Iterator[Chunk | None]:
        for number, cut in enumerate(cuts):
            if number == 0:
                yield None
            # Without its bytes: those of a large one are not needed twice.
            taken.append(replace(cut, chunk=Chunk(cut.chunk.path)))
            yield cut.chunk

    for number, encoded in enumerate(encode(chunks())):
        checks.check(encoded.sample)
        if number:
            yield taken.popleft(), encoded


def _after(state: State, cut: Cut, encoded: Encoded, num_rejected_bytes: int) -> State:
    packed = encoded.packed
    num_documents = packed.sequences.size
    num_rejected = sum(1 for reject in encoded.rejects if not reject.num_damaged)
    num_damaged = sum(reject.num_damaged for reject in encoded.rejects)
    return State(
        place=cut.end,
        numbers=_numbers_done(state, cut) + encoded.num_read,
        num_read=state.num_read + encoded.num_read,
        num_empty=state.num_empty + encoded.num_read - num_documents - num_rejected - num_damaged,
        num_rejected=state.num_rejected + num_rejected,
        num_damaged=state.num_damaged + num_damaged,
        num_text_bytes=state.num_text_bytes + encoded.num_text_bytes,
        num_documents=state.num_documents + num_documents,
        num_sequences=state.num_sequences + packed.lengths.size,
        num_tokens=state.num_tokens + int(packed.lengths.sum(dtype=np.int64)),
        rejected_bytes=state.rejected_bytes + num_rejected_bytes,
    )


def _said(state: State) -> str:
    damaged = f", {state.num_damaged:,} lost by damage" if state.num_damaged else ""
    return f"{state.num_documents:,} documents, {state.num_rejected:,} rejected{damaged}"


def _numbers_done(state: State, cut: Cut) -> int:
    """Lines or rows of the segment before this chunk."""
    return state.numbers if state.place.segment == cut.end.segment and state.place.position >= 0 else 0


class _RejectLines:
    """Rejects as lines of JSON that say where they stand in their file."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        # Only a shard that begins within a file reads what is before it, and only for its rejects.
        self._numbers_before = cache(lambda number: numbers_before(segments[number]))

    def __call__(self, rejects: Sequence[Reject], state: State, cut: Cut) -> bytes:
        if not rejects:
            return b""
        segment = cut.end.segment
        before = self._numbers_before(segment) + _numbers_done(state, cut)
        name = self._segments[segment].source.name
        lines = [{"file": name, "line": before + reject.number, "reason": reject.reason} for reject in rejects]
        for line, reject in zip(lines, rejects, strict=True):
            if reject.num_damaged:
                line["num_damaged"] = reject.num_damaged
        return "".join(json.dumps(line) + "\n" for line in lines).encode()


@contextmanager
def _encoding(encoder: ChunkEncoder, workers: int) -> Iterator[Map]:
    if workers == 0:
        yield lambda chunks: map(encoder, chunks)
        return
    with Team(encoder, workers) as team:
        yield lambda chunks: team.map_in_order(chunks, num_bytes=lambda chunk: chunk.num_bytes if chunk else 0)


def _checks(encoder: ChunkEncoder, workers: int) -> AbstractContextManager[Checks]:
    if encoder.encoder_name == "tokenizers":
        return nullcontext(NoChecks())
    return sample_checks(encoder.tokenizer, inline=workers == 0)


@contextmanager
def _in_background() -> Iterator[Callable[..., None]]:
    """Yield a function that runs calls on one other thread, in order; all are done at the end of the block."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def run(function: Callable[..., None], *arguments: Any) -> None:
            waiting.append(pool.submit(function, *arguments))
            while len(waiting) > _WAITING_RESULTS:
                waiting.popleft().result()

        yield run
        for future in waiting:
            future.result()
