"""`poro train`: parse, build, call."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_poro.config.duration import RunPoint, parse_point


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `train`; its help lists every key of a run file."""
    parser = commands.add_parser(
        "train",
        add_help=False,
        help="train a run file, resuming where it stands",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train RUN.toml to its end. The same command again resumes from the newest checkpoint. Under torchrun or srun\n"
        "each process is a rank; otherwise the processes that the layout needs are started on this machine.",
    )
    parser.add_argument("-h", "--help", action=_HelpWithReference, help="show this help and every key of a run file")
    parser.add_argument("run_file", metavar="RUN.toml", type=Path, help="the run file; paths in it are relative to its folder")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="values that replace the run file's (TOML)"
    )
    parser.add_argument(
        "--stop-after",
        metavar="POINT",
        type=_point,
        help="save and end once the run has come this far in all: 500 or 500steps, 1e9tokens or 2_000_000tokens",
    )
    parser.set_defaults(run=_run)


class _HelpWithReference(argparse.Action):
    """Print the usual help and the reference of run-file keys, which is rendered only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        from megatron_poro.config.reference import render_reference

        parser.epilog = render_reference()
        parser.print_help()
        parser.exit()


def _point(text: str) -> RunPoint:
    try:
        return parse_point(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(args: argparse.Namespace) -> int:
    from megatron_poro.training import run_training
    from megatron_poro.training.screen import keep_talking

    keep_talking()
    return run_training(args.run_file, args.overrides, stop_after=args.stop_after)
