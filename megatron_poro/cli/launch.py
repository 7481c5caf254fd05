"""`poro launch`, `status`, `stop`, `cancel`, and `element`, which job scripts call: parse, build, call."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_poro.cli.paths import run_directory_of
from megatron_poro.errors import USER_ERROR_CODE, USER_ERRORS, LaunchError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    _add_launch(commands)
    status = commands.add_parser("status", help="show where launched runs stand")
    status.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories or run files; several give a line each")
    status.add_argument("--short", action="store_true", help="a line for each run, also for one")
    status.add_argument("--json", action="store_true", help="one JSON object, or a list of them for several runs")
    status.set_defaults(run=_status)
    for name, what in (
        ("stop", "save, end, and cancel the elements that wait"),
        ("cancel", "end all elements at once; nothing is saved"),
    ):
        parser = commands.add_parser(name, help=what)
        parser.add_argument("run_path", metavar="RUN", type=Path, help="run directory, run file or recipe")
        parser.set_defaults(run=_stop if name == "stop" else _cancel)
    _add_element(commands)


def _add_launch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "launch",
        help="submit a run as a Slurm job array that finishes it",
        description="Render the job script of RUN.toml for a cluster, keep it in the run directory and submit it as a job array,\n"
        "one element at a time. Each goes on from the newest checkpoint that verifies.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_file", metavar="RUN.toml", type=Path, help="the run file; with --pipeline, the recipe of steps")
    parser.add_argument("--pipeline", action="store_true", help="the file is a recipe of steps (docs/slurm.md)")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="values that replace the run file's (TOML)"
    )
    parser.add_argument("--cluster", help="profile: lumi, generic-nvidia, local, test, or a .toml file of your own")
    parser.add_argument("--nodes", type=int, help="nodes of an element; by default what parallel.data asks for")
    parser.add_argument("--tasks-per-node", type=int, help="ranks of a node; by default its devices")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--elements", type=int, help="elements of the array")
    length.add_argument(
        "--days", type=float, help="days of training, from which the elements follow, with two to spare; by default `poro plan`'s"
    )
    parser.add_argument(
        "--time", metavar="[D-]HH:MM:SS", type=_minutes, help="time limit of an element; by default the partition's"
    )
    parser.add_argument("--partition", default="", help="by default the profile's")
    parser.add_argument("--account", default="", help="by default SBATCH_ACCOUNT, or the profile's")
    parser.add_argument("--container", metavar="IMAGE", default="", help="image to train in")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--chain",
        action="store_const",
        dest="mode",
        const="chain",
        help="jobs that depend on each other, where arrays are not allowed",
    )
    mode.add_argument("--requeue", action="store_const", dest="mode", const="requeue", help="one job that queues itself again")
    parser.add_argument(
        "--brake",
        metavar="K",
        type=int,
        default=3,
        help="elements in a row without a new checkpoint after which the rest is held (3)",
    )
    parser.add_argument(
        "--lead", metavar="[HH:]MM:SS", type=_lead, help="how long before the limit to save; by default from the measured saves"
    )
    parser.add_argument("--name", default="", help="job name; by default the run directory's")
    parser.add_argument(
        "--sbatch",
        metavar="OPTION",
        action="append",
        default=[],
        help="a further option of sbatch, as --sbatch=--qos=high; may be repeated",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the script, what every option is for, and the sbatch line; submit nothing"
    )
    parser.set_defaults(run=_launch, mode="array")


def _add_element(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("element", help="what job scripts call; not for people")
    parts = parser.add_subparsers(required=True, metavar="PART")
    for name in ("begin", "measure", "nodes", "end", "ready", "finish"):
        part = parts.add_parser(name)
        part.add_argument("folder", type=Path)
        if name in ("ready", "finish"):
            part.add_argument("index", type=int)
        if name in ("measure", "nodes"):
            part.add_argument("measured", type=Path)
        if name in ("end", "finish"):
            part.add_argument("code", type=int)
        part.set_defaults(run=_element, part=name)


def _minutes(text: str) -> int:
    from megatron_poro.slurm.size import parse_minutes

    try:
        return parse_minutes(text)
    except LaunchError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _lead(text: str) -> float:
    match = re.fullmatch(r"(?:(\d+):)?(\d+):(\d\d)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not [HH:]MM:SS")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 60 + minutes + seconds / 60


def _launch(args: argparse.Namespace) -> int:
    from megatron_poro.slurm.launch import explain, prepare, run_here, submit
    from megatron_poro.slurm.pipeline import is_pipeline, launch_pipeline
    from megatron_poro.slurm.records import count
    from megatron_poro.slurm.size import Request

    if args.pipeline:
        if args.overrides or args.cluster:
            raise LaunchError("--pipeline: the recipe says where and with which values; change it there")
        print("\n".join(launch_pipeline(args.run_file, dry_run=args.dry_run)))
        return 0
    if is_pipeline(args.run_file):
        raise LaunchError(f"{args.run_file}: a recipe of steps; add --pipeline")
    if args.cluster is None:
        raise LaunchError("--cluster: where? lumi, generic-nvidia, local, test, or a .toml file of your own")
    days = _planned_days(args) if args.days is None and args.elements is None else args.days
    prepared = prepare(
        Request(
            run_file=args.run_file,
            overrides=tuple(args.overrides),
            cluster=args.cluster,
            nodes=args.nodes,
            tasks_per_node=args.tasks_per_node,
            elements=args.elements,
            days=days,
            minutes=args.time,
            partition=args.partition,
            account=args.account,
            image=args.container,
            mode=args.mode,
            brake=args.brake,
            lead_minutes=args.lead,
            sbatch=tuple(args.sbatch),
            name=args.name,
        ),
        dry_run=args.dry_run,
    )
    if args.dry_run:
        print(explain(prepared))
        return 0
    job = submit(prepared)
    if job.mode == "local":
        return run_here(job)
    what = f"{count(job.elements, 'element')} on {count(job.nodes, 'node')}"
    print(f"submitted {', '.join(job.ids)}: {what}; `poro status {job.directory}` shows them")
    return 0


def _planned_days(args: argparse.Namespace) -> float | None:
    """What `poro plan` says, for a cluster that it knows the rates of."""
    from megatron_poro.planning.answer import Options, find, question_of
    from megatron_poro.slurm.profile import load_profile

    if load_profile(args.cluster).hardware is None:
        return None
    question = question_of(args.run_file, args.overrides, model="", tokens="")
    days = find(question, Options(cluster=args.cluster, nodes=args.nodes)).plan.days
    print(f"{days:.1f} days by `poro plan`; --days or --elements would say otherwise", file=sys.stderr)
    return days


def _status(args: argparse.Namespace) -> int:
    from megatron_poro.slurm.pipeline import is_pipeline, pipeline_status, render_pipeline
    from megatron_poro.slurm.status import read_status, render, render_line

    if len(args.runs) == 1 and not args.short:
        if is_pipeline(args.runs[0]):
            print(json.dumps(pipeline_status(args.runs[0]), indent=1) if args.json else render_pipeline(args.runs[0]))
        else:
            status = read_status(run_directory_of(args.runs[0]))
            print(json.dumps(status.as_dict(), indent=1) if args.json else render(status))
        return 0
    found, code = [], 0
    for path in args.runs:
        try:
            if is_pipeline(path):
                raise LaunchError(f"{path}: a recipe of steps; `poro status {path}` alone shows them")
            found.append(read_status(run_directory_of(path)))
        except USER_ERRORS as error:  # the others are still wanted
            print(f"error: {error}", file=sys.stderr)
            code = USER_ERROR_CODE
    print(json.dumps([status.as_dict() for status in found], indent=1) if args.json else "\n".join(map(render_line, found)))
    return code


def _stop(args: argparse.Namespace) -> int:
    from megatron_poro.slurm.control import stop

    return _for_each(args.run_path, stop)


def _cancel(args: argparse.Namespace) -> int:
    from megatron_poro.slurm.control import cancel

    return _for_each(args.run_path, cancel)


def _for_each(path: Path, work: Callable[[Path], str]) -> int:
    """Do it to a run, or to every step of a recipe that was launched."""
    from megatron_poro.slurm.pipeline import is_pipeline, launched_directories

    if not is_pipeline(path):
        print(work(run_directory_of(path)))
        return 0
    for directory in launched_directories(path):
        print(f"{directory}: {work(directory)}")
    return 0


def _element(args: argparse.Namespace) -> int:
    from megatron_poro.slurm import element

    if args.part == "begin":
        return element.begin(args.folder)
    if args.part == "measure":
        from megatron_poro.slurm.nodes import measure
        from megatron_poro.slurm.profile import load_profile

        measure(args.measured, load_profile(element.open_element(args.folder).cluster))
        return 0
    if args.part == "nodes":
        return element.check_nodes(args.folder, args.measured)
    if args.part == "ready":
        return element.ready(args.folder, args.index)
    if args.part == "finish":
        return element.finish(args.folder, args.index, args.code)
    return element.end(args.folder, args.code)
