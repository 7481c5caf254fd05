#!/usr/bin/env python3
"""Megatron-LM's tools/checkpoint/convert.py by its flags, so that a script which calls it keeps working; `poro convert` does it.

    python tools/convert_checkpoint.py --model-type GPT --loader llama_mistral --saver mcore --load-dir Llama-3.1-8B \\
        --save-dir llama3.1-8B-TP2 --target-tensor-parallel-size 2 --tokenizer-model Llama-3.1-8B --bf16
    python tools/convert_checkpoint.py --model-type GPT --loader mcore --saver llama_mistral --load-dir run/checkpoints \\
        --save-dir exported --tokenizer-dir Llama-3.1-8B

The first writes a file a rank (`--ckpt-format torch`), the second a Hugging Face directory. No GPU, no Megatron-LM, the memory of
a block; the written files are read back and compared before they appear.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_poro.cli.convert import positive
from megatron_poro.conversion import Effort, Like, MegatronLM, to_hf, to_megatron
from megatron_poro.errors import ConversionError, PoroError
from megatron_poro.topology import Layout

USER_ERROR_CODE = 2
HUGGING_FACE = ("llama_mistral",)
MEGATRON = ("mcore", "core")
SAVE_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, or print one line about what is wrong and return 2."""
    args = _build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _check(args)
        proof = _export(args) if args.saver in HUGGING_FACE else _import(args)
    except PoroError as error:
        print(f"error: {_in_these_flags(str(error))}", file=sys.stderr)
        return USER_ERROR_CODE
    except KeyboardInterrupt:
        return 130
    print(f"{args.save_dir}: {len(proof['tensors'])} tensors read back and equal, weights {proof['source']['weights_sha256'][:16]}")
    return 0


def _in_these_flags(message: str) -> str:
    """A message of `poro convert` with the flags that stand for its own."""
    return message.replace("--reference HF_DIR", "--tokenizer-dir DIR").replace("--vocab-size", "--true-vocab-size")


def _check(args: argparse.Namespace) -> None:
    """Raise ConversionError for what is not done, or not meant."""
    if args.target_expert_parallel_size != 1:
        raise ConversionError("--target-expert-parallel-size: a Llama has no experts; leave it out")
    if (args.loader in HUGGING_FACE) != (args.load_dir / "config.json").is_file():
        raise ConversionError(f"--loader {args.loader} does not fit {args.load_dir}: llama_mistral loads a Hugging Face directory")


def _import(args: argparse.Namespace) -> dict[str, Any]:
    """To rank files, from a Hugging Face directory or from rank files of another layout."""
    layout = Layout(args.target_tensor_parallel_size, args.target_pipeline_parallel_size)
    reference = args.tokenizer_dir or args.tokenizer_model if args.loader in MEGATRON else None
    return to_megatron(
        args.load_dir,
        args.save_dir,
        like=Like(reference, args.true_vocab_size),
        dtype="bfloat16" if args.bf16 else "float16" if args.fp16 else None,
        megatron_lm=MegatronLM("torch", layout, local=args.saver_transformer_impl == "local"),
        effort=Effort(args.workers),
    )


def _export(args: argparse.Namespace) -> dict[str, Any]:
    reference = args.tokenizer_dir or args.tokenizer_model
    dtype = SAVE_DTYPES.get(args.save_dtype)
    return to_hf(args.load_dir, args.save_dir, like=Like(reference, args.true_vocab_size), dtype=dtype, effort=Effort(args.workers))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Hugging Face <-> Megatron-LM, by Megatron-LM's flags.", allow_abbrev=False)
    add = parser.add_argument
    add("--model-type", choices=("GPT",), required=True)
    add("--loader", choices=(*HUGGING_FACE, *MEGATRON), required=True, help="llama_mistral: a Hugging Face directory")
    add("--saver", choices=(*HUGGING_FACE, *MEGATRON), required=True, help="llama_mistral: a Hugging Face directory")
    add("--load-dir", type=Path, required=True, metavar="DIR")
    add("--save-dir", type=Path, required=True, metavar="DIR", help="must not exist")
    add("--target-tensor-parallel-size", type=positive, default=1, metavar="N")
    add("--target-pipeline-parallel-size", type=positive, default=1, metavar="N")
    add("--target-expert-parallel-size", type=int, default=1, metavar="1", help="only 1")
    add("--saver-transformer-impl", choices=("transformer_engine", "local"), default="transformer_engine")
    add("--tokenizer-model", type=Path, metavar="DIR", help="Hugging Face directory of the model, with Megatron-LM's rank files")
    add("--tokenizer-dir", type=Path, metavar="DIR", help="the same, for an export; its tokenizer goes along")
    add("--true-vocab-size", type=int, metavar="N", help="tokens without padding, where no directory says so")
    add("--bf16", action="store_true", help="cast to bf16 (default: as in the source)")
    add("--fp16", action="store_true", help="cast to fp16 (default: as in the source)")
    add("--save-dtype", choices=tuple(SAVE_DTYPES), help="of an export (default: as in the checkpoint)")
    add("--workers", type=positive, default=2, help="files that are read and written at a time (default: 2)")
    for flag in ("--model-size", "--checkpoint-type", "--max-queue-size", "--megatron-path"):
        add(flag, help="accepted, without effect")
    add("--no-checking", action="store_true", help="accepted; names and shapes are always checked")
    return parser


if __name__ == "__main__":
    sys.exit(main())
