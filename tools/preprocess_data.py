"""Megatron-LM's tools/preprocess_data.py by its flags, so that a script which calls it keeps working; `poro data tokenize` does it.

    python tools/preprocess_data.py --input fi.jsonl --output-prefix tokens/fi --tokenizer-type HuggingFaceTokenizer \
        --tokenizer-model Llama-3.1-8B --append-eod --workers 16

writes tokens/fi_text_document.bin and .idx (`_sentence` with --split-sentences), and a manifest beside them. BOS stands where
Megatron's has it: before each document, if the tokenizer itself adds it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_indexing.errors import DataError
from data_indexing.sentence_training import find_sentence_model
from data_indexing.tokenize import RejectsError, TokenizeOptions, tokenize_files
from data_indexing.tokenizer import TextTokenizer, load_tokenizer
from data_indexing.unpublished import State

USER_ERROR_CODE = 2
REJECTS_CODE = 3
INTERRUPTED_CODE = 130


def main() -> int:
    """Run it; returns the exit code: 0 done, 2 the user's mistake, 3 rejects or damaged inputs, 130 interrupted."""
    args = _parser().parse_args()
    try:
        tokenizer = load_tokenizer(args.tokenizer_model)
        for key in args.json_keys:
            _tokenize(args, key, tokenizer)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return REJECTS_CODE if isinstance(error, RejectsError) else USER_ERROR_CODE
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return USER_ERROR_CODE
    except KeyboardInterrupt:
        return INTERRUPTED_CODE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Text to Megatron's .bin/.idx, by Megatron-LM's flags.", allow_abbrev=False)
    add = parser.add_argument
    add("--input", required=True, help="file of JSON lines, folder or glob")
    add("--json-keys", nargs="+", default=["text"], help="one output for each (default: text)")
    add("--output-prefix", required=True, help="writes PREFIX_KEY_document.bin and .idx")
    add("--tokenizer-type", required=True, choices=("HuggingFaceTokenizer",), help="others: give their tokenizer.json")
    add("--tokenizer-model", required=True, help="Hugging Face directory, tokenizer.json, or Llama 3's tokenizer.model")
    add("--append-eod", action="store_true", help="put the end-of-text token after each document")
    add("--workers", type=int, required=True, help="processes")
    add("--log-interval", type=_interval, default=1000, help="documents between two lines of progress (default: 1000)")
    add("--split-sentences", action="store_true", help="make each sentence a sequence of its document")
    add("--lang", default="english", help="whose Punkt tables to take from $NLTK_DATA (default: english)")
    add("--keep-newlines", action="store_true", help="keep the white space between sentences")
    add("--max-rejected", default="0", help="documents, or P%% of them, that may be unreadable (default: 0)")
    add("--allow-damaged", action="store_true", help="publish although compressed or Parquet files are damaged")
    for flag in ("--partitions", "--vocab-size", "--make-vocab-size-divisible-by", "--tensor-model-parallel-size"):
        add(flag, type=int, help="accepted, without effect")
    add("--keep-sequential-samples", action="store_true", help="always so")
    return parser


def _interval(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _tokenize(args: argparse.Namespace, key: str, tokenizer: TextTokenizer) -> None:
    prefix = f"{args.output_prefix}_{key}_{'sentence' if args.split_sentences else 'document'}"
    sentences = None
    if args.split_sentences:
        folder = os.environ.get("NLTK_DATA")
        words = {"language": args.lang, "text_field": key, "keep_newlines": args.keep_newlines, "output": prefix}
        sentences = find_sentence_model([args.input], folder, **words)
    options = TokenizeOptions(
        text_field=key,
        bos="document" if tokenizer.facts.adds_bos else "none",
        eod="document" if args.append_eod else "none",
        sentences=sentences,
        max_rejected=args.max_rejected,
        allow_damaged=args.allow_damaged,
        workers=args.workers,
        overwrite=True,
    )
    tokenize_files([args.input], prefix, tokenizer=tokenizer, options=options, log=_logger(args.log_interval))


def _logger(interval: int) -> Callable[[State], None]:
    start = time.monotonic()
    said = 0

    def log(state: State) -> None:
        nonlocal said
        if state.num_read // interval > said:
            said = state.num_read // interval
            seconds = time.monotonic() - start
            rates = f"{state.num_read / seconds:.1f} docs/s, {state.num_text_bytes / seconds / 2**20:.2f} MB/s"
            print(f"Processed {said * interval} documents ({rates}).", file=sys.stderr)

    return log


if __name__ == "__main__":
    sys.exit(main())
