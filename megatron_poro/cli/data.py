"""`poro data`: text to Megatron .bin/.idx token files, and a look back into them."""

import argparse
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from megatron_poro.cli import data_plan, data_tokenize

FAULTS_FOUND = 2
_TOKENIZER_HELP = data_tokenize.TOKENIZER_HELP


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data` and its subcommands."""
    data = subparsers.add_parser("data", help="tokenize text, merge, verify and inspect token files")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    data_tokenize.add_parser(commands)
    _add_merge(commands)
    _add_verify(commands)
    _add_inspect(commands)
    _add_fertility(commands)
    data_plan.add_parser(commands)


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("merge", help="several pairs into one, in order or shuffled by document")
    add = parser.add_argument
    add("prefixes", nargs="+", metavar="PREFIX", help="pairs, named without .bin and .idx, taken in this order")
    add("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    add("--shuffle", type=int, metavar="SEED", help="shuffle all documents with this seed (default: keep the order)")
    memory = "memory for shuffling; the order does not depend on it (default: 0.5)"
    add("--shuffle-memory", type=_gigabytes, default=500_000_000, metavar="GB", help=memory)
    shards = "merge shards that are not one whole: some missing, twice, or of two splits (default: refuse)"
    add("--allow-missing-shards", action="store_true", help=shards)
    add("--overwrite", action="store_true", help="replace an existing output (default: refuse)")
    parser.set_defaults(run=_merge)


def _add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("verify", help="check pairs; the exit code is 2 when something is wrong")
    parser.add_argument("prefixes", nargs="+", metavar="PREFIX", help="pairs, named without .bin and .idx")
    parser.add_argument("--tokenizer", metavar="PATH", help=f"{_TOKENIZER_HELP} (default: what the manifest says)")
    parser.set_defaults(run=_verify)


def _add_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("inspect", help="counts of a pair and its documents as text, or samples of a run")
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="a pair, named without .bin and .idx; a run file with --samples")
    add("--samples", type=_sample_range, metavar="A-B", help="samples A to B of the run file: where they come from, and their text")
    add("--tokenizer", metavar="PATH", help=f"{_TOKENIZER_HELP} (default: none, token ids are printed)")
    documents = "documents A to B - 1, counted from 0 (default: 0:1)"
    add("--documents", type=_document_range, default=range(1), metavar="A:B", help=documents)
    add("--raw", action="store_true", help="print the documents' text and nothing else (default: with headers)")
    add("--statistics", action="store_true", help="also how long documents are, and the most frequent tokens; reads all")
    add("--top", type=int, default=20, metavar="N", help="tokens to name in the statistics (default: 20)")
    parser.set_defaults(run=_inspect)


def _add_fertility(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("fertility", help="tokens a word and bytes a token, by text and tokenizer")
    add = parser.add_argument
    add("texts", nargs="+", metavar="TEXT", help="files, folders or globs, read as by tokenize")
    add("--tokenizer", required=True, action="append", metavar="PATH", help=f"{_TOKENIZER_HELP}; may be repeated")
    add(
        "--text-field",
        default="text",
        metavar="KEY",
        help="key of the text in each line or column, a.b for a nested one (default: text)",
    )
    add("--picture", metavar="FILE", help="save the table as bars too: .png, .svg or .pdf (default: table alone)")
    parser.set_defaults(run=_fertility)


def _gigabytes(text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0.01 <= size <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GB of at least 0.01")
    return int(size * 1e9)


def _document_range(text: str) -> range:
    try:
        first, end = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, such as 0:10") from None
    return range(first, end)


def _sample_range(text: str) -> range:
    try:
        first, _, last = text.partition("-")
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no sample number and not A-B, such as 4096-4103") from None


def _merge(args: argparse.Namespace) -> int:
    from data_indexing.merge import merge

    counts = merge(
        args.prefixes,
        args.output,
        shuffle_seed=args.shuffle,
        shuffle_memory_bytes=args.shuffle_memory,
        allow_missing_shards=args.allow_missing_shards,
        overwrite=args.overwrite,
    )
    print(f"{args.output}: {counts.num_documents:,} documents, {counts.num_tokens:,} tokens")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from data_indexing.verify import verify

    tokenizer = _optional_tokenizer(args.tokenizer)
    reports = [verify(prefix, tokenizer=tokenizer) for prefix in args.prefixes]
    for report in reports:
        print(report.prefix)
        for check in report.checks:
            print(f"  {check.outcome:8}{check.name:10}{check.detail}")
    return FAULTS_FOUND if any(report.faults for report in reports) else 0


def _inspect(args: argparse.Namespace) -> int:
    from data_indexing import statistics
    from data_indexing.inspect import inspect, render

    tokenizer = _optional_tokenizer(args.tokenizer)
    if args.samples is not None:
        return _inspect_samples(args, tokenizer)
    _write_utf8(render(inspect(args.prefix, tokenizer, documents=args.documents), raw=args.raw))
    if args.statistics:
        _write_utf8(statistics.render(statistics.measure(args.prefix, top=args.top), tokenizer))
    return 0


def _inspect_samples(args: argparse.Namespace, tokenizer: Any) -> int:
    from megatron_poro.config import load_run
    from megatron_poro.data import TrainingData, render_samples

    with closing(TrainingData(load_run(Path(args.prefix)).data)) as data:
        _write_utf8(render_samples(data, args.samples, tokenizer))
    return 0


def _fertility(args: argparse.Namespace) -> int:
    from data_indexing.fertility import fertility_table, measure_fertility, save_picture
    from data_indexing.tokenizer import load_tokenizer

    texts = measure_fertility(args.texts, [load_tokenizer(path) for path in args.tokenizer], text_field=args.text_field)
    _write_utf8(fertility_table(texts))
    if args.picture:
        save_picture(texts, args.picture)
    return 0


def _optional_tokenizer(path: str | None) -> Any:
    from data_indexing.tokenizer import load_tokenizer

    return None if path is None else load_tokenizer(path)


def _write_utf8(pieces: Iterable[str]) -> None:
    """Print text as it is, whatever the encoding and newlines of the terminal."""
    for piece in pieces:
        sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()
