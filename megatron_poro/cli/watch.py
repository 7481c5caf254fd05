"""`poro goodput` and `poro watch`: parse, build, call."""

import argparse
import json
from pathlib import Path

from megatron_poro.cli.paths import run_directory_of
from megatron_poro.errors import ConfigError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    goodput = commands.add_parser(
        "goodput",
        help="show where a run's hours went",
        description="Every second of a run's starts and of its time in the queue in one of nine categories, with GPU-hours.",
    )
    goodput.add_argument("run_path", metavar="RUN", type=Path, help="run directory or run file")
    goodput.add_argument("--json", action="store_true", help="one JSON object, with every start")
    goodput.set_defaults(run=_goodput)
    watch = commands.add_parser("watch", help="show a run live in the terminal: curve, rates, time left, ranks behind, last events")
    watch.add_argument("run_path", metavar="RUN", type=Path, help="run directory or run file")
    watch.add_argument("--every", metavar="SECONDS", type=float, default=5.0, help="seconds between looks (5)")
    watch.add_argument("--once", action="store_true", help="one screen, then end; so does a pipe")
    watch.set_defaults(run=_watch)


def _goodput(args: argparse.Namespace) -> int:
    from megatron_poro.report.goodput import account, render

    goodput = account(run_directory_of(args.run_path))
    print(json.dumps(goodput.as_dict(), indent=1) if args.json else render(goodput))
    return 0


def _watch(args: argparse.Namespace) -> int:
    from megatron_poro.report.watch import watch

    if not args.every > 0:
        raise ConfigError([f"--every: {args.every:g} seconds are none; give at least 1"])
    watch(run_directory_of(args.run_path), every_seconds=args.every, once=args.once)
    return 0
