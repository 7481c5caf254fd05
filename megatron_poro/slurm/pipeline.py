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

import os
import shlex
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_poro.config import load_run
from megatron_poro.config.parse import Problems, build
from megatron_poro.config.schema import setting
from megatron_poro.errors import ConfigError, LaunchError
from megatron_poro.observe import Record
from megatron_poro.slurm.commands import queued
from megatron_poro.slurm.history import done_shares, hold_reason
from megatron_poro.slurm.launch import keep_script, prepare, save_submitted, submit
from megatron_poro.slurm.profile import NAMES, load_profile
from megatron_poro.slurm.queue import with_ids
from megatron_poro.slurm.records import Job, load_job, read_notes, save_job
from megatron_poro.slurm.script import CommandPlan, render_command
from megatron_poro.slurm.size import Request, command_options, parse_minutes, plan_command, refuse_overruling
from megatron_poro.slurm.submission import submit_script
from megatron_poro.training.lock import hold_lock
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
        if step.name in seen or step.name in ("", "..") or Path(step.name).name != step.name:
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
    planned = list(_launch_steps(pipeline, path, dry_run=True))  # a mistake in a later step is told before the first is submitted
    if dry_run:
        return planned
    folder = Path(pipeline.directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"{folder}: {error.strerror}; nothing was submitted") from None
    with hold_lock(folder / "lock", f"{folder}: another `poro launch --pipeline` submits its steps right now"):
        _claim(folder / "recipe", path.name)
        return list(_launch_steps(pipeline, path, dry_run=False))


def _claim(file: Path, name: str) -> None:
    """Keep the name of the recipe that the folder belongs to: of another one, steps of the same names would pass for done."""
    owner = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if owner and owner != name:
        raise LaunchError(
            f"{file.parent} belongs to {owner}; give {name} a `directory` of its own, or remove {file} if it was renamed"
        )
    if not owner:
        file.write_text(name + "\n", encoding="utf-8")


def _launch_steps(pipeline: Pipeline, path: Path, *, dry_run: bool) -> Iterator[str]:
    for step in pipeline.steps:
        state, detail = step_state(pipeline, step)
        if state in ("done", "running", "waiting", "held"):
            yield f"{step.name}: {state}" + (f", {detail}" if state == "done" and detail else "")
        elif dry_run:
            yield _dry(pipeline, step, path)
        else:
            yield f"{step.name}: submitted {', '.join(_submit(pipeline, step, path).ids)}"


def step_state(pipeline: Pipeline, step: Step) -> tuple[str, str]:
    """State of a step (done, running, waiting, held, failed, not launched) and what there is to say of it."""
    directory = directory_of(pipeline, step)
    job, notes = load_job(directory), read_notes(directory)
    shares = done_shares(notes, step.shares)
    is_done = find_finished(load_run(Path(step.run))) is not None if step.run else len(shares) >= step.shares
    if is_done:
        return "done", _changed(step, notes)
    if job is None:
        return "not launched", ""
    there = queued(with_ids(job).ids)
    if any(each.is_running for each in there):
        return "running", f"{len(shares)} of {step.shares} shares done" if step.shares > 1 else ""
    if reason := hold_reason(notes):
        return "held", reason
    if there:
        return "waiting", "; ".join(sorted({each.reason for each in there}))
    return "failed", _why_failed(notes, job)


def _changed(step: Step, notes: Sequence[Record]) -> str:
    """What there is to say of a command that is done when the recipe has another one by now."""
    launches = [record["command"] for record in notes if record["event"] == "launch" and "command" in record]
    if step.run or not launches or launches[-1] == list(step.command):
        return ""
    return "by another command than the recipe has now; under another name it is done anew"


def _why_failed(notes: Sequence[Record], job: Job) -> str:
    told = [record for record in notes if record["event"] in ("launch", "begin", "end", "blocked")][-1:]
    if told and told[0]["event"] in ("end", "blocked"):
        return str(told[0].get("reason") or f"exit code {told[0]['code']}; see {job.folder / 'logs'}")
    return f"ended without saying why: cancelled, over its time or its memory; see {job.folder / 'logs'}" if told else ""


def directory_of(pipeline: Pipeline, step: Step) -> Path:
    """Where what belongs to a step lies: a run's own directory, or a folder of the recipe."""
    return Path(load_run(Path(step.run)).run_directory) if step.run else Path(pipeline.directory) / step.name


def pipeline_status(path: Path) -> list[dict[str, str]]:
    """Name, state and what there is to say of each step."""
    pipeline = load_pipeline(path)
    found = [(step, *step_state(pipeline, step)) for step in pipeline.steps]
    return [
        {"step": step.name, "state": state, "detail": detail, "directory": str(directory_of(pipeline, step))}
        for step, state, detail in found
    ]


def render_pipeline(path: Path) -> str:
    """A line for each step."""
    told = pipeline_status(path)
    width = max(len(step["step"]) for step in told)
    return "\n".join(f"{step['step']:<{width}}  {step['state']:<12}  {step['detail']}".rstrip() for step in told)


def launched_directories(path: Path) -> list[Path]:
    """The directories of the steps that were launched, last step first: so none starts for want of the one before it."""
    pipeline = load_pipeline(path)
    directories = [directory_of(pipeline, step) for step in reversed(pipeline.steps)]
    return [directory for directory in directories if load_job(directory) is not None]


def _submit(pipeline: Pipeline, step: Step, path: Path) -> Job:
    after = [each for each in pipeline.steps if each.name in step.after and step_state(pipeline, each)[0] != "done"]
    waits_for = [name for each in after if (job := load_job(directory_of(pipeline, each))) for name in with_ids(job).ids]
    live = sorted({each.job.partition("_")[0] for each in queued(waits_for)})
    words = (f"--dependency=afterany:{':'.join(live)}",) if live else ()
    directories = tuple(str(directory_of(pipeline, each)) for each in after)
    if step.run:
        return submit(prepare(_request(pipeline, step, words), after=directories))
    plan, job = _command(pipeline, step, path)
    job = replace(job, after=directories)
    keep_script(job, render_command(plan))
    save_job(job)
    job = replace(job, ids=(submit_script((*_words(job, step), *words, job.script), job.folder / "logs"),))
    save_submitted(job, command=step.command)
    return job


def _dry(pipeline: Pipeline, step: Step, path: Path) -> str:
    if step.run:
        prepared = prepare(_request(pipeline, step, ()), after=())
        text, words, job = prepared.text, prepared.words, prepared.job
    else:
        plan, job = _command(pipeline, step, path)
        text, words = render_command(plan), _words(job, step)
    after = f"   # with --dependency on {', '.join(step.after)}" if step.after else ""
    return f"# {step.name}\n{text}\n# nothing was submitted; this would be:\n{shlex.join([*words, job.script])}{after}\n"


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
    refuse_overruling(options, (), os.environ)
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
