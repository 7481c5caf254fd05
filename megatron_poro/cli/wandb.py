"""`poro wandb-sync` and `poro dashboard`: parse, build, call."""

import argparse
from pathlib import Path

from megatron_poro.cli.paths import run_directory_of


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    sync = commands.add_parser(
        "wandb-sync",
        help="upload what a run wrote offline to wandb",
        description="Upload what wandb lacks of a run, as one wandb run, each step once. May be repeated, interrupted, and called\n"
        "while the run goes on; from a machine that reaches the server, such as a login node.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sync.add_argument("run_path", metavar="RUN", type=Path, help="run directory or run file")
    sync.add_argument("--watch", metavar="SECONDS", type=float, help="again after so many seconds, until the run is done")
    sync.set_defaults(run=_sync)
    dashboard = commands.add_parser("dashboard", help="write the wandb workspace of a run's project")
    dashboard.add_argument("run_path", metavar="RUN", type=Path, help="run file or run directory")
    dashboard.add_argument("--dry-run", action="store_true", help="print it as JSON; needs neither network nor key")
    dashboard.set_defaults(run=_dashboard)


def _sync(args: argparse.Namespace) -> int:
    from megatron_poro.observe.wandb_sync import sync_run, watch_run

    directory = run_directory_of(args.run_path)
    if args.watch is None:
        print(sync_run(directory)[0])
    else:
        watch_run(directory, args.watch)
    return 0


def _dashboard(args: argparse.Namespace) -> int:
    from megatron_poro.observe.dashboard import render_dashboard, save_dashboard

    path = args.run_path / "config.toml" if args.run_path.is_dir() else args.run_path
    print(render_dashboard(path) if args.dry_run else save_dashboard(path))
    return 0
