"""`poro doctor`: what is there on this machine, and what is missing for what."""

import argparse


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="say what is installed here, and what is missing for what")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from megatron_poro.doctor import diagnose, render, render_json

    findings = diagnose()
    print(render_json(findings) if args.json else render(findings))
    return 2 if any(finding.is_fatal for finding in findings) else 0
