"""From a run file to elements in the queue: options checked against the profile, the script rendered and kept, sbatch called."""

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_poro.config import RunConfig, load_run, save_run
from megatron_poro.engine.paths import find_newest
from megatron_poro.errors import USER_ERRORS, LaunchError
from megatron_poro.slurm.commands import SlurmError, SlurmUnreachableError, has_slurm, launched_from, queued
from megatron_poro.slurm.element import is_done
from megatron_poro.slurm.history import hold_reason
from megatron_poro.slurm.profile import NAMES, Profile, load_profile
from megatron_poro.slurm.records import Job, count, folder_of, load_job, note, read_notes, save_job
from megatron_poro.slurm.script import Plan, render
from megatron_poro.slurm.size import Request, plan_size, refuse_known_bad, refuse_overruling, sbatch_options, srun_options_of
from megatron_poro.slurm.submission import submit_script
from megatron_poro.topology import Layout
from megatron_poro.training.lock import hold_lock
from megatron_poro.training.signals import STOP
from megatron_poro.training.start import check_against, check_before_launch, find_finished, layout_of, make_run_directory


@dataclass(frozen=True)
class Prepared:
    """A launch that can be submitted: the job, its script, and sbatch's words (without the script's path)."""

    job: Job
    config: RunConfig
    image: str
    text: str
    words: tuple[str, ...]
    notes: tuple[str, ...]


def prepare(request: Request, *, after: tuple[str, ...] | None = None, dry_run: bool = False) -> Prepared:
    """Check everything that can be checked here, and render. Touches no file. Raises PoroErrors with the way out.

    As a step of a pipeline it comes after the launches in the directories `after`, which may have to make its data first. For a dry
    run, what the run has to read may still be missing: the notes tell.
    """
    profile = load_profile(request.cluster)
    if request.image:
        profile = replace(profile, container=replace(profile.container, image=str(Path(request.image).resolve())))
    config = load_run(request.run_file, request.overrides)
    directory = Path(config.run_directory)
    size = plan_size(request, profile, config)
    layout = layout_of(config, size.nodes * size.tasks_per_node)
    problems = _find_problems(config, layout, profile.container.image) if after is None else []
    if problems and not dry_run:
        raise problems[0]
    refuse_known_bad(profile, os.environ)
    folder = folder_of(directory)
    job = Job(
        name=size.name,
        directory=str(directory),
        run_file=str(folder / "run.toml"),
        cluster=request.cluster if request.cluster in NAMES else str(Path(request.cluster).resolve()),
        mode=request.mode if profile.scheduler == "slurm" else "local",
        ids=(),
        elements=size.elements,
        nodes=size.nodes,
        tasks_per_node=size.tasks_per_node,
        partition=size.partition,
        brake=request.brake,
        time=time.time(),
        script=str(folder / "job.sh"),
        gpus_per_rank=profile.gpus_per_device,
        after=after or (),
    )
    options, srun_options = sbatch_options(request, profile, size), srun_options_of(profile, size)
    if profile.scheduler == "slurm":
        refuse_overruling(options, request.sbatch, os.environ)
    text = render(
        Plan(profile, job.directory, job.run_file, sys.executable, options, srun_options, size.nodes, size.tasks_per_node)
    )
    log = "--output=%x-%A_%a.log" if request.mode == "array" else "--output=%x-%j.log"
    # The folder goes by --chdir: in --output, Slurm would replace what looks like its patterns.
    words = ("sbatch", "--parsable", f"--chdir={folder / 'logs'}", log, *request.sbatch)
    return Prepared(job, config, profile.container.image, text, words, tuple(_notes(layout, profile, problems)))


def _find_problems(config: RunConfig, layout: Layout, image: str) -> list[Exception]:
    """What the run has to read and cannot, or not as it is."""

    def check_newest() -> None:
        if newest := find_newest(Path(config.run_directory)):
            check_against(config, newest)

    def check_image() -> None:
        if image and not Path(image).exists():
            raise LaunchError(f"--container: {image}: no such file or folder")

    found: list[Exception] = []
    checks: list[Callable[[], None]] = [lambda: check_before_launch(config, layout), check_newest, check_image]
    for check in checks:
        try:
            check()
        except USER_ERRORS as error:
            found.append(error)
    return found


def _notes(layout: Layout, profile: Profile, problems: Sequence[Exception]) -> Iterator[str]:
    yield f"layout: {layout}"
    if profile.needs_account and profile.devices_per_node and not profile.container.image:
        yield f"no container: ranks run with {sys.executable}, which needs a torch for {profile.device}; --container gives an image"
    for problem in problems:
        yield from (f"would be refused: {line}" for line in str(problem).splitlines())


def explain(prepared: Prepared) -> str:
    """What `--dry-run` prints: the script, what there is to say of it, and the line that would submit it."""
    line = " ".join(shlex.quote(word) for word in (*prepared.words, prepared.job.script))
    if prepared.job.mode == "local":
        line = f"bash {shlex.quote(prepared.job.script)}   # up to {count(prepared.job.elements, 'time')}"
    about = "\n".join(f"# {text}" for text in prepared.notes)
    return f"{prepared.text}\n{about}\n# nothing was submitted; this would be:\n{line}"


def submit(prepared: Prepared) -> Job:
    """Keep script and config in the run directory, and give Slurm the elements. Raises LaunchError when it has some already."""
    job = prepared.job
    make_run_directory(prepared.config)
    with hold_lock(job.folder / "lock", f"{job.directory}: another `poro launch` submits it right now"):
        return _submit(prepared, job)


def _submit(prepared: Prepared, job: Job) -> Job:
    earlier = _refuse_second(job)
    if done := find_finished(prepared.config):
        raise LaunchError(f"{job.directory} is done; its last checkpoint is {done}")
    try:
        keep_script(job, prepared.text)
        save_run(prepared.config, Path(job.run_file))
        if prepared.image:
            _note_image(job.folder / "container.json", Path(prepared.image))
        save_job(job)  # an element that starts at once finds it
        (Path(job.directory) / STOP).unlink(missing_ok=True)  # of an earlier `poro stop` that nobody was there to heed
    except OSError as error:
        raise LaunchError(f"{job.folder}: {error.strerror}; nothing was submitted") from None
    if job.mode == "local":
        note(Path(job.directory), "launch", ids=[])
        return job
    return _submit_elements(prepared, job, earlier)


def _submit_elements(prepared: Prepared, job: Job, earlier: Job | None) -> Job:
    """Submit, and note the ids. job.json is taken back only when Slurm refused: whatever was submitted needs it."""
    ids: list[str] = []
    try:
        for _ in range(job.elements if job.mode == "chain" else 1):
            after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
            ids.append(submit_script((*prepared.words, *after, job.script), job.folder / "logs"))
    except SlurmUnreachableError:
        raise
    except SlurmError as error:
        if ids:
            raise LaunchError(f"{error}; {len(ids)} of {job.elements} elements were submitted before and will train") from None
        with contextlib.suppress(OSError):
            save_job(earlier) if earlier else (job.folder / "job.json").unlink()
        raise
    finally:
        if ids:
            job = replace(job, ids=tuple(ids))
            save_submitted(job)
    return job


def save_submitted(job: Job, **values: Any) -> None:
    """Note the ids of what is in the queue now. A disk that filled up meanwhile costs the ids, which the queue knows as well."""
    try:
        save_job(job)
    except OSError as error:
        print(f"warning: {job.folder}: {error.strerror}; {', '.join(job.ids)} is submitted all the same", file=sys.stderr)
    note(Path(job.directory), "launch", ids=list(job.ids), **values)


def run_here(job: Job) -> int:
    """Without Slurm: one element after the other in the foreground, until the run is done or held. Returns the last exit code."""
    code = 0
    for _ in range(job.elements):
        code = subprocess.run(["bash", job.script], check=False).returncode
        notes = read_notes(Path(job.directory))
        was_stopped = any(record["event"] in ("stop", "cancel") and record["time"] > job.time for record in notes)
        if is_done(job) or hold_reason(notes) or was_stopped:
            break
    return code


def keep_script(job: Job, text: str) -> None:
    """Write the job's script, and make the folder of its logs."""
    (job.folder / "logs").mkdir(parents=True, exist_ok=True)
    path = Path(job.script)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o755)
    partial.replace(path)


def _note_image(path: Path, image: Path) -> None:
    """Keep which image ranks run in: path, size, time and SHA-256, which is taken anew only when the others differ."""
    try:
        stat = image.stat()
        known: dict[str, Any] = {"image": str(image), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if image.is_file() and known.items() <= kept.items():
            return
        if image.is_file():
            print(f"taking the SHA-256 of {image}, {stat.st_size / 1e9:.1f} GB", flush=True)
            with open(image, "rb") as file:
                known["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LaunchError(f"--container: {image}: {error.strerror}") from None
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _refuse_second(job: Job) -> Job | None:
    """The launch before this one, if any. Raises LaunchError while it has elements: two wait for one lock."""
    earlier = load_job(Path(job.directory))
    ids = earlier.ids if earlier else ()
    if has_slurm() and job.mode != "local":  # what a launch that was ended too early submitted, or one whose job.json is lost
        ids = (*ids, *launched_from(job.folder / "logs"))
    if has_slurm() and (there := queued(ids)):
        first = next((each for each in there if each.is_running), there[0])
        raise LaunchError(
            f"{job.directory} is launched already: {first.job} is {first.state.lower()}; `poro status {job.directory}` shows it, "
            f"`poro stop {job.directory}` saves and ends it, `poro cancel {job.directory}` ends it at once"
        )
    return earlier
