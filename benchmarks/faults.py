"""A campaign of faults against real runs: after each the same command goes on, and at the end nothing may be missing.

    python benchmarks/faults.py --folder SCRATCH [--faults 200] [--seed 0] [--report faults.json]

Tiny runs of several processes on a CPU. One fault after another meets a run until it is done: SIGKILL of a rank in any phase, of
the launcher, SIGTERM, a rank that hangs or stops, an exception, a byte flipped or a file deleted in the newest checkpoint, a full
disk, a data file that is gone, a NaN in a gradient. Each has an exit code that it must give. A run that is done is compared with
one that was left alone: losses, gradient norms, weights and optimizer bit for bit, ledger, checkpoints kept, nothing left over,
every damaged checkpoint set aside with all that was left of it. The same seed gives the same faults; where a signal strikes a
process is up to the clock. Exits with 1 when anything differs.

The full disk needs root, or a kernel that lets users mount in a namespace of their own; without, those faults are left out, which
the report says.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its tokenize.py must not stand in for the standard library's

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults_runs import (
    LAYOUTS,
    SAVE_EVERY,
    STEPS,
    CampaignError,
    Life,
    differences,
    expect,
    leftovers,
    newest_step,
    start,
    wait_for_end,
    wait_for_step,
    write_run,
    write_sources,
)
from data_indexing.format import bin_path
from megatron_poro.engine.paths import list_checkpoints, step_of

NAN_STEPS = (9, 18, 27)
PHASES = ("start-up", "loading", "data", "forward", "backward", "gradients", "optimizer", "saving", "renaming", "validation")
STEP_PHASES = ("data", "forward", "backward", "gradients", "optimizer")
CHECKPOINT_FILES = (".metadata", "*.distcp", "common.pt", "config.toml", "files.json", "metadata.json", "model.json", "state.json")
KINDS = {
    "kill a rank": 30, "kill the launcher": 8, "SIGTERM": 8, "hang": 6, "stop": 3, "raise": 6, "flip a byte": 16,
    "delete a file": 8, "cut a file": 4, "full disk": 5, "data file gone": 4,
}  # fmt: skip
"""How often each kind is drawn, relative to the others. NaNs come at fixed steps of every other run."""
DISK_BYTES = 256 * 2**20


@dataclass
class Tally:
    """What was done and what it led to."""

    faults: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    runs: int = 0
    set_aside: int = 0
    seconds: float = 0.0


class Campaign:
    """Draws faults from a seeded generator and keeps count."""

    def __init__(self, folder: Path, seed: int, num_faults: int) -> None:
        self.folder, self.random, self.num_faults = folder, random.Random(seed), num_faults
        self.tally = Tally()
        self.can_mount = _can_mount(folder)
        self._references: dict[tuple[str, str], Path] = {}

    def go(self) -> None:
        """Runs under attack until the faults are spent, each then finished and compared."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sources(self.folder)
        while self.tally.faults.total() < self.num_faults:
            life = self._begin()
            try:
                self._attack(life)
                self._finish(life)
            finally:
                if life.disk:
                    subprocess.run(["umount", str(life.disk)], check=False)
            self.tally.runs += 1
            shutil.rmtree(life.folder)

    def _begin(self) -> Life:
        number = self.tally.runs
        layout = list(LAYOUTS)[number % len(LAYOUTS)]
        nan = ";".join(f"nan@rank=0,step={step}" for step in NAN_STEPS) if number % 2 else ""
        life = Life(
            self.folder / f"run{number}", self.folder / f"run{number}" / "run.toml", layout, nan, self._reference(layout, nan)
        )
        write_run(life.file, layout, self.folder / f"run{number}-data", self.folder)
        if self.can_mount:
            life.disk = life.run / "checkpoints"
            life.disk.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(life.disk)], check=True)
        return life

    def _reference(self, layout: str, nan: str) -> Path:
        """The same run, left alone."""
        if (layout, nan) not in self._references:
            folder = self.folder / f"reference{len(self._references)}"
            write_run(folder / "run.toml", layout, folder / "data", self.folder)
            expect(start(folder / "run.toml", nan), 0, "the run that is left alone")
            self._references[layout, nan] = folder / "run"
            self._say(f"{layout}{', with NaNs' * bool(nan)}: the run that is left alone is done")
        return self._references[layout, nan]

    def _attack(self, life: Life) -> None:
        while self.tally.faults.total() < self.num_faults and newest_step(life) < STEPS:
            kinds = [kind for kind in KINDS if kind != "full disk" or life.disk]
            kind = self.random.choices(kinds, [KINDS[kind] for kind in kinds])[0]
            attack: Callable[[Life], str] = getattr(self, f"_do_{kind.replace(' ', '_').lower()}")
            detail = attack(life)
            if detail:
                self.tally.faults[kind] += 1
                self.tally.details[f"{kind}: {detail}"] += 1
                self._say(f"{life.layout}, step {newest_step(life)}: {kind}, {detail}")

    def _finish(self, life: Life) -> None:
        self._start(life, "", {0}, "the last start")
        problems = [*differences(life), *leftovers(life)]
        if problems:
            raise CampaignError(f"{life.folder} ({life.layout}): " + "; ".join(problems))
        self.tally.set_aside += len(life.damaged)
        self._say(f"{life.layout}{', with NaNs' * bool(life.nan)}: done, and equal to the run that was left alone")

    def _start(
        self, life: Life, faults: str, codes: set[int], what: str, during: Callable[["subprocess.Popen[str]"], None] | None = None
    ) -> str:
        """One start of the command, with faults; its output."""
        self.tally.starts += 1
        done = start(life.file, ";".join(filter(None, [life.nan, faults])), during)
        if done.returncode not in codes:
            raise CampaignError(f"{what}: exit code {done.returncode}, expected {sorted(codes)}\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def _place(self, life: Life, phases: tuple[str, ...]) -> tuple[str, str]:
        """A phase, and where a rank meets it in the coming steps, in the words of PORO_FAULT."""
        phase = self.random.choice(phases)
        rank = self.random.randrange(life.num_ranks)
        first = newest_step(life)
        if phase in ("start-up", "loading"):
            return phase, f"rank={rank},phase={phase}"
        if phase in ("saving", "renaming", "validation"):
            step = min(first - first % SAVE_EVERY + SAVE_EVERY, STEPS)
            return phase, f"rank={0 if phase == 'renaming' else rank},step={step}-{STEPS},phase={phase},times=1"
        step = min(first + self.random.randint(1, 4 * SAVE_EVERY), STEPS)
        return phase, f"rank={rank},step={step},phase={phase}"

    def _do_kill_a_rank(self, life: Life) -> str:
        phase, where = self._place(life, PHASES)
        delay = f",delay={self.random.choice([0.001, 0.003, 0.01, 0.03])}" if self.random.random() < 0.5 else ""
        # A rank killed after its last word may have done its part: then all goes on, or is done.
        self._start(life, f"kill@{where}{delay}", {137, 0} if delay or phase == "renaming" else {137}, f"SIGKILL in {phase}")
        return phase

    def _do_kill_the_launcher(self, life: Life) -> str:
        step = min(newest_step(life) + self.random.randint(1, 6), STEPS)

        def kill(process: "subprocess.Popen[str]") -> None:
            wait_for_step(life.run, step, process)
            process.kill()

        self._start(life, "", {-signal.SIGKILL, 0}, "SIGKILL of the launcher", kill)
        wait_for_end(life)
        return "launcher"

    def _do_sigterm(self, life: Life) -> str:
        phase, where = self._place(life, STEP_PHASES)
        self._start(life, f"term@{where}", {75, 0}, f"SIGTERM in {phase}")
        return phase

    def _do_hang(self, life: Life) -> str:
        phase, where = self._place(life, STEP_PHASES)
        output = self._start(life, f"hang@{where}", {70}, f"hang in {phase}")
        rank = where.split("rank=")[1].split(",")[0]
        if f"rank {rank}" not in output or not list((life.run / "stacks").rglob("*")):
            raise CampaignError(f"hang in {phase}: rank {rank} is not named, or no stacks were written\n{output}")
        return phase

    def _do_stop(self, life: Life) -> str:
        phase, where = self._place(life, STEP_PHASES)
        self._start(life, f"stop@{where}", {70}, f"SIGSTOP in {phase}")
        return phase

    def _do_raise(self, life: Life) -> str:
        phase, where = self._place(life, STEP_PHASES)
        output = self._start(life, f"raise@{where}", {1}, f"an exception in {phase}")
        if "InjectedError" not in output:
            raise CampaignError(f"the exception is not shown\n{output}")
        return phase

    def _do_flip_a_byte(self, life: Life) -> str:
        def flip(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            path.write_bytes(content)

        return self._damage(life, flip)

    def _do_delete_a_file(self, life: Life) -> str:
        return self._damage(life, Path.unlink)

    def _do_cut_a_file(self, life: Life) -> str:
        return self._damage(life, lambda path: os.truncate(path, path.stat().st_size // 2))

    def _damage(self, life: Life, change: Callable[[Path], Any]) -> str:
        """Change a file of the newest checkpoint; the next start must set it aside."""
        found = list_checkpoints(life.run)
        if not found:
            return ""
        pattern = self.random.choice(CHECKPOINT_FILES)
        change(self.random.choice(sorted(found[-1].glob(pattern))))
        left = {path.name for path in found[-1].iterdir()}
        step = min(step_of(found[-1]) + self.random.randint(1, SAVE_EVERY), STEPS)
        output = self._start(life, f"kill@rank=0,step={step},phase=data", {137}, f"a start after a change of {pattern}")
        if f"{found[-1]} is set aside" not in output:
            raise CampaignError(f"{found[-1]}: a change of {pattern} was not seen\n{output}")
        life.damaged.append(left)
        return pattern

    def _do_full_disk(self, life: Life) -> str:
        """The disk of the checkpoints fills up while the run goes on over two saves."""
        filler = life.run / "checkpoints" / "filler"
        first = newest_step(life)
        if life.disk is None or first + 2 * SAVE_EVERY >= STEPS:
            return ""

        def fill(process: "subprocess.Popen[str]") -> None:
            with open(filler, "wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**16))
                    file.flush()
            wait_for_step(life.run, first + 2 * SAVE_EVERY, process)
            filler.unlink()
            process.send_signal(signal.SIGTERM)

        output = self._start(life, "", {75, 74, 0}, "a full disk", fill)
        if "was not saved" not in output:
            raise CampaignError(f"no save failed on the full disk\n{output}")
        return "tmpfs"

    def _do_data_file_gone(self, life: Life) -> str:
        path = bin_path(self.folder / f"{life.folder.name}-data" / self.random.choice(["fi", "en"]))
        hidden = path.with_suffix(".hidden")
        path.rename(hidden)
        output = self._start(life, "", {2}, "a data file that is gone")
        hidden.rename(path)
        if path.name not in output:
            raise CampaignError(f"{path} is not named\n{output}")
        return path.name

    def _say(self, text: str) -> None:
        print(f"{self.tally.faults.total():4d}  {text}", flush=True)


def _can_mount(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "mount"
    probe.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(probe)], check=False, capture_output=True).returncode == 0
    if mounted:
        subprocess.run(["umount", str(probe)], check=True)
    probe.rmdir()
    return mounted


def main() -> int:
    """Run the campaign and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder, made new")
    parser.add_argument("--faults", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--report", type=Path, help="write the counts as JSON")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    campaign, began = Campaign(args.folder, args.seed, args.faults), time.monotonic()
    problem = ""
    try:
        campaign.go()
    except CampaignError as error:
        problem = str(error)
    tally = campaign.tally
    report = {
        "seed": args.seed,
        "faults": tally.faults.total(),
        "by_kind": dict(tally.faults.most_common()),
        "by_place": dict(sorted(tally.details.items())),
        "nan_steps_in_every_other_run": list(NAN_STEPS),
        "runs": tally.runs,
        "starts": tally.starts,
        "checkpoints_set_aside": tally.set_aside,
        "full_disk_possible": campaign.can_mount,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "problem": problem,
    }
    if args.report:
        args.report.write_text(json.dumps(report, indent=2))
    print(json.dumps(report))
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
