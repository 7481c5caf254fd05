"""How much of a cluster a launch asks for: nodes, ranks, elements and their time, within the limits that the profile knows."""

import math
import os
import re
from collections.abc import Mapping, Sequence
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


NEVER = ("--array", "--wait")
"""What breaks a launch also where its script has no such option: two elements at once, an sbatch that ends with the run."""
OVERRULING = {
    "SBATCH_ARRAY_INX": "--array",
    "SBATCH_WAIT": "--wait",
    "SBATCH_PARTITION": "--partition",
    "SBATCH_TIMELIMIT": "--time",
    "SBATCH_JOB_NAME": "--job-name",
    "SBATCH_OPEN_MODE": "--open-mode",
    "SBATCH_NO_REQUEUE": "--requeue",
    "SBATCH_SIGNAL": "--signal",
    "SBATCH_MEM_PER_NODE": "--mem",
    "SBATCH_MEM_PER_CPU": "--mem",
    "SBATCH_MEM_PER_GPU": "--mem",
    "SBATCH_GPUS": "--gpus",
    "SBATCH_GPUS_PER_NODE": "--gpus-per-node",
    "SBATCH_HINT": "--hint",
}
"""Variables of sbatch, with the option that they overrule (man sbatch, INPUT ENVIRONMENT VARIABLES)."""
FIXED = (
    *("--array", "-a", "--wait", "-W", "--test-only", "--wrap", "--chdir", "-D", "--signal", "--parsable"),
    *("--time", "-t", "--nodes", "-N", "--ntasks-per-node", "--partition", "-p"),
)
"""Options that `--sbatch` must not say again."""


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
    minutes = _minutes(request, profile, partition)
    _check_partition(profile, partition, nodes)
    if request.brake < 1:
        raise LaunchError(f"--brake: {request.brake} would hold the run before it began; give at least 1")
    directory = Path(config.run_directory)
    return Size(
        name=_plain(request.name or directory.name),
        nodes=nodes,
        tasks_per_node=tasks,
        elements=_elements(request, minutes),
        minutes=minutes,
        lead_seconds=_lead_seconds(request, profile, directory, limit_seconds=minutes * 60),
        partition=_name_for_slurm("--partition", partition),
        account=_account(request, profile),
    )


def sbatch_options(request: Request, profile: Profile, size: Size) -> tuple[tuple[str, str], ...]:
    """The options of a run's job, each with what it is for. None of them carries what a user may word freely."""
    if profile.scheduler == "none":
        return ()
    options = [
        *_common_options(profile, size),
        (f"--nodes={size.nodes}", "ranks on all of them work on one model"),
        (f"--ntasks-per-node={size.tasks_per_node}", f"one rank for each {profile.device}"),
    ]
    if request.mode == "array":
        options.append((f"--array=0-{size.elements - 1}%1", "one at a time; when the run is done the spare ones are cancelled"))
    if size.lead_seconds:
        options.append((f"--signal=B:USR1@{size.lead_seconds}", "seconds before the limit at which the run saves and hands over"))
    return (*options, *((option.option, option.why) for option in profile.sbatch if profile.devices_per_node or not option.devices))


def _common_options(profile: Profile, size: Size) -> list[tuple[str, str]]:
    """What every job gets."""
    partition = profile.find_partition(size.partition)
    options = [
        (f"--job-name={size.name}", "what squeue shows"),
        (f"--time={_slurm_time(size.minutes)}", "of an element"),
        ("--open-mode=append", "an element that is queued again keeps its log"),
        ("--requeue", "Slurm queues an element again whose node failed"),
    ]
    if size.partition:
        options.append((f"--partition={size.partition}", (partition.why if partition else "") or "as given"))
    if size.account:
        options.append((f"--account={size.account}", "who pays"))
    return options


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


def refuse_overruling(options: Sequence[tuple[str, str]], words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise LaunchError when a variable (it overrules the script) or a word of --sbatch breaks what a launch relies on."""
    said = {option.partition("=")[0] for option, _ in options}
    for name, option in OVERRULING.items():
        if name in environment and (option in said or option in NEVER):
            raise LaunchError(f"{name}={environment[name]} in the environment overrules {option} of the script; unset it")
    for word in words:
        name = word.partition("=")[0]
        if not word.startswith("-"):
            raise LaunchError(
                f"--sbatch: {word!r} is no option, and sbatch would take it for the script; write --sbatch=--qos=high"
            )
        known = [each for each in FIXED if (each.startswith(name) and len(name) > 3 if name[1:2] == "-" else each == name[:2])]
        if known:
            raise LaunchError(f"--sbatch={word}: {known[0]} is for `poro launch` to say; see `poro launch --help`")


def plan_command(request: Request, profile: Profile) -> Size:
    """The size of a step that is a command, one process for each share. Raises LaunchError that names the option."""
    partition = request.partition or profile.partition
    return Size(
        name=_plain(request.name),
        nodes=1,
        tasks_per_node=1,
        elements=request.elements or 1,
        minutes=_minutes(request, profile, partition),
        lead_seconds=0,
        partition=_name_for_slurm("--partition", partition),
        account=_account(request, profile),
    )


def command_options(profile: Profile, size: Size, *, cpus: int, memory: str, devices: int) -> tuple[tuple[str, str], ...]:
    """The options of the job of a command, each with what it is for."""
    options = [
        *_common_options(profile, size),
        ("--ntasks=1", "one process"),
        (f"--cpus-per-task={cpus}", "its cores"),
        (f"--mem={_name_for_slurm('memory', memory)}", "its memory"),
    ]
    if size.elements > 1:
        options.append((f"--array=0-{size.elements - 1}", "shares of the work, side by side"))
    if devices:
        options.append((f"--gpus={devices}", "its accelerators"))
    return tuple(options)


def parse_minutes(text: str) -> int:
    """Minutes of [D-]HH:MM:SS or MM:SS, rounded up. Raises LaunchError for anything else."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(?=\d+:))?(\d\d?):(\d\d)", text)
    if not match:
        raise LaunchError(f"time: {text!r} is not [D-]HH:MM:SS or MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


def _account(request: Request, profile: Profile) -> str:
    account = request.account or os.environ.get("SBATCH_ACCOUNT", "") or profile.account
    if profile.needs_account and not account:
        raise LaunchError(f"--account: {profile.name} refuses jobs without one; give yours, or set SBATCH_ACCOUNT")
    return _name_for_slurm("--account", account)


def _name_for_slurm(option: str, word: str) -> str:
    if UNSAFE.search(word):
        raise LaunchError(f"{option}: {word!r} is no name that Slurm has")
    return word


def _plain(name: str) -> str:
    return UNSAFE.sub("_", name)[:60] or "run"


def _shape(request: Request, profile: Profile, config: RunConfig) -> tuple[int, int]:
    """Nodes and ranks of each."""
    parallel = config.parallel
    model = parallel.tensor * parallel.pipeline * parallel.context
    world = model * parallel.data
    tasks = _given(request.tasks_per_node, profile.devices_per_node, "--tasks-per-node")
    if not tasks:
        tasks = math.ceil((world or model) / (request.nodes or 1))
    nodes = _given(request.nodes, math.ceil(world / tasks) or int(profile.scheduler == "none"), "--nodes")
    if not nodes:
        raise LaunchError("--nodes: how many? parallel.data is 0 in the run file, which takes as many as there are")
    return nodes, tasks


def _given(value: int | None, otherwise: int, option: str) -> int:
    if value is not None and value < 1:
        raise LaunchError(f"{option}: {value} is none; give at least 1")
    return otherwise if value is None else value


def _minutes(request: Request, profile: Profile, partition: str) -> int:
    """The time limit of an element."""
    known = profile.find_partition(partition)
    longest = known.max_minutes if known else 0
    minutes = _given(request.minutes, longest, "--time")
    if not minutes and profile.scheduler != "none":
        names = ", ".join(each.name for each in profile.partitions) or "none"
        raise LaunchError(
            f"--time: how long may an element run? {profile.name} knows no limit of partition {partition or '(default)'}; "
            f"partitions that it knows: {names}"
        )
    if longest and minutes > longest:
        raise LaunchError(
            f"--time: {minutes} minutes, but partition {partition} allows {longest}; more elements make the work longer"
        )
    return minutes


def _check_partition(profile: Profile, partition: str, nodes: int) -> None:
    """Raise LaunchError when a run does not fit the partition."""
    known = profile.find_partition(partition)
    if known and known.max_nodes and nodes > known.max_nodes:
        raise LaunchError(f"--nodes: {nodes} are more than the {known.max_nodes} of partition {partition}; take another partition")
    if known and profile.devices_per_node and not known.devices:
        raise LaunchError(
            f"--partition: {partition} has no {profile.device}s; take one of "
            f"{', '.join(each.name for each in profile.partitions if each.devices)}"
        )


def _elements(request: Request, minutes: int) -> int:
    if request.days is None:
        if request.elements is None:
            raise LaunchError("--elements or --days: how long will the run take? What is left over when it is done cancels itself")
        return _given(request.elements, 0, "--elements")
    if not (minutes and request.days > 0):
        raise LaunchError(f"--days: {request.days:g} days in elements of {minutes} minutes are none; give days above 0, and --time")
    return math.ceil(request.days * 1440 / minutes) + SPARE_ELEMENTS


def _lead_seconds(request: Request, profile: Profile, directory: Path, *, limit_seconds: int) -> int:
    """How long before the limit the signal is due: time for the step that runs, and for a save as slow as any so far."""
    if request.lead_minutes is not None:
        if not 0 < request.lead_minutes * 60 < limit_seconds:
            raise LaunchError(f"--lead: {request.lead_minutes:g} minutes are not within the {limit_seconds / 60:g} of an element")
        return round(request.lead_minutes * 60)
    records = read_metrics(directory / "metrics.jsonl")
    saves = [record["seconds"] for record in records if record["event"] == "checkpoint" and "seconds" in record]
    steps = [record["seconds"] for record in records if record["event"] == "step"]
    lead = round(profile.signal_lead_minutes * 60)
    if saves:
        lead = max(SHORTEST_LEAD_SECONDS, math.ceil(LEAD_SAVES * max(saves) + 2 * max(steps[-1000:], default=0.0)) + TICK_SECONDS)
    return min(lead, limit_seconds // 3)


def _slurm_time(minutes: int) -> str:
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00"
