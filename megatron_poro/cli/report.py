"""`poro report` and `poro compare`: parse, build, call."""

import argparse
import json
import math
from decimal import Decimal, InvalidOperation
from pathlib import Path

from megatron_poro.cli.paths import run_directory_of


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `report` and `compare`."""
    report = commands.add_parser("report", help="a run on one page of HTML, or several over each other; opens without a network")
    report.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run directories or run files; several are drawn over each other"
    )
    report.add_argument("-o", "--output", metavar="FILE", type=Path, default=Path("report.html"), help="default: report.html")
    report.add_argument("--hash", action="store_true", help="compare the hashes of every checkpoint, which reads all of them")
    report.set_defaults(run=_report)
    compare = commands.add_parser(
        "compare", help="two runs: what their run files say differently, and their losses at equal tokens"
    )
    compare.add_argument("a", metavar="A", type=Path, help="a run directory or run file")
    compare.add_argument("b", metavar="B", type=Path, help="another; differences are B - A")
    compare.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    points = "compare at these numbers of tokens, such as 1e9 (default: 6 that both runs have)"
    compare.add_argument("--at", metavar="TOKENS", nargs="+", type=_tokens, default=[], help=points)
    compare.set_defaults(run=_compare)


def _tokens(text: str) -> int:
    try:
        amount = Decimal(text.replace("_", ""))
        if amount != amount.to_integral_value():
            raise ValueError(text)
        return int(amount)
    except (InvalidOperation, ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write 1000000 or 1e9") from None


def _report(args: argparse.Namespace) -> int:
    from megatron_poro.report.page import write_report
    from megatron_poro.report.proofs import READ_BYTES

    write_report([run_directory_of(run) for run in args.runs], args.output, read_bytes=math.inf if args.hash else READ_BYTES)
    print(f"wrote {args.output}, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from megatron_poro.report.compare import compare_runs

    comparison = compare_runs(run_directory_of(args.a), run_directory_of(args.b), args.at)
    print(json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False) if args.json else comparison.as_table())
    return 0
