#!/usr/bin/env python3
"""Merge all .bin/.idx pairs of a folder into one, in the order of their names, with the flags of Megatron's tool.

python tools/merge_datasets.py --input DIR --output-prefix PREFIX [--shuffle SEED] [--allow-missing-shards] [--overwrite]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_indexing.errors import DataError
from data_indexing.merge import find_pairs, merge


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge, or print one line about what is wrong and return 2."""
    args = _build_parser().parse_args(arguments)
    try:
        if args.multimodal:
            raise DataError("--multimodal: sequence modes are not supported; merge such pairs with Megatron's own tool")
        counts = merge(
            find_pairs(args.input),
            args.output_prefix,
            shuffle_seed=args.shuffle,
            allow_missing_shards=args.allow_missing_shards,
            overwrite=args.overwrite,
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output_prefix}: {counts.num_documents:,} documents, {counts.num_tokens:,} tokens")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Merge all .bin/.idx pairs of a folder into one.")
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="DIR", help="the folder; its pairs are taken in the order of their names")
    add("--output-prefix", required=True, metavar="PREFIX", help="writes PREFIX.bin, PREFIX.idx and PREFIX.json")
    add("--multimodal", action="store_true", help="refused: pairs with sequence modes are not supported")
    add("--shuffle", type=int, metavar="SEED", help="shuffle all documents with this seed (default: keep the order)")
    shards = "merge shards that are not one whole: some missing, twice, or of two splits (default: refuse)"
    add("--allow-missing-shards", action="store_true", help=shards)
    add("--overwrite", action="store_true", help="replace an existing output (default: refuse)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
