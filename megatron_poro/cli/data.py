"""`poro data`: text to Megatron .bin/.idx token files, and a look back into them."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

FAULTS_FOUND = 2
_TOKENIZER_HELP = "Hugging Face directory, tokenizer.json, or Llama 3's tokenizer.model"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data` and its subcommands."""
    data = subparsers.add_parser("data", help="tokenize text, merge, verify and inspect token files")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_tokenize(commands)
    _add_merge(commands)
    _add_verify(commands)
    _add_inspect(commands)


def _add_tokenize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("tokenize", help="JSON lines to a .bin/.idx pair with its manifest")
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files of JSON lines, plain or .gz, taken in this order")
    add("--tokenizer", required=True, metavar="PATH", help=_TOKENIZER_HELP)
    add("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    add("--text-field", default="text", metavar="KEY", help="key of the text, a.b for a nested one (default: text)")
    for flag, token in (("--bos", "begin-of-text"), ("--eod", "end-of-text")):
        placement = f"{token} token in every document, or none (default: document)"
        add(flag, choices=("document", "none"), default="document", help=placement)
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes at most; the output does not depend on it (default: one a core)",
    )
    add("--overwrite", action="store_true", help="replace an existing output (default: refuse)")
    parser.set_defaults(run=_tokenize)


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("merge", help="several pairs into one, in order or shuffled by document")
    add = parser.add_argument
    add("prefixes", nargs="+", metavar="PREFIX", help="pairs, named without .bin and .idx, taken in this order")
    add("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    add("--shuffle", type=int, metavar="SEED", help="shuffle all documents with this seed (default: keep the order)")
    add("--overwrite", action="store_true", help="replace an existing output (default: refuse)")
    parser.set_defaults(run=_merge)


def _add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("verify", help="check pairs; the exit code is 2 when something is wrong")
    parser.add_argument("prefixes", nargs="+", metavar="PREFIX", help="pairs, named without .bin and .idx")
    parser.add_argument("--tokenizer", metavar="PATH", help=f"{_TOKENIZER_HELP} (default: what the manifest says)")
    parser.set_defaults(run=_verify)


def _add_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("inspect", help="counts of a pair, and its documents as text")
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="a pair, named without .bin and .idx")
    add("--tokenizer", metavar="PATH", help=f"{_TOKENIZER_HELP} (default: none, token ids are printed)")
    documents = "documents A to B - 1, counted from 0 (default: 0:1)"
    add("--documents", type=_document_range, default=range(1), metavar="A:B", help=documents)
    add("--raw", action="store_true", help="print the documents' text and nothing else (default: with headers)")
    parser.set_defaults(run=_inspect)


def _document_range(text: str) -> range:
    try:
        first, end = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, such as 0:10") from None
    return range(first, end)


def _tokenize(args: argparse.Namespace) -> int:
    from data_indexing.tokenize import TokenizeOptions, tokenize_files
    from data_indexing.tokenizer import load_tokenizer

    options = TokenizeOptions(args.text_field, args.bos, args.eod, args.workers, args.overwrite)
    counts = tokenize_files(args.inputs, args.output, tokenizer=load_tokenizer(args.tokenizer), options=options)
    text = f"{counts.num_text_bytes:,} bytes of text, {counts.num_empty_documents:,} empty documents left out"
    print(f"{args.output}: {counts.num_documents:,} documents, {counts.num_tokens:,} tokens ({text})")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from data_indexing.merge import merge

    counts = merge(args.prefixes, args.output, shuffle_seed=args.shuffle, overwrite=args.overwrite)
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
    from data_indexing.inspect import inspect, render

    inspection = inspect(args.prefix, _optional_tokenizer(args.tokenizer), documents=args.documents)
    _write_utf8(render(inspection, raw=args.raw))
    return 0


def _optional_tokenizer(path: str | None) -> Any:
    from data_indexing.tokenizer import load_tokenizer

    return None if path is None else load_tokenizer(path)


def _write_utf8(pieces: Iterable[str]) -> None:
    """Print text as it is, whatever the encoding and newlines of the terminal."""
    for piece in pieces:
        sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()
