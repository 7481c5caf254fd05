"""`poro data tokenize`: text to a Megatron .bin/.idx pair."""

import argparse
import sys
from typing import Any

TOKENIZER_HELP = "Hugging Face directory, tokenizer.json, or Llama 3's tokenizer.model"
REJECTS_CODE = 3


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "tokenize",
        help="text to a .bin/.idx pair with its manifest",
        epilog="Killed and started again, it goes on where it was. Exit code 3: more documents were rejected "
        "than may be, or inputs are damaged.",
    )
    _add_input(parser)
    _add_policy(parser)
    _add_work(parser)
    parser.set_defaults(run=_tokenize)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    endings = "JSON lines, plain or .gz, .zst, .xz; .parquet; .txt, each file a document"
    add("inputs", nargs="+", metavar="INPUT", help=f"files, folders or globs, taken in this order: {endings}")
    add("--tokenizer", required=True, metavar="PATH", help=TOKENIZER_HELP)
    add("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    add("--text-field", default="text", metavar="KEY", help="key or column of the text, a.b for a nested one (default: text)")
    add("--shard", default="0/1", metavar="I/N", help="take the I-th of N shares of the bytes, I from 0 (default: 0/1, all)")
    limit = "reject longer lines, rows and text files (default: 134217728)"
    add("--max-document-bytes", type=int, default=128 << 20, metavar="N", help=limit)
    allowed = "publish although so many documents, or P%% of those read, are rejected (default: 0)"
    add("--max-rejected", default="0", metavar="N|P%", help=allowed)
    add("--allow-damaged", action="store_true", help="publish although compressed or Parquet files are damaged (default: do not)")


def _add_policy(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    preset = "one <|begin_of_text|> before and one <|end_of_text|> after each document, checked (default: none)"
    add("--preset", choices=("poro2",), help=preset)
    for flag, token in (("--bos", "begin-of-text"), ("--eod", "end-of-text")):
        add(flag, choices=("document", "none"), help=f"{token} token in every document, or none (default: document)")
    add("--split-sentences", action="store_true", help="make each sentence a sequence of its document (default: one sequence)")
    folder = "folder of NLTK's punkt_tab (default: train on the first of the input)"
    add("--punkt", metavar="FOLDER", help=f"with --split-sentences: {folder}")
    add("--language", default="english", metavar="NAME", help="with --punkt: which language's tables (default: english)")
    add("--keep-newlines", action="store_true", help="with --split-sentences: keep the white space between sentences")


def _add_work(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, metavar="N", help="processes; the output does not depend on it (default: one a core)")
    encoder = "the fast one where its ids are equal, or the reference (default: gigatoken)"
    add("--encoder", choices=("gigatoken", "tokenizers"), default="gigatoken", help=encoder)
    add("--overwrite", action="store_true", help="replace an existing output (default: refuse)")


def _tokenize(args: argparse.Namespace) -> int:
    from data_indexing.inputs import parse_shard
    from data_indexing.tokenize import RejectsError, TokenizeOptions, check_preset, tokenize_files
    from data_indexing.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    if args.preset:
        check_preset(args.preset, tokenizer, args.bos, args.eod)
    options = TokenizeOptions(
        text_field=args.text_field,
        bos=args.bos or "document",
        eod=args.eod or "document",
        sentences=_sentences(args),
        max_document_bytes=args.max_document_bytes,
        max_rejected=args.max_rejected,
        allow_damaged=args.allow_damaged,
        shard=parse_shard(args.shard),
        encoder=args.encoder,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    try:
        counts = tokenize_files(args.inputs, args.output, tokenizer=tokenizer, options=options)
    except RejectsError as error:
        print(f"error: {error}", file=sys.stderr)
        return REJECTS_CODE
    left_out = f"{counts.num_empty_documents:,} empty and {counts.num_rejected_documents:,} rejected left out"
    if counts.num_damaged_documents:
        left_out += f", at least {counts.num_damaged_documents:,} lost by damage of the input"
    text = f"{counts.num_text_bytes:,} bytes of text; {left_out}"
    print(f"{args.output}: {counts.num_documents:,} documents, {counts.num_tokens:,} tokens ({text})")
    return 0


def _sentences(args: argparse.Namespace) -> Any:
    if not args.split_sentences:
        return None
    from data_indexing.sentence_training import find_sentence_model

    return find_sentence_model(
        args.inputs,
        args.punkt,
        language=args.language,
        text_field=args.text_field,
        keep_newlines=args.keep_newlines,
        output=args.output,
    )
