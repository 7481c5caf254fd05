"""`poro demo`: parse, build, call."""

import argparse
from pathlib import Path


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo`."""
    parser = commands.add_parser(
        "demo",
        help="the whole job on this machine, small: text in, continued-pretrained Hugging Face model out",
        description="Tokenize four domains of text, pretrain a tiny Llama on English and code, continue it with Finnish on four "
        "processes (TP2 x PP2), export it and compare. Each command is printed before it runs.",
    )
    corpus = "folder with fi.jsonl, en.jsonl, code.jsonl, math.jsonl, each with a text field (default: built-in text)"
    parser.add_argument("--corpus", metavar="DIR", type=Path, help=corpus)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo-out"), help="new folder for everything (default: demo-out)"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="steps of each of the two trainings (default: 240)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from megatron_poro.demo import DemoOptions, run_demo

    return run_demo(DemoOptions(out=args.out, corpus=args.corpus, steps=args.steps))
