"""`poro check`: what would go wrong with a run, before it costs anything."""

import argparse
import sys
from pathlib import Path

from megatron_poro.errors import USER_ERROR_CODE, LaunchError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `check`."""
    parser = commands.add_parser(
        "check",
        help="look at a run before it starts: files, layout, checkpoints, disk, job script, environment",
        description="Green, yellow and red lines by subject; each yellow and red one names the key, the numbers and the way out.\n"
        "Exit code 0, or 2 when anything is red. Runs on a login node; `--node` runs on an allocated one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_file", metavar="RUN.toml", type=Path, help="the run file that is launched")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="values that replace the run file's (TOML)"
    )
    parser.add_argument("--cluster", default="", help="profile: lumi, generic-nvidia, local, test, or a .toml file of your own")
    parser.add_argument("--nodes", type=_count, help="nodes that the run will have; by default what script or run file say")
    parser.add_argument("--script", metavar="JOB.sh", type=Path, help="the job script; by default that of the run's last launch")
    parser.add_argument("--hash", action="store_true", help="read every token file and checkpoint and compare all hashes")
    parser.add_argument("--strict", action="store_true", help="exit code 2 for yellow lines too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--node", action="store_true", help="look at this node instead: devices, rates, links, disks")
    parser.set_defaults(run=_check)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give at least 1")
    return number


def _check(args: argparse.Namespace) -> int:
    from megatron_poro.preflight.check import Question, check_run
    from megatron_poro.preflight.findings import GREEN, RED, render, render_json, worst
    from megatron_poro.preflight.node import check_node, exclude_line
    from megatron_poro.slurm.pipeline import is_pipeline

    if is_pipeline(args.run_file):
        raise LaunchError(f"{args.run_file}: a recipe of steps; check the run file of each step that trains")
    question = Question(args.run_file, tuple(args.overrides), args.cluster, args.nodes, args.script, args.hash)
    findings = check_node(question) if args.node else check_run(question)
    print(render_json(findings) if args.json else render(findings, coloured=sys.stdout.isatty()))
    if args.node and not args.json and (line := exclude_line(findings)):
        print(line)
    refused = worst(findings) == RED or (args.strict and worst(findings) != GREEN)
    return USER_ERROR_CODE if refused else 0
