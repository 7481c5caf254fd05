"""What an element of the array decides: whether there is anything to do, which nodes are bad, what its end means for the others.

Called by the job script, outside of a container. Slurm being away costs a warning where training can go on without it.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from megatron_poro.config import load_run
from megatron_poro.engine.paths import find_newest, step_of
from megatron_poro.errors import STOPPED_CODE, USER_ERROR_CODE, LaunchError
from megatron_poro.observe import Record, read_records
from megatron_poro.slurm import queue
from megatron_poro.slurm.commands import SlurmError, expand_nodes, is_gone, node_states, show_job
from megatron_poro.slurm.history import (
    Attempt,
    attempts,
    done_shares,
    excluded,
    hold_reason,
    last_failure,
    num_fruitless,
    num_requeued,
    suspects,
)
from megatron_poro.slurm.nodes import judge, read_measurements
from megatron_poro.slurm.records import Job, count, load_job, note, read_notes, save_job
from megatron_poro.slurm.script import NOTHING_TO_DO
from megatron_poro.training.signals import STOP
from megatron_poro.training.start import find_finished, stop_file_was_there

KEPT_VARIABLES = re.compile(
    r"SLURM|NCCL|RCCL|GLOO|FI_|HSA_|ROCR_|HIP_|CUDA_|MIOPEN_|OMP_|KMP_|MKL_|TORCH|PORO_|PYTHON|LD_|PATH$|HF_HOME|HF_HUB_OFFLINE|WANDB_(MODE|DIR|PROJECT|ENTITY)"
    r"|MASTER_|LANG|LC_|HOSTNAME|USER$|VIRTUAL_ENV|SINGULARITY|APPTAINER|MPICH|UCX|LOADEDMODULES|TMPDIR|TZ"
)
SECRET = re.compile(r"KEY|TOKEN|JWT|SECRET|PASS|PW(?!D)|CRED|AUTH|COOKIE|PRIVATE", re.IGNORECASE)


Result = TypeVar("Result")


def open_element(folder: Path) -> Job:
    """The launch that an element belongs to. Raises LaunchError when there is none, or its run directory was moved."""
    job = load_job(folder.parent)
    if job is None:
        raise LaunchError(f"{folder}: nothing was launched from here; `poro launch` does")
    if Path(job.directory).resolve() != folder.parent.resolve():
        raise LaunchError(f"{folder.parent} was launched as {job.directory}; launch it again from where it is")
    return job


def begin(folder: Path) -> int:
    """Decide whether this element trains: 0, or NOTHING_TO_DO after it was said why not."""
    job = open_element(folder)
    directory = Path(job.directory)
    own = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID", "")
    if own and not job.ids and job.mode != "local":  # `poro launch` was ended before it could note what it had submitted
        job = replace(job, ids=(own,))
        save_job(job)
    notes = read_notes(directory)
    if hold_reason(notes):
        notes.append(note(directory, "release", job=queue.own_job()))
    if is_done(job):
        return _finish(job)
    if _is_blocked(job):
        _patiently(lambda: queue.cancel_waiting(job))
        return USER_ERROR_CODE
    if job.mode != "local" and stop_file_was_there(directory):
        print(f"not started: {directory / STOP} asked for that and is removed; `poro launch` goes on", flush=True)
        return NOTHING_TO_DO
    _blame(job, notes)
    if num_fruitless(read_notes(directory), newest_step(directory)) >= job.brake:
        return _hold(job, notes)
    _follow_exclusions(job)
    nodes = _own_nodes()
    if (bad := [node for node in nodes if node in excluded(read_notes(directory))]) and _queue_again(job, bad):
        return NOTHING_TO_DO
    step = newest_step(directory)
    note(
        directory,
        "begin",
        job=queue.own_job(),
        job_id=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        step=step,
        nodes=nodes,
        devices=job.nodes * job.tasks_per_node,
        num_events=len(read_records(directory / "events.jsonl")),
    )
    _keep_surroundings(folder)
    print(f"element {queue.own_job() or 'here'} on {', '.join(nodes) or 'this machine'}: goes on from step {step}", flush=True)
    return 0


def check_nodes(folder: Path, measured: Path) -> int:
    """Judge what the nodes measured: 0, or NOTHING_TO_DO after bad ones were left out and the element queued again."""
    job = open_element(folder)
    directory = Path(job.directory)
    found = read_measurements(measured)
    nodes = _own_nodes()
    missing = [node for node in nodes if node not in found]
    bad = {**judge(found, job.cluster), **dict.fromkeys(missing, "did not answer the node check")}
    if bad and _is_no_nodes_fault(job, bad, nodes):
        print(
            f"warning: no node passes the check ({next(iter(bad.values()))}): it is not theirs; training starts",
            file=sys.stderr,
            flush=True,
        )
        return 0
    for node, reason in bad.items():
        print(f"error: node {node} is bad: {reason}", file=sys.stderr, flush=True)
        note(directory, "exclude", node=node, reason=reason)
    if bad and _queue_again(job, list(bad)):
        return NOTHING_TO_DO
    if bad:
        print("warning: the partition has no other nodes; training starts on these", file=sys.stderr, flush=True)
    return 0


def _is_no_nodes_fault(job: Job, bad: Mapping[str, str], nodes: Sequence[str]) -> bool:
    """Whether the check failed everywhere, as with an image that does not start: leaving nodes out would go through the partition.

    Where an element has one node, that takes as many of them in a row as the brake has elements.
    """
    if set(nodes) - set(bad):
        return False
    return len(nodes) > 1 or num_requeued(read_notes(Path(job.directory))) >= job.brake


def end(folder: Path, code: int) -> int:
    """Note how the element went and act on it; returns the exit code that Slurm is to see."""
    job = open_element(folder)
    directory = Path(job.directory)
    note(directory, "end", job=queue.own_job(), code=code, step=newest_step(directory))
    notes = read_notes(directory)
    if is_done(job):
        _finish(job)
        return 0
    if _was_stopped(notes):
        _patiently(lambda: queue.cancel_waiting(job))
        return 0
    _blame(job, notes)
    if code == USER_ERROR_CODE or num_fruitless(notes, newest_step(directory)) >= job.brake:
        _hold(job, notes)
        return code
    _follow_exclusions(job)
    if job.mode == queue.REQUEUE:
        _patiently(lambda: queue.requeue(queue.own_job()))
    return 0 if code == STOPPED_CODE else code


def newest_step(directory: Path) -> int:
    """The step of the newest checkpoint that is whole; 0 without one."""
    newest = find_newest(directory)
    return step_of(newest) if newest else 0


def ready(folder: Path, index: int) -> int:
    """Decide whether a share of a command is to be run: 0; NOTHING_TO_DO when it is done; 2 when what it comes after is not."""
    job = open_element(folder)
    directory = Path(job.directory)
    if index in done_shares(read_notes(directory), job.elements):
        return NOTHING_TO_DO
    if _is_blocked(job):
        return USER_ERROR_CODE
    note(directory, "begin", job=queue.own_job(), index=index, restart=0, nodes=_own_nodes())
    _keep_surroundings(folder)
    return 0


def finish(folder: Path, index: int, code: int) -> int:
    """Note how a share of a command went; one that failed is queued again until it was tried often enough."""
    job = open_element(folder)
    directory = Path(job.directory)
    if code == 0:
        note(directory, "done", job=queue.own_job(), index=index, count=job.elements)
        return 0
    note(directory, "end", job=queue.own_job(), index=index, code=code)
    notes = read_notes(directory)
    launched = max((n for n, record in enumerate(notes) if record["event"] == "launch"), default=0)
    tried = sum(record["event"] == "end" and record["index"] == index for record in notes[launched:])
    if code != USER_ERROR_CODE and tried < job.brake and (own := queue.own_job()):
        _patiently(lambda: queue.requeue(own))
    return code


def _is_blocked(job: Job) -> bool:
    """Say which launch that must be done before is not, if one is not."""
    for directory in job.after:
        earlier = load_job(Path(directory))
        if earlier is None or not is_done(earlier):
            reason = f"{directory} must be done before, and is not; mend it and launch the pipeline again"
            note(Path(job.directory), "blocked", job=queue.own_job(), reason=reason)
            print(f"error: {reason}", file=sys.stderr, flush=True)
            return True
    return False


def is_done(job: Job) -> bool:
    """Whether the run took its last step and saved it; of a command, whether every share is done."""
    if not job.run_file:
        return len(done_shares(read_notes(Path(job.directory)), job.elements)) >= job.elements
    return find_finished(load_run(Path(job.run_file))) is not None


def _finish(job: Job) -> int:
    cancelled = _patiently(lambda: queue.cancel_waiting(job))
    note(Path(job.directory), "finished", job=queue.own_job(), cancelled=cancelled or 0)
    print("the run is done" + (f"; {count(cancelled, 'element')} that waited cancelled" if cancelled else ""), flush=True)
    return NOTHING_TO_DO


def _hold(job: Job, notes: list[Record]) -> int:
    """Hold what waits, and say why and what the run last failed of."""
    directory = Path(job.directory)
    tried = [attempt for attempt in attempts(notes, newest_step(directory)) if attempt.counts]
    count = num_fruitless(notes, newest_step(directory))
    first = tried[-min(len(tried), max(count, 1))].num_events if tried else 0
    cause = last_failure(read_records(directory / "events.jsonl"), first) or _last_code(tried)
    reason = (
        f"{count} elements in a row without a new checkpoint (it stands at step {newest_step(directory)}); the last failed: {cause}"
    )
    if tried and tried[-1].code == USER_ERROR_CODE:
        reason = f"the last element failed of what no repetition mends: {cause}"
    held = _patiently(lambda: queue.hold_waiting(job))
    note(directory, "hold", job=queue.own_job(), reason=reason, held=held or 0)
    way = f"`scontrol release {','.join(job.ids)}`" if held else "`poro launch`"
    print(f"error: held: {reason}\n{way} goes on, `poro cancel {directory}` gives up", file=sys.stderr, flush=True)
    return NOTHING_TO_DO


def _last_code(tried: Sequence[Attempt]) -> str:
    code = tried[-1].code if tried else None
    return "killed before it could say why" if code is None else f"exit code {code}"


def _was_stopped(notes: list[Record]) -> bool:
    """Whether `poro stop`, or `cancel`, was called since the element began."""
    for record in reversed(notes):
        if record["event"] in ("stop", "cancel"):
            return True
        if record["event"] == "begin":
            return False
    return False


def _blame(job: Job, notes: list[Record]) -> None:
    """Leave out nodes that the last attempt's failure is put down to: those that are gone, and those that the run's events name."""
    directory = Path(job.directory)
    tried = attempts(notes, newest_step(directory))
    if not tried:
        return
    last, left_out = tried[-1], excluded(notes)
    events = read_records(directory / "events.jsonl")
    blamed = {host: reason for host, reason in suspects(events, last.num_events).items() if host in last.nodes}
    if last.end is None and job.ids:
        states = _patiently(lambda: node_states("")) or {}
        blamed |= {
            node: f"went away under element {last.job} ({states[node]})" for node in last.nodes if is_gone(states.get(node, ""))
        }
    for node, reason in blamed.items():
        if node not in left_out:
            print(f"warning: node {node} is left out: {reason}", file=sys.stderr, flush=True)
            notes.append(note(directory, "exclude", node=node, reason=reason))


def _follow_exclusions(job: Job) -> None:
    """Keep what waits off the excluded nodes, as far as the partition can do without them."""
    if not (left_out := excluded(read_notes(Path(job.directory)))):
        return
    _patiently(lambda: queue.keep_off(job, queue.affordable(job, left_out)))


def _queue_again(job: Job, bad: list[str]) -> bool:
    """Give the nodes back and wait for others; False when there are none, or Slurm does not want to."""
    own = queue.own_job()
    left_out = excluded(read_notes(Path(job.directory)))
    allowed = _patiently(lambda: queue.affordable(job, left_out)) or []
    if not own or not all(node in allowed for node in bad):
        return False
    # Requeueing ends this job after a grace; until then it can still be told where not to start again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not _patiently(lambda: _requeue_without(job, own, allowed)):
        return False
    note(Path(job.directory), "requeue", job=queue.own_job(), nodes=bad)
    print(f"queued again without {', '.join(bad)}", flush=True)
    return True


def _requeue_without(job: Job, own: str, nodes: list[str]) -> bool:
    if not queue.requeue(own):
        return False
    queue.exclude_on([own], nodes)
    queue.keep_off(job, nodes)
    return True


def _patiently(work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None after a warning when Slurm refuses or stays away: the run is worth more than its queue."""
    try:
        return work()
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
        return None


def _own_nodes() -> list[str]:
    nodelist = os.environ.get("SLURM_JOB_NODELIST", "")
    return expand_nodes(nodelist) if nodelist else []


def _keep_surroundings(folder: Path) -> None:
    """Keep environment and job of this element beside its log. Variables that may hold a secret are named without their value."""
    kept = folder / "elements" / f"{queue.own_job() or 'local'}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    names = sorted(name for name in os.environ if KEPT_VARIABLES.match(name) or is_secret(name))
    own = queue.own_job()
    shown = (_patiently(lambda: show_job(own)) if own else None) or {}
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _write_pairs(
            kept / "environment.txt", {name: "(set)" if is_secret(name, os.environ[name]) else os.environ[name] for name in names}
        )
        _write_pairs(kept / "job.txt", shown)
    except OSError as error:
        print(f"warning: {kept}: {error.strerror}", file=sys.stderr, flush=True)


def _write_pairs(path: Path, pairs: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in pairs.items()), encoding="utf-8")


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable may hold what must reach no file: going by its name, or by a password in an address that it holds."""
    return bool(SECRET.search(name) or re.search(r"://[^/\s@]*:[^/\s@]*@", value))
