"""Where the run writes: may it, and is there room for every checkpoint that is kept and the one that is being written?"""

import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, not_checked, red, size, yellow

QUOTA_SECONDS = 5
MANY = 20
"""Checkpoints, beyond which keeping all of them is rarely meant."""


def existing_folder(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def check_writable(case: Case) -> Iterator[Finding]:
    """A file can be made where the run directory is, or will be."""
    folder = existing_folder(case.directory.absolute())
    blocking = next((each for each in (case.directory, *case.directory.parents) if each.exists() and not each.is_dir()), None)
    if blocking:
        yield red(
            "disk.writable", f"run_directory: {blocking} is a file, not a folder; move it away or choose another run_directory"
        )
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".poro-check-"):
            pass
    except OSError as error:
        yield red(
            "disk.writable",
            f"run_directory: {folder} cannot be written ({error.strerror}); choose another, or ask for the right to",
        )
        return
    yield green("disk.writable", f"{folder}")


def check_space(case: Case) -> Iterator[Finding]:
    """14 bytes a parameter (12 in fp32) for each checkpoint that will be kept, and for one more while it is written."""
    each, keep = case.checkpoint_bytes, case.config.checkpoint
    kept, missing = kept_checkpoints(case), missing_checkpoints(case)
    free = shutil.disk_usage(existing_folder(case.directory.absolute())).free
    text = (
        f"checkpoint.keep_last ({keep.keep_last}) and save_every_steps ({keep.save_every_steps}) keep {kept:,} checkpoints of "
        f"{size(each)}; {missing:,} are still to be written, {size(missing * each)} with the one in writing"
    )
    if missing * each > free:
        yield red("disk.space", f"{text}, and {size(free)} are free; keep fewer, save less often, or free space")
    elif not keep.keep_last and kept > MANY:
        yield yellow(
            "disk.space", f"{text}; keep_last = 0 keeps all of them: set keep_last, and keep_every_steps for what is to stay"
        )
    else:
        yield green("disk.space", f"{text}, {size(free)} are free")


def kept_checkpoints(case: Case) -> int:
    """How many checkpoints the retention policy keeps at the end: the newest ones, and of those before them every so-manieth."""
    keep, end = case.config.checkpoint, case.duration.num_steps
    every = keep.save_every_steps or end
    num_saves = max(end - 1, 0) // every + 1
    newest = min(keep.keep_last or num_saves, num_saves)
    first_of_newest = end if newest == 1 else (num_saves - newest + 1) * every
    for_ever = (first_of_newest - 1) // math.lcm(every, keep.keep_every_steps) if keep.keep_every_steps else 0
    return newest + for_ever


def missing_checkpoints(case: Case) -> int:
    """How many the disk has to take yet: those not there, and one that is written before an old one goes."""
    return max(kept_checkpoints(case) - len(case.checkpoints), 0) + 1


def check_quota(case: Case) -> Iterator[Finding]:
    """Lustre's quota of the folder's project, or of its group; nothing is said where there is no `lfs`."""
    if not shutil.which("lfs"):
        return
    folder = existing_folder(case.directory.absolute())
    found = read_quota(folder)
    if found is None:
        yield not_checked("disk.quota", f"`lfs quota` gives none for {folder}")
        return
    used, limit = found
    needed = missing_checkpoints(case) * case.checkpoint_bytes
    text = f"{size(used)} of {size(limit)} are used, checkpoints still take {size(needed)}"
    if used + needed > limit:
        yield red("disk.quota", f"{text}, more than the quota; keep fewer (checkpoint.keep_last), or free space")
    elif used + needed > 0.9 * limit:
        yield yellow("disk.quota", f"{text}: above 90 % of the quota; keep fewer, or free space")
    else:
        yield green("disk.quota", text)


def read_quota(folder: Path) -> tuple[float, float] | None:
    """Bytes used and allowed, by `lfs`; None where nothing limits."""
    project = re.match(r"\s*(\d+)", _ask("lfs", "project", "-d", str(folder)))
    words = [["-p", project[1]]] if project and project[1] != "0" else []
    for word in (*words, ["-g", str(os.stat(folder).st_gid)], ["-u", str(os.getuid())]):
        numbers = re.findall(r"\s(\d+)\*?", _ask("lfs", "quota", "-q", *word, str(folder)).removeprefix(str(folder)))
        if len(numbers) >= 3:  # kilobytes used, quota, limit
            used, soft, hard = (int(number) * 1024 for number in numbers[:3])
            if soft or hard:
                return used, soft or hard
    return None


def _ask(*words: str) -> str:
    """What a command prints; nothing when it does not end in time. It is not waited for: it may be stuck in the kernel."""
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return process.communicate(timeout=QUOTA_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
    except OSError:
        pass
    return ""
