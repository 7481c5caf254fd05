"""A recipe of steps that follow each other: tokenising, conversion, training, whatever `poro` does, each a Slurm job or array.

    directory = "recipe"                    # notes, scripts and logs of the steps
    cluster = "lumi"

    [[steps]]
    name = "tokenize"
    command = ["data", "tokenize", "text/fi", "--output", "tokens/{index}", "--shard", "{index}/{count}", ...]
    shares = 64                             # elements side by side; {index} and {count} are theirs
    partition = "small"
    cpus = 16
    memory = "16G"
    time = "4:00:00"

    [[steps]]
    name = "train"
    run = "poro2-70b.toml"                  # as `poro launch` submits it
    nodes = 128
    days = 20.0
    after = ["tokenize"]

Each step waits in the queue for those it comes after, and looks whether they are done before it begins. Launched again, steps that
are done or in the queue are left alone.
"""

import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_poro.config import load_run
from megatron_poro.config.parse import Problems, build
from megatron_poro.config.schema import setting
from megatron_poro.errors import ConfigError, LaunchError
from megatron_poro.slurm.commands import call, queued
from megatron_poro.slurm.history import hold_reason
from megatron_poro.slurm.launch import keep_script, prepare, submit
from megatron_poro.slurm.profile import NAMES, load_profile
from megatron_poro.slurm.records import Job, load_job, note, read_notes, save_job
from megatron_poro.slurm.script import CommandPlan, render_command
from megatron_poro.slurm.size import Request, command_options, parse_minutes, plan_command
from megatron_poro.training.start import find_finished


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step: a `command` of poro, or a `run`."""

    name: str = setting("in messages, and the folder of its notes")
    command: tuple[str, ...] = setting("words of `poro`; {index} and {count} are the share's", default=())
    run: str = setting("run file to train", default="")
    after: tuple[str, ...] = setting("steps that must be done before", default=())
    shares: int = setting("elements of a command that run side by side", default=1)
    partition: str = setting("by default the profile's", default="")
    time: str = setting("[D-]HH:MM:SS of an element; by default the partition's", default="")
    cpus: int = setting("cores of a command's process", default=1)
    memory: str = setting("memory of a command's process, as sbatch takes it", default="4G")
    devices: int = setting("accelerators of a command's process", default=0)
    nodes: int = setting("nodes of a run; 0 means what its layout asks for", default=0)
    tasks_per_node: int = setting("ranks of a node of a run; 0 means its devices", default=0)
    elements: int = setting("elements of a run; 0 when `days` says how many", default=0)
    days: float = setting("days of a run, instead", default=0.0)
    attempts: int = setting("tries of a share, or elements of a run without a new checkpoint, before it is given up", default=3)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A recipe. Paths are relative to its file, also in commands, which run there."""

    directory: str = setting("where notes, scripts and logs of the steps lie")
    cluster: str = setting("profile, or a .toml file of your own")
    account: str = setting("who pays", default="")
    steps: tuple[Step, ...] = setting("the steps, one [[steps]] table each")


def is_pipeline(path: Path) -> bool:
    """Whether a file is a recipe of steps, and not a run file."""
    try:
        return "steps" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_pipeline(path: Path) -> Pipeline:
    """The recipe, checked. Raises ConfigError with one line per problem."""
    problems = Problems()
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    pipeline: Pipeline | None = build(Pipeline, plain, "", problems)
    if pipeline is not None:
        problems.extend(_find_problems(pipeline))
    if pipeline is None or problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    folder = path.resolve().parent
    cluster = pipeline.cluster if pipeline.cluster in NAMES else str(folder / pipeline.cluster)
    steps = tuple(replace(step, run=str(folder / step.run) if step.run else "") for step in pipeline.steps)
    return replace(pipeline, directory=str(folder / pipeline.directory), cluster=cluster, steps=steps)


def _find_problems(pipeline: Pipeline) -> Iterator[str]:
    seen: list[str] = []
    for n, step in enumerate(pipeline.steps):
        key = f"steps[{n}]"
        if step.name in seen or not step.name or Path(step.name).name != step.name:
            yield f"{key}.name: {step.name!r} must be a plain name of its own"
        if bool(step.command) == bool(step.run):
            yield f"{key}: give either `command` or `run`"
        for name in step.after:
            if name not in seen:
                yield f"{key}.after: {name!r} is no earlier step; there are {', '.join(seen) or 'none'}"
        if step.shares < 1 or step.attempts < 1 or step.cpus < 1:
            yield f"{key}: shares, attempts and cpus must be at least 1"
        seen.append(step.name)


def launch_pipeline(path: Path, *, dry_run: bool) -> list[str]:
    """Submit what is neither done nor in the queue; returns what was done about each step, in words."""
    if path.exists() and not is_pipeline(path):
        raise LaunchError(f"{path}: no recipe, for it has no [[steps]]; a run file is launched without --pipeline")
    pipeline = load_pipeline(path)
    said = []
    for step in pipeline.steps:
        state, _ = step_state(pipeline, step)
        if state in ("done", "running", "waiting", "held"):
            said.append(f"{step.name}: {state}")
            continue
        if dry_run:
            said.append(_dry(pipeline, step, path))
            continue
        job = _submit(pipeline, step, path)
        said.append(f"{step.name}: submitted {', '.join(job.ids)}")
    return said


def step_state(pipeline: Pipeline, step: Step) -> tuple[str, str]:
    """State of a step (done, running, waiting, held, failed, not launched) and what there is to say of it."""
    directory = directory_of(pipeline, step)
    job, notes = load_job(directory), read_notes(directory)
    shares = {record["index"] for record in notes if record["event"] == "done"}
    is_done = find_finished(load_run(Path(step.run))) is not None if step.run else len(shares) >= step.shares
    if is_done or job is None:
        return ("done", "") if is_done else ("not launched", "")
    there = queued(job.ids)
    if any(each.is_running for each in there):
        return "running", f"{len(shares)} of {step.shares} shares done" if step.shares > 1 else ""
    if reason := hold_reason(notes):
        return "held", reason
    if there:
        return "waiting", "; ".join(sorted({each.reason for each in there}))
    failures = [record for record in notes if record["event"] in ("end", "blocked")]
    return "failed", str(failures[-1].get("reason") or f"exit code {failures[-1]['code']}") if failures else ""


def directory_of(pipeline: Pipeline, step: Step) -> Path:
    """Where what belongs to a step lies: a run's own directory, or a folder of the recipe."""
    return Path(load_run(Path(step.run)).run_directory) if step.run else Path(pipeline.directory) / step.name


def render_pipeline(path: Path) -> str:
    """A line for each step."""
    pipeline = load_pipeline(path)
    width = max(len(step.name) for step in pipeline.steps)
    lines = []
    for step in pipeline.steps:
        state, detail = step_state(pipeline, step)
        lines.append(f"{step.name:<{width}}  {state:<12}  {detail}".rstrip())
    return "\n".join(lines)


def _submit(pipeline: Pipeline, step: Step, path: Path) -> Job:
    after = [each for each in pipeline.steps if each.name in step.after]
    waits_for = [name for each in after if (job := load_job(directory_of(pipeline, each))) for name in job.ids]
    live = sorted({each.job.partition("_")[0] for each in queued(waits_for)})
    words = (f"--dependency=afterany:{':'.join(live)}",) if live else ()
    directories = tuple(str(directory_of(pipeline, each)) for each in after)
    if step.run:
        return submit(prepare(_request(pipeline, step, words), after=directories))
    plan, job = _command(pipeline, step, path)
    job = replace(job, after=directories)
    keep_script(job, render_command(plan))
    save_job(job)
    ids = call(*_words(job, step), *words, job.script).strip().partition(";")[0]
    job = replace(job, ids=(ids,))
    save_job(job)
    note(Path(job.directory), "launch", ids=[ids])
    return job


def _dry(pipeline: Pipeline, step: Step, path: Path) -> str:
    if step.run:
        return f"# {step.name}\n{prepare(_request(pipeline, step, ()), after=()).text}"
    plan, _ = _command(pipeline, step, path)
    return f"# {step.name}\n{render_command(plan)}"


def _request(pipeline: Pipeline, step: Step, words: tuple[str, ...]) -> Request:
    return Request(
        run_file=Path(step.run),
        cluster=pipeline.cluster,
        nodes=step.nodes or None,
        tasks_per_node=step.tasks_per_node or None,
        elements=step.elements or None,
        days=step.days or None,
        minutes=parse_minutes(step.time) if step.time else None,
        partition=step.partition,
        account=pipeline.account,
        brake=step.attempts,
        sbatch=words,
        name=step.name,
    )


def _command(pipeline: Pipeline, step: Step, path: Path) -> tuple[CommandPlan, Job]:
    """Script and record of a step that is a command."""
    profile = load_profile(pipeline.cluster)
    directory = Path(pipeline.directory) / step.name
    size = plan_command(replace(_request(pipeline, step, ()), elements=step.shares), profile)
    options = command_options(profile, size, cpus=step.cpus, memory=step.memory, devices=step.devices)
    plan = CommandPlan(profile, str(directory), str(path.resolve().parent), sys.executable, options, step.command, step.shares)
    job = Job(
        name=size.name,
        directory=str(directory),
        run_file="",
        cluster=pipeline.cluster,
        mode="command",
        ids=(),
        elements=step.shares,
        nodes=1,
        tasks_per_node=1,
        partition=size.partition,
        brake=step.attempts,
        time=time.time(),
        script=str(directory / "slurm" / "job.sh"),
    )
    return plan, job


def _words(job: Job, step: Step) -> tuple[str, ...]:
    log = "--output=%x-%A_%a.log" if step.shares > 1 else "--output=%x-%j.log"
    return ("sbatch", "--parsable", f"--chdir={job.folder / 'logs'}", log)
