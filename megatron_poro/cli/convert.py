"""`poro convert`: Hugging Face <-> Megatron, and proof that two directories are one model."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

DIFFERENT = 1
"""As cmp and diff say it; 2 is a mistake."""
DEFAULT_WORKERS = 2


def add_parser(subparsers: Any) -> None:
    """Add `convert` to the commands; each of its subcommands sets `run`."""
    parser = subparsers.add_parser("convert", help="Hugging Face <-> Megatron checkpoints, with proof")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_to_megatron(commands)
    _add_to_hf(commands)
    _add_verify(commands)


def _add_to_megatron(commands: Any) -> None:
    parser = commands.add_parser("to-megatron", help="Hugging Face directory -> Megatron checkpoint, loadable in any layout")
    parser.add_argument(
        "source", metavar="HF_DIR", type=Path, help="a Llama's config.json and weights, or a Megatron-LM checkpoint"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to create")
    _add_common(parser)
    _add_reference(parser, "what a Megatron-LM checkpoint does not know of its model is taken from here")
    group = parser.add_argument_group("for Megatron-LM")
    group.add_argument(
        "--megatron-lm",
        choices=("torch_dist", "torch"),
        help="write what Megatron-LM's own --load takes: torch_dist for any layout, or torch (a file a rank) for the one below",
    )
    for name in ("tensor", "pipeline", "virtual-stages"):
        group.add_argument(f"--{name}", metavar="N", type=positive, default=1, help=f"{name} size of the ranks (default: 1)")
    group.add_argument(
        "--transformer-impl",
        choices=("transformer_engine", "local"),
        default="transformer_engine",
        help="whose names of the norms, with torch (default: transformer_engine)",
    )
    parser.set_defaults(run=_run_to_megatron)


def _add_to_hf(commands: Any) -> None:
    parser = commands.add_parser("to-hf", help="Megatron checkpoint -> Hugging Face directory")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="of poro, or of Megatron-LM in either of its formats",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to create")
    _add_common(parser)
    _add_reference(parser, "take tokenizer, chat template, generation settings and special token ids from here")
    parser.add_argument(
        "--max-position-embeddings",
        metavar="N",
        type=positive,
        help="longest sequence the export claims, in tokens (default: the source's)",
    )
    parser.set_defaults(run=_run_to_hf)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser("verify", help="compare two model directories, of any format, tensor by tensor")
    parser.add_argument("one", metavar="A", type=Path, help="a model directory")
    parser.add_argument("other", metavar="B", type=Path, help="another; exit code 1 when they differ, in config or weights")
    parser.add_argument("--vocab-size", metavar="N", type=positive, help="tokens without padding, when neither side knows")
    _add_workers(parser)
    parser.set_defaults(run=_run_verify)


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser)
    parser.add_argument(
        "--proof",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read both sides back and compare them tensor by tensor before the result is published (default: on)",
    )

    parser.add_argument(
        "--dtype",
        choices=("keep", "bfloat16", "float16", "float32"),
        default="keep",
        help="number type (default: as in the source)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=positive,
        default=min(DEFAULT_WORKERS, os.cpu_count() or 1),
        help="files that are read and written at a time; a parallel file system wants 8 to 32 (default: %(default)s)",
    )


def _add_reference(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--reference", metavar="HF_DIR", type=Path, help=what)
    parser.add_argument("--vocab-size", metavar="N", type=positive, help="tokens without padding, where no --reference says so")


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _run_to_megatron(args: argparse.Namespace) -> int:
    from megatron_poro.conversion import Like, MegatronLM, to_megatron
    from megatron_poro.errors import ConversionError
    from megatron_poro.topology import Layout

    target = None
    if args.megatron_lm != "torch" and (args.tensor, args.pipeline, args.virtual_stages) != (1, 1, 1):
        raise ConversionError("--tensor, --pipeline and --virtual-stages are for --megatron-lm torch; others have no layout")
    if args.megatron_lm:
        layout = Layout(args.tensor, args.pipeline, 1, args.virtual_stages)
        target = MegatronLM(args.megatron_lm, layout, local=args.transformer_impl == "local")
    proof = to_megatron(
        args.source,
        args.out,
        like=Like(args.reference, args.vocab_size),
        dtype=_dtype(args),
        megatron_lm=target,
        effort=_effort(args),
    )
    return _report(proof, args.out)


def _run_to_hf(args: argparse.Namespace) -> int:
    from megatron_poro.conversion import Like, to_hf

    proof = to_hf(
        args.checkpoint,
        args.out,
        like=Like(args.reference, args.vocab_size),
        dtype=_dtype(args),
        max_position_embeddings=args.max_position_embeddings,
        effort=_effort(args),
    )
    if not any((args.out / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        print(f"{args.out} has no tokenizer; it takes that of --reference, if that folder has one", file=sys.stderr)
    return _report(proof, args.out)


def _run_verify(args: argparse.Namespace) -> int:
    from megatron_poro.conversion import verify

    different = verify(args.one, args.other, vocab_size=args.vocab_size, workers=args.workers)
    print("\n".join(different) if different else f"{args.one} and {args.other} are the same model")
    return DIFFERENT if different else 0


def _dtype(args: argparse.Namespace) -> str | None:
    return None if args.dtype == "keep" else args.dtype


def _effort(args: argparse.Namespace) -> Any:
    from megatron_poro.conversion import Effort

    return Effort(args.workers, args.proof)


def _report(proof: dict[str, Any], out: Path) -> int:
    if proof["proved"]:
        print(f"{out}: {len(proof['tensors'])} tensors read back and equal, weights {proof['source']['weights_sha256'][:16]}")
    else:
        print(f"{out}: written, not proved; `poro convert verify SOURCE {out}` does it later")
    return 0
