"""`poro check`: every check of a run in order. One that crashes is a red line of its own; the others go on."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from megatron_poro.config import RunConfig, load_run
from megatron_poro.errors import USER_ERRORS, ConfigError, LaunchError
from megatron_poro.preflight import (
    disk,
    environment,
    files,
    job,
    layout,
    machine,
    mix,
    overlap,
    recipe,
    resume,
    saves,
    schedule,
    start,
    tokens,
)
from megatron_poro.preflight.case import Case, Setting, Surroundings, read_plain
from megatron_poro.preflight.findings import GREEN, Finding, green, not_checked, red
from megatron_poro.preflight.names import NAMES
from megatron_poro.preflight.script import JobScript, read_script
from megatron_poro.slurm.profile import NAMES as CLUSTERS
from megatron_poro.slurm.profile import Profile, load_profile
from megatron_poro.slurm.records import load_job

Check = Callable[[Case], Iterable[Finding]]
CHECKS: Mapping[str, Check] = {
    "run.paths": recipe.check_paths,
    "data.files": files.check_files,
    "data.manifests": files.check_manifests,
    "tokens.tokenizer": tokens.check_tokenizer,
    "tokens.vocabulary": tokens.check_vocabulary,
    "tokens.ids": tokens.check_ids,
    "tokens.policy": tokens.check_policy,
    "mix.length": mix.check_length,
    "mix.epochs": mix.check_epochs,
    "mix.sources": mix.check_sources,
    "heldout.sets": mix.check_held_out,
    "heldout.disjoint": mix.check_disjoint,
    "heldout.documents": overlap.check_documents,
    "heldout.share": mix.check_share,
    "recipe.keys": recipe.check_keys,
    "recipe.post_training": recipe.check_post_training,
    "layout.processes": layout.check_processes,
    "layout.nodes": layout.check_nodes,
    "layout.bubble": layout.check_bubble,
    "layout.memory": layout.check_memory,
    "start.files": start.check_files,
    "start.proof": start.check_proof,
    "start.model": start.check_model,
    "start.positions": start.check_positions,
    "start.precision": start.check_precision,
    "start.optimizer": start.check_optimizer,
    "resume.checkpoint": resume.check_checkpoint,
    "resume.contract": resume.check_contract,
    "resume.optimizer": resume.check_optimizer,
    "disk.writable": disk.check_writable,
    "disk.space": disk.check_space,
    "disk.quota": disk.check_quota,
    "saves.interval": saves.check_interval,
    "saves.time": saves.check_time,
    "saves.limit": saves.check_limit,
    "saves.lead": saves.check_lead,
    "schedule.warmup": schedule.check_warmup,
    "schedule.decay": schedule.check_decay,
    "schedule.points": schedule.check_points,
    "script.run": job.check_run,
    "script.size": job.check_size,
    "script.signal": job.check_signal,
    "wandb.mode": machine.check_wandb_mode,
    "machine.clock": machine.check_clock,
    "machine.locale": machine.check_locale,
    "machine.umask": machine.check_umask,
}
"""What needs a run file that holds."""
AROUND: Mapping[str, Callable[[Surroundings], Iterable[Finding]]] = {
    "script.files": job.check_files,
    "script.time": job.check_time,
    "script.array": job.check_array,
    "script.account": job.check_account,
    "script.requeue": job.check_requeue,
    "environment.profile": environment.check_profile,
}
"""What the job script and the environment tell by themselves."""


@dataclass(frozen=True)
class Question:
    """What `poro check` was asked. Empty and None: as the run file and its launch have it."""

    run_file: Path
    overrides: tuple[str, ...] = ()
    cluster: str = ""
    nodes: int | None = None
    script: Path | None = None
    reads_all: bool = False


def check_run(question: Question, variables: Mapping[str, str] = os.environ) -> list[Finding]:
    """Everything that can be said of a run before it starts. Raises PoroError when the cluster or the script cannot be read."""
    problems: tuple[str, ...] = ()
    config: RunConfig | None = None
    try:
        config = load_run(question.run_file, question.overrides)
    except ConfigError as error:
        problems = error.problems
    around, launched = _look_around(question, config, variables)
    if config is None:
        found = [red("run.file", problem) for problem in problems]
        found.append(not_checked("run.file", f"{len(CHECKS)} checks that need the run file; mend it first"))
    else:
        case = Case(question.run_file, config, read_plain(question.run_file), around, question.nodes, question.reads_all)
        found = [green("run.file", f"{question.run_file}")]
        found += [finding for name, check in CHECKS.items() for finding in run_guarded(name, partial(check, case))]
    outer: dict[str, Callable[[], Iterable[Finding]]] = {name: partial(check, around) for name, check in AROUND.items()}
    outer["environment.known_bad"] = partial(environment.check_known_bad, around, config)
    found += [*launched, *(finding for name, check in outer.items() for finding in run_guarded(name, check))]
    return _allow(found, config.checks.allow if config else ())


def run_guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; what it raises is a red line, which says whether the user or the check is at fault."""
    try:
        yield from check()
    except USER_ERRORS as error:
        yield from (red(name, line) for line in str(error).splitlines())
    except OSError as error:
        yield red(name, f"{error.filename or 'a file'}: {error.strerror or error}; check that it is there and who may read it")
    except Exception as error:
        yield red(
            name,
            f"the check itself failed ({type(error).__name__}: {error}); look at what it names, and report it if that is right",
        )


def _allow(found: Sequence[Finding], allowed: Sequence[str]) -> list[Finding]:
    """What the run file says is meant becomes green, and says so."""
    unknown = sorted(set(allowed) - NAMES.keys())
    way_out = "the names stand in each line as subject and check, such as mix.epochs"
    strange = [red("run.allow", f"checks.allow: {name!r} is no check; {way_out}") for name in unknown]
    return strange + [_allowed(finding) if finding.check in allowed else finding for finding in found]


def _allowed(finding: Finding) -> Finding:
    return finding if finding.colour == GREEN else replace(finding, colour=GREEN, text=f"allowed: {finding.text}")


def _look_around(question: Question, config: RunConfig | None, variables: Mapping[str, str]) -> tuple[Surroundings, list[Finding]]:
    """Cluster, script and environment; what was left of an earlier launch and cannot be read is a finding."""
    script, cluster, found = _read_asked(question.script) if question.script else _read_launch(config)
    profile = _profile_of(question.cluster or cluster, script)
    return Surroundings(profile, script, _environment_of(variables, profile, script)), found


def _read_asked(path: Path) -> tuple[JobScript | None, str, list[Finding]]:
    """The script that was asked about; it says no cluster."""
    try:
        return read_script(path), "", []
    except OSError as error:
        raise ConfigError([f"--script: {path}: {error.strerror}"]) from None


def _read_launch(config: RunConfig | None) -> tuple[JobScript | None, str, list[Finding]]:
    """The script and cluster of the run's last launch."""
    try:
        job = load_job(Path(config.run_directory)) if config else None
        return (read_script(Path(job.script)), job.cluster, []) if job else (None, "", [])
    except LaunchError as error:
        return None, "", [red("script.files", str(error))]
    except OSError as error:
        return None, "", [red("script.files", f"{error.filename}: {error.strerror}, though the run was launched; launch it again")]


def _profile_of(cluster: str, script: JobScript | None) -> Profile | None:
    """The cluster that was named or launched on, else the one that has the script's partition."""
    if cluster:
        return load_profile(cluster)
    partition = script.options.get("--partition", "") if script else ""
    known = (load_profile(name) for name in CLUSTERS) if partition else ()
    return next((profile for profile in known if profile.find_partition(partition)), None)


def _environment_of(variables: Mapping[str, str], profile: Profile | None, script: JobScript | None) -> dict[str, Setting]:
    """What ranks will see: sbatch passes this environment on, and the script, or the one that `poro launch` writes, adds to it."""
    found = {name: Setting(value, "this environment") for name, value in variables.items()}
    if script:
        return found | {name: Setting(value, str(script.path)) for name, value in script.settings.items()}
    added = profile.environment if profile else ()
    return found | {variable.name: Setting(variable.value, f"profile {profile.name if profile else ''}") for variable in added}
