"""`poro train`: parse, build, call."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `train`; its help lists every key of a run file."""
    parser = commands.add_parser(
        "train",
        help="train a run file, resuming where it stands",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train RUN.toml to its end. The same command again resumes from the newest checkpoint. Under torchrun or srun\n"
        "each process is a rank; otherwise the processes that the layout needs are started on this machine.",
    )
    parser.add_argument("run_file", metavar="RUN.toml", type=Path, help="the run file; paths in it are relative to its folder")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="values that replace the run file's (TOML)")
    parser.add_argument("--stop-after", metavar="STEPS", type=int, help="save and end once the run has taken this many steps in all")
    parser.set_defaults(run=_run)
    parser.epilog = _LazyReference()  # type: ignore[assignment]


class _LazyReference(str):
    """The reference of run-file keys, rendered only when the help is printed."""

    __slots__ = ()

    def __mod__(self, values: Any) -> str:
        from megatron_poro.config.reference import render_reference  # noqa: PLC0415

        return render_reference()

    def __bool__(self) -> bool:
        return True


def _run(args: argparse.Namespace) -> int:
    from megatron_poro.training import run_training  # noqa: PLC0415

    return run_training(args.run_file, args.overrides, stop_after=args.stop_after)
