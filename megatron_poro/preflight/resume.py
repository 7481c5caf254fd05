"""The checkpoints that the run has: is the newest whole, and does the run file still ask for the run that it is of?"""

from collections.abc import Iterator
from dataclasses import replace

from megatron_poro.data import look_up_eod
from megatron_poro.engine.paths import find_newest, is_complete, read_state, step_of
from megatron_poro.errors import USER_ERRORS
from megatron_poro.preflight.case import BYTES_PER_PARAMETER, Case, count_parameters
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow
from megatron_poro.preflight.start import find_damage
from megatron_poro.training.resume import check_resume


def check_checkpoint(case: Case) -> Iterator[Finding]:
    """The newest is whole; one that is not is passed over by a resume, which costs its steps."""
    if not case.checkpoints:
        yield green("resume.checkpoint", f"none in {case.directory}: a new run")
        return
    newest = find_newest(case.directory)
    for path in reversed(case.checkpoints):
        if is_complete(path):
            break
        back = f"goes back to {newest.name}" if newest else "starts again from checkpoint.initial"
        yield red(
            "resume.checkpoint", f"{path} is not whole by its files.json: a resume sets it aside and {back}; restore its files"
        )
    if newest is None:
        return
    if step_of(newest) >= case.duration.num_steps:
        yield yellow(
            "resume.checkpoint",
            f"{newest} is the last of {case.duration.num_steps:,} steps: the run is done, nothing would be trained",
        )
    yield from find_damage("resume.checkpoint", newest, reads_all=case.reads_all)


def check_contract(case: Case) -> Iterator[Finding]:
    """Every determining key of the run file is the newest checkpoint's, or named in checkpoint.allow_changed."""
    newest, allowed = find_newest(case.directory), case.config.checkpoint.allow_changed
    if newest is None:
        return
    if case.data is None:
        yield not_checked("resume.contract", "the token files have to open first")
        return
    config = replace(case.config, data=look_up_eod(case.config.data))
    try:
        check_resume(config, newest, read_state(newest)["data"], case.data.fingerprint())
    except USER_ERRORS as error:
        yield red("resume.contract", str(error))
        return
    if allowed:
        yield yellow(
            "resume.contract",
            f"checkpoint.allow_changed lets {', '.join(allowed)} change against {newest}; empty it once that is done",
        )
    else:
        yield green("resume.contract", f"the run file is that of {newest.name}")


def check_optimizer(case: Case) -> Iterator[Finding]:
    """A checkpoint of the run is as large as weights and moments are."""
    newest = find_newest(case.directory)
    if newest is None:
        return
    wanted = BYTES_PER_PARAMETER[case.config.training.precision]
    width = sum(file.stat().st_size for file in newest.glob("*.distcp")) / count_parameters(case.config.model)
    text = f"{newest} holds {width:.1f} bytes a parameter, weights and optimizer are {wanted}"
    if width < 0.9 * wanted:
        yield red(
            "resume.optimizer",
            f"{text}: the optimizer's state is not in it, so a resume would begin with empty moments; take another checkpoint",
        )
    else:
        yield green("resume.optimizer", text)
