"""`poro convert`: Hugging Face <-> Megatron, and proof that two directories are one model."""

import argparse
from pathlib import Path
from typing import Any

DIFFERENT = 2


def add_parser(subparsers: Any) -> None:
    """Add `convert` to the commands; each of its subcommands sets `run`."""
    parser = subparsers.add_parser("convert", help="Hugging Face <-> Megatron checkpoints, with proof")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_to_megatron(commands)
    _add_to_hf(commands)
    _add_verify(commands)


def _add_to_megatron(commands: Any) -> None:
    parser = commands.add_parser("to-megatron", help="Hugging Face directory -> Megatron checkpoint, loadable in any layout")
    parser.add_argument("huggingface", metavar="HF_DIR", type=Path, help="a Llama's config.json and safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to create")
    parser.set_defaults(run=_run_to_megatron)


def _add_to_hf(commands: Any) -> None:
    parser = commands.add_parser("to-hf", help="Megatron checkpoint -> Hugging Face directory")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint directory with model.json")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to create")
    parser.add_argument("--reference", metavar="HF_DIR", type=Path, help="take tokenizer and special token ids from here")
    parser.add_argument(
        "--dtype",
        choices=("keep", "bfloat16", "float32"),
        default="keep",
        help="number type (default: as in the checkpoint)",
    )
    parser.add_argument("--max-position-embeddings", metavar="N", type=int, help="longest sequence the export claims, in tokens")
    parser.set_defaults(run=_run_to_hf)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser("verify", help="compare two model directories, of either format, tensor by tensor")
    parser.add_argument("one", metavar="A", type=Path)
    parser.add_argument("other", metavar="B", type=Path)
    parser.set_defaults(run=_run_verify)


def _run_to_megatron(args: argparse.Namespace) -> int:
    from megatron_poro.conversion import to_megatron

    return _report(to_megatron(args.huggingface, args.out), args.out)


def _run_to_hf(args: argparse.Namespace) -> int:
    from megatron_poro.conversion import to_hf

    proof = to_hf(
        args.checkpoint,
        args.out,
        reference=args.reference,
        dtype=None if args.dtype == "keep" else args.dtype,
        max_position_embeddings=args.max_position_embeddings,
    )
    return _report(proof, args.out)


def _run_verify(args: argparse.Namespace) -> int:
    from megatron_poro.conversion import verify

    different = verify(args.one, args.other)
    print("\n".join(different) if different else f"{args.one} and {args.other} are the same model")
    return DIFFERENT if different else 0


def _report(proof: dict[str, Any], out: Path) -> int:
    print(f"{out}: {len(proof['tensors'])} tensors read back and equal, weights {proof['source']['weights_sha256'][:16]}")
    return 0
