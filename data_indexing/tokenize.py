"""Text to a Megatron .bin/.idx pair and its manifest, on all cores.

The output is the same, byte for byte, whatever the number of workers and however often the run was killed: documents are
encoded anywhere and written in input order, and what is on disk is noted in a journal (unpublished.py).
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_indexing import llama3
from data_indexing.encode import ChunkEncoder
from data_indexing.encoders import EncoderFaultError, EncoderName, encoder_version
from data_indexing.errors import DataError
from data_indexing.format import (
    Prefix,
    bin_path,
    dtype_for_vocab,
    idx_path,
    manifest_path,
    rejected_path,
    unpublished_path,
)
from data_indexing.inputs import InputPath, Segment, Shard, file_version, find_inputs, inputs_sha256, plan_segments
from data_indexing.manifest import Counts, Manifest, Placement, Policy, Tokenization, TokenizerRecord
from data_indexing.pipeline import add_documents
from data_indexing.sentences import SentenceModel
from data_indexing.tokenizer import TextTokenizer
from data_indexing.unpublished import Hashes, State, Unpublished, journal_of
from data_indexing.workers import available_cores
from data_indexing.writer import check_output

# To be raised when the same inputs and options give other bytes.
_OUTPUT_VERSION = 2


@dataclass(frozen=True)
class TokenizeOptions:
    """How to tokenise.

    `text_field`: key of the text in each line or column, `a.b` for one inside another. `bos` and `eod`: a begin-of-text
    token opens, an end-of-text token closes each `document`, or `none`. `sentences`: how to split documents into the
    sequences of the pair, None for one sequence a document. `max_document_bytes`: longer lines, rows and text files are
    rejected. `max_rejected`: so many rejects, or so many of a hundred documents read ("1%"), do not keep the pair from being
    published; damage of a file does, unless `allow_damaged`. `shard`: which share of the inputs to take. `encoder`:
    gigatoken gives way to the reference where it is not installed or not equal. `workers`: processes, None for one a core, 0
    to do all in this one. `overwrite`: replace an existing output.
    """

    text_field: str = "text"
    bos: Placement = "document"
    eod: Placement = "document"
    sentences: SentenceModel | None = None
    max_document_bytes: int = 128 << 20
    max_rejected: str = "0"
    allow_damaged: bool = False
    shard: Shard = (0, 1)
    encoder: EncoderName = "gigatoken"
    workers: int | None = None
    overwrite: bool = False


class RejectsError(DataError):
    """More documents were rejected than may be, or inputs are damaged; the pair lies complete, but unpublished."""


def tokenize_files(
    inputs: Sequence[str | Path],
    output_prefix: Prefix,
    *,
    tokenizer: TextTokenizer,
    options: TokenizeOptions = TokenizeOptions(),
    log: Callable[[State], None] = lambda _: None,
) -> Counts:
    """Write the documents of all inputs, in order, as one pair; empty texts are counted and left out.

    `log` hears of the state after every chunk. RejectsError where too many documents were rejected or lost by damage.
    """
    check_max_rejected(options.max_rejected)
    if options.max_document_bytes < 1:
        raise DataError(f"max document bytes ({options.max_document_bytes}) must be at least 1; leave it out for 128 MiB")
    job = _Job(find_inputs(inputs, output_prefix), Path(output_prefix), tokenizer, options, _policy(tokenizer, options), log)
    _check_inputs_are_no_outputs(job)
    encoder = _first_encoder(job)
    _, publishing = journal_of(output_prefix)
    if not publishing:
        check_output(output_prefix, overwrite=options.overwrite)
    try:
        return _run(job, encoder)
    except EncoderFaultError as fault:
        print(f"{output_prefix}: gigatoken is not used: {fault}; everything is encoded by tokenizers", file=sys.stderr)
    return _run(job, "tokenizers")


def _check_inputs_are_no_outputs(job: "_Job") -> None:
    """DataError when publishing would replace an input, as `tokenize in.json --output in` would."""
    outputs = {file(job.prefix).resolve() for file in (bin_path, idx_path, manifest_path, rejected_path)}
    for item in job.inputs:
        if item.path.resolve() in outputs:
            raise DataError(f"{item.path}: both input and output; give another --output")


def check_preset(name: str, tokenizer: TextTokenizer, bos: Placement | None, eod: Placement | None) -> None:
    """DataError unless tokenizer and options give what a preset promises."""
    config = tokenizer.config
    found = config.get("bos_token"), config.get("eos_token")
    if name == "poro2" and found != (llama3.BOS_TOKEN, llama3.EOS_TOKEN):
        wanted = f"{llama3.BOS_TOKEN} and {llama3.EOS_TOKEN}"
        raise DataError(
            f"tokenizer {tokenizer.name}: BOS and end are {found[0]} and {found[1]}, preset {name} wants {wanted}; give "
            "Llama 3.1's base tokenizer"
        )
    if "none" in (bos, eod):
        raise DataError(f"preset {name} puts both tokens into every document; leave out --bos none and --eod none, or the preset")


def check_max_rejected(text: str) -> None:
    """DataError unless it is a number or a percentage."""
    allowed_rejects(text, 0)


def allowed_rejects(text: str, num_read: int) -> Fraction:
    """How many of the documents read may be rejected, exactly."""
    try:
        share = Fraction(text.removesuffix("%")) / 100 * num_read if text.endswith("%") else Fraction(int(text))
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if text.startswith("-") or share < 0:
        raise DataError(f"max rejected {text!r} is neither a number nor a percentage; give one such as 10 or 0.5%")
    return share


@dataclass(frozen=True)
class _Job:
    inputs: list[InputPath]
    prefix: Path
    tokenizer: TextTokenizer
    options: TokenizeOptions
    policy: Policy
    log: Callable[[State], None]

    @property
    def segments(self) -> list[Segment]:
        return plan_segments(self.inputs, self.options.shard)

    @property
    def num_workers(self) -> int:
        wanted = available_cores() if self.options.workers is None else self.options.workers
        if wanted < 0:
            raise DataError(f"workers ({wanted}) must be at least 0; leave it out for one a core")
        return wanted

    def chunk_encoder(self, encoder: EncoderName) -> ChunkEncoder:
        options = self.options
        return ChunkEncoder(
            encoder,
            self.tokenizer,
            self.policy,
            self.dtype,
            text_field=options.text_field,
            max_document_bytes=options.max_document_bytes,
            sentences=options.sentences,
            folder=unpublished_path(self.prefix).absolute(),
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_for_vocab(self.tokenizer.vocab_size)

    def fingerprint(self, encoder: EncoderName) -> str:
        """Hash of all that the output depends on."""
        options = self.options
        files = [(str(item.path.absolute()), item.version) for item in self.inputs]
        split = options.sentences.sha256 if options.sentences else None
        parts = [options.text_field, options.max_document_bytes, options.shard, split, asdict(self.policy)]
        whole = [_OUTPUT_VERSION, encoder, encoder_version(encoder), self.tokenizer.sha256, parts, files]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _first_encoder(job: _Job) -> EncoderName:
    """The reference where it was asked for, where a run that is to be continued fell back to it, or where there is no other."""
    found, _ = journal_of(job.prefix)
    if encoder_version("gigatoken") is None or found == job.fingerprint("tokenizers"):
        return "tokenizers"
    return job.options.encoder


def _run(job: _Job, encoder: EncoderName) -> Counts:
    with Unpublished(job.prefix, job.dtype, job.fingerprint(encoder)) as output:
        if output.publishing:
            output.finish_publishing()
        else:
            add_documents(output, job.segments, job.chunk_encoder(encoder), workers=job.num_workers, log=job.log)
            _check_inputs_unchanged(job.inputs)
            _check_rejects(job, output)
            output.publish(lambda hashes: _manifest(job, encoder, output, hashes))
        return _counts(output.state)


def _check_inputs_unchanged(inputs: Sequence[InputPath]) -> None:
    for item in inputs:
        if file_version(item.path.stat()) != item.version:
            raise DataError(f"{item.path}: changed while it was read; run the same command again")


def _check_rejects(job: _Job, output: Unpublished) -> None:
    state, options = output.state, job.options
    counts, flags = [], []
    if state.num_rejected > allowed_rejects(options.max_rejected, state.num_read):
        counts.append(f"{state.num_rejected} of {state.num_read} documents rejected")
        flags.append(f"--max-rejected {state.num_rejected}")
    if state.num_damaged and not options.allow_damaged:
        counts.append(f"at least {state.num_damaged} documents lost by damage of the input")
        flags.append("--allow-damaged")
    if flags:
        first = output.keep_rejects()
        raise RejectsError(
            f"{' and '.join(counts)}, the first at {first}; "
            f"all are listed in {rejected_path(job.prefix)}, the pair is kept in {unpublished_path(job.prefix)}: correct the "
            f"input, or run the same command with {' '.join(flags)} to publish the pair as it is"
        )
    if state.num_documents == 0 and job.options.shard == (0, 1):
        raise DataError(f"{job.prefix}: the inputs hold no text ({state.num_empty} empty documents); give other inputs")


def _manifest(job: _Job, encoder: EncoderName, output: Unpublished, hashes: Hashes) -> Manifest:
    tokenizer, options = job.tokenizer, job.options
    number, count = options.shard
    sequences: Literal["sentences", "documents"] = "sentences" if options.sentences else "documents"
    return Manifest(
        tokenizer=TokenizerRecord(tokenizer.name, tokenizer.sha256, tokenizer.vocab_size),
        policy=job.policy,
        dtype=job.dtype.name,
        counts=_counts(output.state),
        inputs=tuple(output.sealed),
        bin_sha256=hashes.bin_sha256,
        bin_crc32=hashes.bin_crc32,
        idx_sha256=hashes.idx_sha256,
        tokenization=Tokenization(
            encoder=encoder,
            encoder_version=encoder_version(encoder) or "",
            text_field=options.text_field,
            shard=f"{number}/{count}",
            sequences=sequences,
            inputs_sha256=inputs_sha256(job.inputs),
        ),
    )


def _counts(state: State) -> Counts:
    sums = (state.num_documents, state.num_tokens, state.num_empty, state.num_text_bytes, state.num_rejected, state.num_damaged)
    return Counts(*sums)


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
