"""How much of a cluster a launch asks for: nodes, ranks, elements and their time, within the limits that the profile knows."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_poro.config import RunConfig
from megatron_poro.errors import LaunchError
from megatron_poro.observe import read_metrics
from megatron_poro.slurm.profile import Profile

SPARE_ELEMENTS = 2
"""Elements beyond those that the days ask for: failures cost some."""
SHORTEST_LEAD_SECONDS = 60
LEAD_SAVES = 3.0
"""The lead before the time limit, in times of the slowest save that was measured."""
TICK_SECONDS = 60
"""Slurm sends the signal up to this much early, never late (man sbatch)."""
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Request:
    """What `poro launch` was asked for; None and empty mean: as the profile or the run file has it."""

    run_file: Path
    overrides: tuple[str, ...] = ()
    cluster: str = "local"
    nodes: int | None = None
    tasks_per_node: int | None = None
    elements: int | None = None
    days: float | None = None
    minutes: int | None = None
    partition: str = ""
    account: str = ""
    image: str = ""
    mode: str = "array"
    brake: int = 3
    lead_minutes: float | None = None
    sbatch: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Size:
    """What each element gets, and how many there are. `account` and `partition` are empty where Slurm's default holds."""

    name: str
    nodes: int
    tasks_per_node: int
    elements: int
    minutes: int
    lead_seconds: int
    partition: str
    account: str


def plan_size(request: Request, profile: Profile, config: RunConfig) -> Size:
    """The size, checked. Raises LaunchError that names the option."""
    nodes, tasks = _shape(request, profile, config)
    partition = request.partition or profile.partition
    minutes = _minutes(request, profile, partition, nodes)
    directory = Path(config.run_directory)
    return Size(
        name=UNSAFE.sub("_", request.name or directory.name)[:60] or "run",
        nodes=nodes,
        tasks_per_node=tasks,
        elements=_elements(request, minutes),
        minutes=minutes,
        lead_seconds=_lead_seconds(request, profile, directory, limit_seconds=minutes * 60),
        partition=_name_for_slurm("--partition", partition),
        account=_account(request, profile),
    )


def sbatch_options(request: Request, profile: Profile, size: Size) -> tuple[tuple[str, str], ...]:
    """The options of the job, each with what it is for. None of them carries what a user may word freely."""
    if profile.scheduler == "none":
        return ()
    partition = profile.find_partition(size.partition)
    options = [
        (f"--job-name={size.name}", "what squeue shows"),
        (f"--nodes={size.nodes}", "ranks on all of them work on one model"),
        (f"--ntasks-per-node={size.tasks_per_node}", f"one rank for each {profile.device}"),
        (f"--time={_slurm_time(size.minutes)}", "of one element; the run goes on with the next"),
        ("--open-mode=append", "an element that is queued again keeps its log"),
        ("--requeue", "Slurm queues an element again whose node failed"),
    ]
    if request.mode == "array":
        options.append((f"--array=0-{size.elements - 1}%1", "one at a time; when the run is done the spare ones are cancelled"))
    if 0 < size.lead_seconds < size.minutes * 60:
        options.append((f"--signal=B:USR1@{size.lead_seconds}", "seconds before the limit at which the run saves and hands over"))
    if size.partition:
        options.append((f"--partition={size.partition}", (partition.why if partition else "") or "as given"))
    if size.account:
        options.append((f"--account={size.account}", "who pays"))
    return (*options, *((option.option, option.why) for option in profile.sbatch if profile.devices_per_node or not option.devices))


def srun_options_of(profile: Profile, size: Size) -> tuple[tuple[str, str], ...]:
    """The options of the step that trains, each with what it is for."""
    partition = profile.find_partition(size.partition)
    has_whole_nodes = partition is not None and partition.whole_nodes
    return tuple((option.option, option.why) for option in profile.srun if has_whole_nodes or not option.whole_nodes)


def refuse_known_bad(profile: Profile, environment: Mapping[str, str]) -> None:
    """Raise LaunchError when the environment has a setting that is known to go wrong on the cluster."""
    for bad in profile.known_bad:
        value = environment.get(bad.name)
        if value is not None and (not bad.values or value in bad.values):
            raise LaunchError(f"{bad.name}={value} in the environment: {bad.why}; {bad.instead} ({bad.source})")


def plan_command(
    request: Request, profile: Profile, *, cpus: int, memory: str, devices: int
) -> tuple[Size, tuple[tuple[str, str], ...]]:
    """Size and sbatch options of a step that is a command, one process for each share. Raises LaunchError that names the option."""
    partition = request.partition or profile.partition
    known = profile.find_partition(partition)
    minutes = request.minutes or (known.max_minutes if known else 0)
    if not minutes:
        raise LaunchError(f"{request.name}: time: the profile knows no limit of partition {partition or '(default)'}")
    if known and known.max_minutes and minutes > known.max_minutes:
        raise LaunchError(f"{request.name}: time: {minutes} minutes, but partition {partition} allows {known.max_minutes}")
    name, shares = UNSAFE.sub("_", request.name)[:60], request.elements or 1
    size = Size(name, 1, 1, shares, minutes, 0, _name_for_slurm("partition", partition), _account(request, profile))
    options = [
        (f"--job-name={name}", "what squeue shows"),
        ("--ntasks=1", "one process"),
        (f"--cpus-per-task={cpus}", "its cores"),
        (f"--mem={_name_for_slurm('memory', memory)}", "its memory"),
        (f"--time={_slurm_time(minutes)}", "of an element"),
        ("--open-mode=append", "an element that is queued again keeps its log"),
        ("--requeue", "Slurm queues an element again whose node failed"),
    ]
    if shares > 1:
        options.append((f"--array=0-{shares - 1}", "shares of the work, side by side"))
    if devices:
        options.append((f"--gpus={devices}", "its accelerators"))
    if size.partition:
        options.append((f"--partition={size.partition}", (known.why if known else "") or "as given"))
    if size.account:
        options.append((f"--account={size.account}", "who pays"))
    return size, tuple(options)


def parse_minutes(text: str) -> int:
    """Minutes of [D-]HH:MM:SS, rounded up. Raises LaunchError for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if not match:
        raise LaunchError(f"time: {text!r} is not [D-]HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


def _account(request: Request, profile: Profile) -> str:
    account = request.account or os.environ.get("SBATCH_ACCOUNT", "") or profile.account
    if profile.needs_account and not account:
        raise LaunchError(f"--account: {profile.description} refuses jobs without one; give yours, or set SBATCH_ACCOUNT")
    return _name_for_slurm("--account", account)


def _name_for_slurm(option: str, word: str) -> str:
    if UNSAFE.search(word):
        raise LaunchError(f"{option}: {word!r} is no name that Slurm has")
    return word


def _shape(request: Request, profile: Profile, config: RunConfig) -> tuple[int, int]:
    """Nodes and ranks of each."""
    parallel = config.parallel
    model = parallel.tensor * parallel.pipeline * parallel.context
    world = model * parallel.data if parallel.data else 0
    tasks = request.tasks_per_node or profile.devices_per_node
    if not tasks:
        tasks = math.ceil((world or model) / (request.nodes or 1))
    nodes = request.nodes or (math.ceil(world / tasks) if world else int(profile.scheduler == "none"))
    if not nodes:
        raise LaunchError("--nodes: how many? parallel.data is 0 in the run file, which takes as many as there are")
    if min(nodes, tasks) < 1:
        raise LaunchError(f"--nodes {nodes}, --tasks-per-node {tasks}: both must be at least 1")
    return nodes, tasks


def _minutes(request: Request, profile: Profile, partition: str, nodes: int) -> int:
    known = profile.find_partition(partition)
    minutes = request.minutes or (known.max_minutes if known else 0)
    if profile.scheduler == "none":
        return minutes
    if not minutes:
        raise LaunchError(
            f"--time: how long may an element run? The profile knows no limit of partition {partition or '(default)'}"
        )
    if known and known.max_minutes and minutes > known.max_minutes:
        raise LaunchError(
            f"--time: {minutes} minutes, but partition {partition} allows {known.max_minutes}; --elements makes the run longer"
        )
    if known and known.max_nodes and nodes > known.max_nodes:
        raise LaunchError(f"--nodes: {nodes} are more than the {known.max_nodes} of partition {partition}; take another partition")
    if known and profile.devices_per_node and not known.devices:
        raise LaunchError(
            f"--partition: {partition} has no {profile.device}s; take one of "
            f"{', '.join(each.name for each in profile.partitions if each.devices)}"
        )
    return minutes


def _elements(request: Request, minutes: int) -> int:
    if request.elements is not None:
        if request.elements < 1:
            raise LaunchError(f"--elements: {request.elements} is none; give at least 1")
        return request.elements
    if request.days is not None:
        if not minutes:
            raise LaunchError("--days needs --time: how long is an element?")
        return math.ceil(request.days * 1440 / minutes) + SPARE_ELEMENTS
    raise LaunchError("--elements or --days: how long will the run take? What is left over when it is done cancels itself")


def _lead_seconds(request: Request, profile: Profile, directory: Path, *, limit_seconds: int) -> int:
    """How long before the limit the signal is due: time for the step that runs, and for a save as slow as any so far."""
    if request.lead_minutes is not None:
        return round(request.lead_minutes * 60)
    path = directory / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    saves = [record["seconds"] for record in records if record["event"] == "checkpoint" and "seconds" in record]
    steps = [record["seconds"] for record in records if record["event"] == "step"]
    lead = round(profile.signal_lead_minutes * 60)
    if saves:
        lead = max(SHORTEST_LEAD_SECONDS, math.ceil(LEAD_SAVES * max(saves) + 2 * max(steps[-1000:], default=0.0)) + TICK_SECONDS)
    return min(lead, limit_seconds // 3)


def _slurm_time(minutes: int) -> str:
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00"
