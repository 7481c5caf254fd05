"""This machine and what the run reports to: wandb, clock, locale, umask."""

import locale
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from megatron_poro.errors import USER_ERRORS
from megatron_poro.observe.wandb import check_wandb, has_key
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.disk import existing_folder
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow

WANDB_SECONDS = 2.0
CLOCK_SECONDS = 5.0
"""Two clocks that differ by more make silences and times in records hard to read."""


def check_wandb_mode(case: Case) -> Iterator[Finding]:
    """wandb is asked for, installed, and where it is online, its server answers within two seconds."""
    if not case.config.observe.wandb_project:
        yield yellow(
            "wandb.mode",
            "observe.wandb_project: empty, so the run is seen in its directory alone (`poro watch`, `poro report`); name a project",
        )
        return
    try:
        check_wandb()
    except USER_ERRORS as error:
        yield red("wandb.mode", str(error))
        return
    asked = case.around.environment.get("WANDB_MODE")
    mode = asked.value if asked else "offline" if case.around.profile and case.around.profile.scheduler == "slurm" else ""
    if mode in ("offline", "dryrun", "disabled"):
        yield green(
            "wandb.mode", f"{mode}; `poro wandb-sync {case.directory} --watch 300` on a login node uploads as the run goes on"
        )
    elif not has_key():
        yield yellow("wandb.mode", "wandb has no key here and stays offline; `wandb login`, or WANDB_MODE=offline if that is meant")
    else:
        yield from _check_server()


def _check_server() -> Iterator[Finding]:
    address = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=WANDB_SECONDS):
            yield green("wandb.mode", f"online; {address.hostname} answers")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        yield yellow(
            "wandb.mode",
            f"{address.hostname} does not answer ({reason}): the run goes on and catches up; WANDB_MODE=offline saves the attempts",
        )


def check_clock(case: Case) -> Iterator[Finding]:
    """The time of a new file, which the file system's server gives, against this machine's."""
    folder = existing_folder(case.directory.absolute())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".poro-check-") as file:
            before = time.time()
            os.utime(file.name)
            difference = os.stat(file.name).st_mtime - before
    except OSError as error:
        yield not_checked("machine.clock", f"{folder} cannot be written ({error.strerror})")
        return
    text = f"the file system's clock and this machine's differ by {abs(difference):.1f} s"
    if abs(difference) > CLOCK_SECONDS:
        yield yellow(
            "machine.clock",
            f"{text}, above {CLOCK_SECONDS:g}: times in records and silences of ranks mislead; have it synchronised",
        )
    else:
        yield green("machine.clock", text)


def check_locale(case: Case) -> Iterator[Finding]:
    """Texts and names are UTF-8 unless said otherwise."""
    found = locale.getpreferredencoding(False), sys.getfilesystemencoding()
    if {name.lower().replace("-", "") for name in found} == {"utf8"}:
        yield green("machine.locale", "UTF-8")
    else:
        yield yellow(
            "machine.locale", f"texts are {found[0]}, file names {found[1]}: Finnish names and texts break; export LC_ALL=C.UTF-8"
        )


def check_umask(case: Case) -> Iterator[Finding]:
    """The group may read what the run makes, and nobody else may write it."""
    mask = read_umask()
    if mask & 0o040:
        yield yellow("machine.umask", f"umask {mask:04o}: your group cannot read the run's checkpoints; `umask 0027` lets it")
    elif not mask & 0o002:
        yield yellow("machine.umask", f"umask {mask:04o}: everybody may write into the run's files; `umask 0027`")
    else:
        yield green("machine.umask", f"{mask:04o}")


def read_umask() -> int:
    """The mask, read without changing it."""
    match = re.search(r"^Umask:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1], 8) if match else 0o022
