"""When the run saves: often enough to lose little, seldom enough to train, and always before the time limit."""

import re
from collections.abc import Iterator

from megatron_poro.engine.paths import step_of
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, not_checked, red, size, yellow
from megatron_poro.preflight.layout import layout_on
from megatron_poro.preflight.planner import NO_RATES, forecast
from megatron_poro.slurm.size import LEAD_SAVES, TICK_SECONDS

BLOCKING_SHARE = 0.05
"""Of the time: saves that training waits for should cost less."""
NO_TIMES = f"{NO_RATES}, and this run has measured none"


def check_interval(case: Case) -> Iterator[Finding]:
    """Saves between start and end, and whether training waits for them."""
    keep = case.config.checkpoint
    if keep.save_every_steps == 0:
        yield yellow(
            "saves.interval",
            f"checkpoint.save_every_steps (0): nothing is saved but at the end of {case.duration.num_steps:,} steps or by a "
            "signal; a failure loses all; save about every hour",
        )
    elif not keep.asynchronous:
        yield yellow(
            "saves.interval",
            f"checkpoint.asynchronous (false): training stands still while {size(case.checkpoint_bytes)} are written, every "
            f"{keep.save_every_steps:,} steps; leave it true",
        )
    else:
        yield green("saves.interval", f"every {keep.save_every_steps:,} steps, while training goes on")


def check_time(case: Case) -> Iterator[Finding]:
    """Save time against the time between saves."""
    every, times = case.config.checkpoint.save_every_steps, forecast(case, layout_on(case))
    if not every:
        return
    if times.save_seconds is None or times.step_seconds is None:
        yield not_checked(
            "saves.time", f"how long a save and a step take: {NO_TIMES}; a checkpoint is {size(case.checkpoint_bytes)}"
        )
        return
    between = every * times.step_seconds
    text = f"a save takes {times.save_seconds:.0f} s, checkpoint.save_every_steps ({every}) leaves {between:.0f} s between two"
    if times.save_seconds > between:
        yield red("saves.time", f"{text}: the next is due before the last is written; save less often")
    elif not case.config.checkpoint.asynchronous and times.save_seconds > BLOCKING_SHARE * between:
        yield yellow(
            "saves.time",
            f"{text}, and training waits: {times.save_seconds / between:.0%} of it is lost; save less often, or asynchronously",
        )
    else:
        yield green("saves.time", text)


def check_limit(case: Case) -> Iterator[Finding]:
    """An element has a save within its time limit, and takes a step before its signal."""
    limit, every, times = case.limit_minutes, case.config.checkpoint.save_every_steps, forecast(case, layout_on(case))
    if limit is None:
        return
    if times.step_seconds is None:
        yield not_checked("saves.limit", f"how many steps fit the {limit} minutes of an element: {NO_TIMES}")
        return
    steps = limit * 60 / times.step_seconds
    text = f"{steps:,.0f} steps fit the {limit} minutes of an element"
    if steps < 1:
        yield red("saves.limit", f"{text}: it never takes one; ask for more time or more nodes")
    elif every > steps:
        yield yellow(
            "saves.limit", f"{text}, but checkpoint.save_every_steps is {every:,}: a failed element saves nothing; save more often"
        )
    else:
        yield _enough_elements(case, steps, text)


def _enough_elements(case: Case, steps_of_element: float, text: str) -> Finding:
    """The elements that the steps left take, against those of the job script's array."""
    done = step_of(case.checkpoints[-1]) if case.checkpoints else 0
    wanted = (case.duration.num_steps - done) / steps_of_element
    text = f"{text}; {wanted:,.1f} elements for the {case.duration.num_steps - done:,} steps that are left"
    array = re.fullmatch(r"(\d+)-(\d+)%1", case.around.script.options.get("--array", "") if case.around.script else "")
    there = int(array[2]) - int(array[1]) + 1 if array else 0
    if array and there < wanted:
        return yellow("saves.limit", f"{text}, and --array has {there}; `poro launch --days` counts them")
    return green("saves.limit", text)


def check_lead(case: Case) -> Iterator[Finding]:
    """The signal comes early enough for the step that runs and a save as slow as any so far; Slurm may be a minute early."""
    lead, times = signal_lead(case), forecast(case, layout_on(case))
    if lead is None:
        return
    profile, limit = case.around.profile, case.limit_minutes
    if limit and lead >= limit * 60:
        yield red("saves.lead", f"--signal at {lead} s before the limit, but an element has only {limit * 60} s; shorten it")
        return
    wanted = (profile.signal_lead_minutes if profile else 10.0) * 60
    what = "the profile's, until saves are measured"
    if times.save_seconds is not None:
        wanted = LEAD_SAVES * times.save_seconds + 2 * (times.step_seconds or 0.0) + TICK_SECONDS
        what = f"{LEAD_SAVES:g} times the slowest save ({times.save_seconds:.0f} s), two steps and a minute"
    if times.save_seconds is not None and lead < times.save_seconds + (times.step_seconds or 0.0):
        yield red(
            "saves.lead", f"--signal at {lead} s before the limit is less than a step and a save take; give {wanted:.0f} ({what})"
        )
    elif lead < wanted:
        yield yellow("saves.lead", f"--signal at {lead} s before the limit; {wanted:.0f} s are safe ({what})")
    else:
        yield green("saves.lead", f"--signal at {lead} s before the limit; {wanted:.0f} s are wanted ({what})")


def signal_lead(case: Case) -> int | None:
    """Seconds before the limit at which the job script asks for its signal: 60 where it does not say (man sbatch)."""
    option = case.around.script.options.get("--signal", "") if case.around.script else ""
    lead = option.partition("@")[2] or "60"
    return int(lead) if option and lead.isdecimal() else None
