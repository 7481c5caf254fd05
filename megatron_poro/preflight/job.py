"""The job script against the run file and the cluster: does Slurm start what was checked, and does the run survive its limits?"""

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_poro.config import RunConfig, load_run
from megatron_poro.config.parse import Plain, to_plain
from megatron_poro.preflight.case import Case, Surroundings
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow
from megatron_poro.preflight.saves import signal_lead
from megatron_poro.preflight.script import JobScript, minutes_of

SHORT_LIMIT_MINUTES = 60
_FILE = re.compile(r"[^\s$={}*?%`()']+\.(?:toml|ya?ml|py|sh|sbatch|sif)")


def check_files(around: Surroundings) -> Iterator[Finding]:
    """Run files, configurations and programs that the script names exist, seen from its own folder or from here."""
    if around.script is None:
        return
    words = [word for words in around.script.commands for word in words] + list(around.script.settings.values())
    named = [word for word in dict.fromkeys(words) if _FILE.fullmatch(word) and "://" not in word and not word.startswith("-")]
    missing = [name for name in named if not _exists(name, around.script) and not _is_written_at_launch(name, around.script)]
    for name in missing:
        yield red("script.files", f"{around.script.path.name}: {name} does not exist; the job would end at once")
    if not missing:
        yield green("script.files", f"{len(named)} files that {around.script.path.name} names are there")


def _exists(name: str, script: JobScript) -> bool:
    return (script.path.parent / name).exists() or Path(name).exists()


def _is_written_at_launch(name: str, script: JobScript) -> bool:
    """The folder of a launch is made by `poro launch`, after it rendered the script."""
    return Path(name).is_relative_to(script.settings.get("folder", "-"))


def check_run(case: Case) -> Iterator[Finding]:
    """What the script trains is this run file with these values: a copy may be old, an override may hide in the script."""
    script = case.around.script
    if script is None:
        return
    words = script.training
    if not words:
        yield yellow(
            "script.run",
            f"{script.path.name}: no `poro train RUN.toml` in it, so what it trains cannot be compared with {case.run_file}",
        )
        return
    path, overrides = words[0], [word for word in words[1:] if "=" in word and not word.startswith("-")]
    found = next((each for each in (script.path.parent / path, Path(path)) if each.is_file()), None)
    if "$" in " ".join(words):
        yield not_checked("script.run", f"{script.path.name} trains {' '.join(words)}, and only the job knows these variables")
    elif found is None and _is_written_at_launch(path, script):
        yield not_checked("script.run", f"{path} is written by `poro launch`, from {case.run_file}")
    elif found is None:
        yield red("script.run", f"{script.path.name} trains {path}, which does not exist")
    else:
        yield from _compare(case, script, load_run(found, overrides))


def _compare(case: Case, script: JobScript, other: RunConfig) -> Iterator[Finding]:
    here, there = dict(_leaves(to_plain(case.config))), dict(_leaves(to_plain(other)))
    changed = [key for key in here | there if here.get(key) != there.get(key) and not key.startswith("checks.")]
    for key in changed:
        text = f"{script.path.name} trains with {key} = {there.get(key)}, {case.run_file.name} says {here.get(key)}"
        yield red("script.run", f"{text}; launch again, or change one of them")
    if not changed:
        yield green("script.run", f"{script.path.name} trains what {case.run_file.name} says")


def _leaves(plain: Plain, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_size(case: Case) -> Iterator[Finding]:
    """Nodes and tasks of the script: those asked for, those that the partition and the nodes have."""
    script, profile = case.around.script, case.around.profile
    if script is None:
        return
    nodes, tasks = script.options.get("--nodes", ""), case.tasks_per_node
    faults = []
    if case.nodes and nodes.isdecimal() and int(nodes) != case.nodes:
        faults.append(
            red("script.size", f"{script.path.name}: --nodes={nodes}, but {case.nodes} were asked for; change one of them")
        )
    if profile and profile.devices_per_node and tasks and tasks != profile.devices_per_node:
        colour = red if tasks > profile.devices_per_node else yellow
        faults.append(
            colour(
                "script.size",
                f"{script.path.name}: --ntasks-per-node={tasks}, a node has {profile.devices_per_node} {profile.device}s: one "
                "rank each",
            )
        )
    partition = profile.find_partition(script.options.get("--partition", profile.partition)) if profile else None
    if partition and partition.max_nodes and nodes.isdecimal() and int(nodes) > partition.max_nodes:
        faults.append(
            red("script.size", f"{script.path.name}: --nodes={nodes}, partition {partition.name} has at most {partition.max_nodes}")
        )
    yield from faults
    if not faults:
        yield green("script.size", f"{nodes or 'unknown'} nodes of {tasks or 'unknown'} tasks")


def check_time(around: Surroundings) -> Iterator[Finding]:
    """A time limit that is given, that the partition has, and that is worth a start."""
    script, profile = around.script, around.profile
    if script is None or (profile and profile.scheduler == "none"):
        return
    given = script.options.get("--time", "")
    minutes = minutes_of(given)
    partition = profile.find_partition(script.options.get("--partition", profile.partition)) if profile else None
    longest = partition.max_minutes if partition else 0
    if minutes is None:
        yield red("script.time", f"{script.path.name}: --time={given or '(none)'} is no time limit; write D-HH:MM:SS")
    elif longest and minutes > longest:
        yield red(
            "script.time",
            f"{script.path.name}: --time={given} is {minutes} minutes, partition {partition.name if partition else ''} allows "
            f"{longest}",
        )
    elif minutes <= SHORT_LIMIT_MINUTES:
        more = f"; partition {partition.name} allows {longest} minutes" if partition and longest > minutes else ""
        yield yellow(
            "script.time",
            f"{script.path.name}: --time={given} leaves {minutes} minutes, of which starting takes some; meant for trials{more}",
        )
    else:
        yield green("script.time", f"{minutes} minutes an element")


def check_array(around: Surroundings) -> Iterator[Finding]:
    """A run is longer than an element: what comes after the first?"""
    script = around.script
    if script is None or (around.profile and around.profile.scheduler == "none"):
        return
    array = script.options.get("--array", "")
    follows = array or "--dependency" in script.options or re.search(r"--dependency|scontrol requeue|element begin", script.text)
    if not follows:
        yield yellow(
            "script.array",
            f"{script.path.name}: one element, no --array, no --dependency: the run ends at its time limit until somebody submits "
            "again; `poro launch` writes an array",
        )
    elif array and not array.endswith("%1") and re.search(r"[-,]", array):
        yield red(
            "script.array",
            f"{script.path.name}: --array={array} starts elements side by side, and they wait for one run directory; write "
            f"{array}%1",
        )
    else:
        yield green("script.array", f"elements follow each other ({array or 'by dependency'})")


def check_signal(case: Case) -> Iterator[Finding]:
    """The signal before the limit, to the batch script, which passes it on."""
    script, every = case.around.script, case.config.checkpoint.save_every_steps
    if script is None or (case.around.profile and case.around.profile.scheduler == "none"):
        return
    option, lead = script.options.get("--signal", ""), signal_lead(case)
    if lead is None:
        lost = f"up to checkpoint.save_every_steps ({every}) steps" if every else "all of its steps"
        yield (yellow if every else red)(
            "script.signal",
            f"{script.path.name}: no --signal: at its time limit each element loses {lost}; add #SBATCH --signal=B:USR1@600 "
            "and a trap",
        )
    elif option.startswith("B:") and not re.search(rf"\btrap\b.*\b(?:SIG)?{re.escape(_signal_name(option))}\b", script.text):
        yield red(
            "script.signal",
            f"{script.path.name}: --signal={option} goes to the batch script, which has no trap for it and dies of it; pass it on",
        )
    else:
        yield green("script.signal", f"{option}: the run saves {lead} s before the limit")


def _signal_name(option: str) -> str:
    """USR1 of B:SIGUSR1@600."""
    return option.removeprefix("B:").partition("@")[0].removeprefix("SIG")


def check_account(around: Surroundings) -> Iterator[Finding]:
    """Who pays: some clusters refuse jobs that do not say."""
    script, profile = around.script, around.profile
    if script is None or profile is None or not profile.needs_account:
        return
    if "--account" in script.options or "SBATCH_ACCOUNT" in around.environment:
        yield green("script.account", script.options.get("--account", "") or "by SBATCH_ACCOUNT")
    else:
        yield red(
            "script.account",
            f"{script.path.name}: no --account, and SBATCH_ACCOUNT is not set: {profile.name} refuses the job; add it",
        )


def check_requeue(around: Surroundings) -> Iterator[Finding]:
    """A node that fails costs its job; --requeue gives it back, and --open-mode=append keeps what it said."""
    script = around.script
    if script is None or (around.profile and around.profile.scheduler == "none"):
        return
    options = script.options
    faults = []
    if "--requeue" not in options and "scontrol requeue" not in script.text:
        faults.append(
            yellow(
                "script.requeue",
                f"{script.path.name}: no --requeue: a node that fails ends the job; add it, with --open-mode=append",
            )
        )
    elif options.get("--open-mode") != "append":
        faults.append(
            yellow(
                "script.requeue",
                f"{script.path.name}: --requeue without --open-mode=append: a second start overwrites the log of the first",
            )
        )
    yield from faults
    if not faults:
        yield green("script.requeue", "queued again when a node fails, logs are appended to")
