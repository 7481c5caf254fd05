"""The job script: plain bash that a person can read, run and change. Every word of the user's is quoted.

An element asks `poro element` what there is to do, checks its nodes, trains, and says how it went; everything that takes a decision
is there, and everything that runs is here.
"""

import re
import shlex
from dataclasses import dataclass

from megatron_poro.errors import LaunchError
from megatron_poro.slurm.profile import Container, Profile

NOTHING_TO_DO = 10
"""Exit code of `poro element begin` and `nodes`: this element ends well, without training."""
PLACEHOLDERS = re.compile(r"\{(USER|SLURM_JOB_ID)\}")


@dataclass(frozen=True)
class Plan:
    """What a script is rendered from. Times are in minutes, `options` are (option, why) for sbatch."""

    profile: Profile
    directory: str
    run_file: str
    python: str
    options: tuple[tuple[str, str], ...]
    srun_options: tuple[tuple[str, str], ...]
    nodes: int
    tasks_per_node: int


@dataclass(frozen=True)
class CommandPlan:
    """What the script of a step that is a command is rendered from: `words` of `poro`, run in `working_directory`."""

    profile: Profile
    directory: str
    working_directory: str
    python: str
    options: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    shares: int


def render(plan: Plan) -> str:
    """The whole script."""
    parts = (_head(plan), _names(plan), _environment(plan), _begin(plan), _check(plan), _train(plan), _end())
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def render_command(plan: CommandPlan) -> str:
    """The script of a step that is a command."""
    words = " ".join(_share_words(word, plan.shares) for word in plan.words)
    command = f"""
# What comes before must be done, and this share must not be.
index=${{SLURM_ARRAY_TASK_ID:-0}}
poro element ready "$folder" "$index"; code=$?
[ "$code" = {NOTHING_TO_DO} ] && exit 0
[ "$code" = 0 ] || exit "$code"
cd {shlex.quote(plan.working_directory)} || exit 2
srun --ntasks=1 {_inside(plan)} {words}
poro element finish "$folder" "$index" "$?"
"""
    parts = (_head(plan), _names(plan), _environment(plan), command)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _share_words(word: str, count: int) -> str:
    """A word for bash, `{index}` and `{count}` filled in, everything else quoted."""
    parts = re.split(r"\{(index|count)\}", word)
    filled = {"index": '"$index"', "count": str(count)}
    return "".join(filled[part] if n % 2 else shlex.quote(part) for n, part in enumerate(parts) if part) or "''"


def _head(plan: Plan | CommandPlan) -> str:
    width = max((len(option) for option, _ in plan.options), default=0)
    lines = [
        "#!/usr/bin/env bash",
        "# One element of a run, written by `poro launch`. Each goes on from the newest checkpoint that verifies."
        if isinstance(plan, Plan)
        else "# A step of a pipeline, written by `poro launch`.",
    ]
    if plan.profile.scheduler == "slurm":
        lines += [f"#SBATCH {_one_line(option):<{width}}  # {_one_line(why)}" for option, why in plan.options]
    return "\n".join([*lines, "set -uo pipefail"])


def _names(plan: Plan | CommandPlan) -> str:
    run_file = f"\nrun_file={shlex.quote(plan.run_file)}" if isinstance(plan, Plan) else ""
    return f"""
folder={shlex.quote(plan.directory + "/slurm")}        # what belongs to the launch: this script, logs, notes{run_file}
poro() {{ {shlex.quote(plan.python)} -m megatron_poro "$@"; }}   # outside of a container: it calls Slurm's commands
if [ ! -f "$folder/job.json" ]; then
  echo "error: $folder/job.json is gone; was the run directory moved? Launch it again from where it is" >&2
  {_give_up(plan)}exit 2
fi
"""


def _environment(plan: Plan | CommandPlan) -> str:
    lines = [f"module load {shlex.quote(module)}" for module in plan.profile.modules]
    if plan.profile.scheduler == "slurm":
        lines.append("unset SLURM_EXPORT_ENV   # under sbatch --export=NONE, ranks would get nothing of what is exported here")
        lines.append("export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}   # srun no longer takes it from the job (since 22.05)")
    variables = plan.profile.environment
    lines += [f"export {variable.name}={_expand(variable.value)}   # {_one_line(variable.why)}" for variable in variables]
    return "\n".join(lines)


def _begin(plan: Plan) -> str:
    return f"""
element="${{SLURM_ARRAY_JOB_ID:-${{SLURM_JOB_ID:-local}}}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}-${{SLURM_RESTART_COUNT:-0}}"

# Anything left to do? The environment, the job as Slurm sees it, modules and container are kept with the element.
poro element begin "$folder"; code=$?
[ "$code" = {NOTHING_TO_DO} ] && exit 0
[ "$code" = 0 ] || {{ {_give_up(plan)}exit "$code"; }}
{{ module list; }} >"$folder/elements/$element/modules.txt" 2>&1 || true
"""


def _give_up(plan: Plan | CommandPlan) -> str:
    """Hold what waits: what cannot even be looked at would use up all elements within seconds."""
    if plan.profile.scheduler != "slurm" or isinstance(plan, CommandPlan):
        return ""
    return 'scontrol hold "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"; '


def _check(plan: Plan) -> str:
    if plan.profile.scheduler != "slurm":
        return ""
    inside = _inside(plan)
    return f"""
# A look at every node, some seconds: a bad one is left out, and the element queues again.
checks="$folder/nodes/$element"
timeout 300 srun --nodes={plan.nodes} --ntasks={plan.nodes} --ntasks-per-node=1 --kill-on-bad-exit=0 \\
  {inside} element measure "$folder" "$checks"
poro element nodes "$folder" "$checks"; code=$?
[ "$code" = {NOTHING_TO_DO} ] && exit 0
[ "$code" = 0 ] || {{ poro element end "$folder" "$code"; exit; }}
"""


def _train(plan: Plan) -> str:
    if plan.profile.scheduler != "slurm":
        command = f'{_inside(plan)} train "$run_file" &'
    else:
        options = [
            *plan.srun_options,
            ("--kill-on-bad-exit=0", "ranks end by themselves, and say why"),
            ("--wait=120", "whoever has not 2 minutes after the first is killed"),
        ]
        notes = "\n".join(f"#   {_one_line(option)}: {_one_line(why)}" for option, why in options)
        words = " ".join(shlex.quote(option) for option, _ in options)
        command = f"""{notes}
srun --nodes={plan.nodes} --ntasks={plan.nodes * plan.tasks_per_node} --ntasks-per-node={plan.tasks_per_node} {words} \\
  {_inside(plan)} train "$run_file" &"""
    return f"""
# Train. SIGUSR1 comes before the time limit: the ranks save at the end of their step and end with 75.
{command}
step=$!
told=0
trap 'told=1; kill -USR1 "$step" 2>/dev/null' USR1
trap 'told=1; kill -TERM "$step" 2>/dev/null' TERM
while :; do
  told=0
  wait "$step"; code=$?
  [ "$told" = 1 ] || break      # a trap ends `wait` early: wait again
done
"""


def _end() -> str:
    return """
# How did it go? Cancels what is left when the run is done, holds it when it gets nowhere.
trap '' TERM USR1
poro element end "$folder" "$code"
exit $?
"""


def _inside(plan: Plan | CommandPlan) -> str:
    """The words that run `poro` as a rank: in the container when there is one."""
    container = plan.profile.container
    if not container.image:
        return f"{shlex.quote(plan.python)} -m megatron_poro"
    return f"{_container_words(container, plan)} {shlex.quote(container.python)} -m megatron_poro"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _expand(value: str) -> str:
    """A value for bash with its placeholders as variables, everything else quoted."""
    parts = PLACEHOLDERS.split(value)
    return "".join(f'"${{{part}:-}}"' if n % 2 else shlex.quote(part) for n, part in enumerate(parts) if part)


def _container_words(container: Container, plan: Plan | CommandPlan) -> str:
    if re.search("[,:]", plan.directory):
        raise LaunchError(f"{plan.directory}: {container.runtime} --bind has no way to write a path with ',' or ':'; rename it")
    binds = ",".join([*container.binds, plan.directory])
    words = [container.runtime, "exec", *container.arguments, "--bind", binds, container.image]
    return " ".join(shlex.quote(word) for word in words)
