"""The learning rate and the points of the run: is each of them reached, and does the rate end where it should?"""

from collections.abc import Iterator

from megatron_poro.config.duration import warmup_units
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, red, yellow

LONGEST_WARMUP = 0.2
FLATTEST = 0.5


def check_warmup(case: Case) -> Iterator[Finding]:
    """A warm-up that is there, and not most of the run."""
    share = warmup_units(case.duration, case.config.optimizer) / case.duration.num_units
    if share == 0:
        yield yellow(
            "schedule.warmup",
            "optimizer.warmup_fraction, warmup_steps and warmup_tokens are 0: the first step takes the peak rate with empty "
            "moments; warm up for a few per cent",
        )
    elif share > LONGEST_WARMUP:
        yield yellow(
            "schedule.warmup",
            f"optimizer: the rate rises for {share:.0%} of the run, above {LONGEST_WARMUP:.0%}; shorten the warm-up",
        )
    else:
        yield green("schedule.warmup", f"{share:.1%} of the run; a resume goes on where it stood")


def check_decay(case: Case) -> Iterator[Finding]:
    """The horizon is the run itself, so a cosine always ends with it; only `constant` never falls."""
    optimizer = case.config.optimizer
    peak, final = optimizer.learning_rate, optimizer.final_learning_rate
    if optimizer.schedule == "constant":
        yield yellow(
            "schedule.decay",
            f"optimizer.schedule (constant) stays at {peak:g}: final_learning_rate ({final:g}) is never reached; wsd decays at "
            "the end",
        )
    elif final > FLATTEST * peak:
        yield yellow(
            "schedule.decay",
            f"optimizer.final_learning_rate ({final:g}) is {final / peak:.0%} of the peak ({peak:g}): the rate hardly falls",
        )
    else:
        yield green(
            "schedule.decay",
            f"{optimizer.schedule} from {peak:g} to {final:g} at the last of {case.duration.num_steps:,} steps, "
            f"{case.duration.num_tokens:,} tokens",
        )


def check_points(case: Case) -> Iterator[Finding]:
    """Whatever is set for a point of the run that never comes."""
    faults = [*_beyond_in_tokens(case), *_beyond_in_steps(case)]
    yield from faults
    if not faults:
        yield green("schedule.points", "stages, ramps, validations and saves lie within the run")


def _beyond_in_tokens(case: Case) -> Iterator[Finding]:
    end = case.duration.num_tokens
    points = {f"data.stages[{n}].from_tokens": stage.from_tokens for n, stage in enumerate(case.config.data.stages)}
    points |= {f"training.batch_ramp[{n}].from_tokens": ramp.from_tokens for n, ramp in enumerate(case.config.training.batch_ramp)}
    for key, point in points.items():
        if point >= end:
            yield red(
                "schedule.points",
                f"{key} ({point:,}) is never reached: the run ends at {end:,} tokens; lengthen it, or leave that out",
            )


def _beyond_in_steps(case: Case) -> Iterator[Finding]:
    end, training, keep = case.duration.num_steps, case.config.training, case.config.checkpoint
    points = {f"training.validate_at_steps[{n}]": step for n, step in enumerate(training.validate_at_steps)}
    points |= {
        "training.validate_every_steps": training.validate_every_steps,
        "checkpoint.save_every_steps": keep.save_every_steps,
        "checkpoint.keep_every_steps": keep.keep_every_steps,
    }
    for key, step in points.items():
        if step > end:
            yield yellow("schedule.points", f"{key} ({step:,}) is never reached: the run has {end:,} steps; lower it")
    if keep.save_every_steps and keep.keep_every_steps % keep.save_every_steps:
        yield yellow(
            "schedule.points",
            f"checkpoint.keep_every_steps ({keep.keep_every_steps}) is no multiple of checkpoint.save_every_steps "
            f"({keep.save_every_steps}): most of those steps have no checkpoint to keep",
        )
