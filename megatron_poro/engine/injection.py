"""Faults on purpose, for tests and fault campaigns: nothing here acts unless PORO_FAULT is set.

    PORO_FAULT="kill@rank=1,step=5,phase=forward" poro train RUN.toml

One or more faults, separated by `;`, each `ACTION@key=value,...`:

    kill     SIGKILL to the rank                    hang   sleep for ever
    stop     SIGSTOP to the rank                    raise  an exception, InjectedError
    term     SIGTERM to the rank's parent: the launcher, or the rank's supervisor under srun and torchrun
    nan      a NaN into a gradient of the rank      spike  its gradients times `factor` (default 1000)
    flip     one bit of one weight of the rank      slow   the rank runs `factor` (default 2) times as slow from there on

    rank        which one (required)
    step        the step being taken, from 1, or the first and last of several (`5-7`); without it any
    phase       start-up, loading, data, forward, backward, gradients, optimizer, checking, validation, saving, renaming or
                ending (required): the fault happens as the rank enters it (nan and spike: always `gradients`, flip: `checking`)
    occurrence  the how-manieth time in that step, from 1 (forward and backward: the microbatch)
    delay       seconds from there until it happens (kill, term and stop)
    times       how often it happens in the life of a process (default 1, or the number of steps named)

`saving` is entered before the shards are written and `renaming` before the finished folder gets its name.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from megatron_poro.errors import LaunchError

FAULT = "PORO_FAULT"
PHASES = (
    *("start-up", "loading", "data", "forward", "backward", "gradients", "optimizer", "checking", "validation", "saving"),
    *("renaming", "ending"),
)
PHASE_OF_ACTION = {"nan": "gradients", "spike": "gradients", "flip": "checking"}
FACTOR_OF_ACTION = {"spike": 1000.0, "slow": 2.0}
ACTIONS = ("kill", "term", "stop", "hang", "raise", "nan", "spike", "flip", "slow")
SIGNAL_ACTIONS = ("kill", "term", "stop")
SLICE_SECONDS = 0.002


class InjectedError(Exception):
    """What `raise` raises."""


@dataclass(frozen=True)
class Fault:
    """One fault; see the head of this file. `last_step` 0 means any step."""

    action: str
    rank: int
    phase: str
    first_step: int = 0
    last_step: int = 0
    occurrence: int = 0
    delay: float = 0.0
    factor: float = 1.0
    times: int = 1


def parse_faults(text: str) -> list[Fault]:
    """The faults that PORO_FAULT asks for. Raises LaunchError for whatever it does not understand."""
    try:
        return [_parse_fault(part) for part in text.split(";") if part.strip()]
    except (ValueError, KeyError) as error:
        raise LaunchError(f"{FAULT}: {text!r} cannot be read: {error}; see megatron_poro/engine/injection.py") from None


def _parse_fault(text: str) -> Fault:
    action, _, rest = text.strip().partition("@")
    if action not in ACTIONS:
        raise ValueError(f"{action!r} is none of {', '.join(ACTIONS)}")
    given = dict(_parse_pair(pair) for pair in rest.split(","))
    if unknown := given.keys() - {"step", *(f.name for f in fields(Fault))} | given.keys() & {"action", "first_step", "last_step"}:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    if "rank" not in given:
        raise ValueError("`rank` is missing")
    first, last = _parse_steps(given["step"]) if "step" in given else (0, 0)
    fault = Fault(
        action=action,
        rank=int(given["rank"]),
        phase=given.get("phase", PHASE_OF_ACTION.get(action, "")),
        first_step=first,
        last_step=last,
        occurrence=int(given.get("occurrence", "0")),
        delay=float(given.get("delay", "0")),
        factor=float(given.get("factor", FACTOR_OF_ACTION.get(action, 1.0))),
        times=int(given.get("times", last - first + 1)),
    )
    _check_fault(fault, given)
    return fault


def _parse_pair(text: str) -> tuple[str, str]:
    key, sign, value = text.strip().partition("=")
    if not (key and sign and value):
        raise ValueError(f"{text!r} is not key=value")
    return key, value


def _parse_steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not 1 <= int(first) <= int(last or first):
        raise ValueError(f"step={text} is no step or range of steps")
    return int(first), int(last or first)


def _check_fault(fault: Fault, given: dict[str, str]) -> None:
    if not fault.phase:
        raise ValueError("`phase` is missing")
    if fault.phase not in PHASES:
        raise ValueError(f"phase {fault.phase!r} is none of {', '.join(PHASES)}")
    if fault.phase != PHASE_OF_ACTION.get(fault.action, fault.phase):
        raise ValueError(f"{fault.action} happens at phase {PHASE_OF_ACTION[fault.action]}")
    if fault.delay and fault.action not in SIGNAL_ACTIONS:
        raise ValueError(f"`delay` is for {', '.join(SIGNAL_ACTIONS)}")
    if "factor" in given and fault.action not in FACTOR_OF_ACTION:
        raise ValueError(f"`factor` is for {', '.join(FACTOR_OF_ACTION)}")


def read_injection(environment: Mapping[str, str], rank: int) -> "Injection | None":
    """The faults that the environment asks of this rank; None, and nothing is ever done, when it asks for none."""
    faults = parse_faults(environment.get(FAULT, ""))
    return Injection(faults, rank) if any(fault.rank == rank for fault in faults) else None


class Injection:
    """The faults of one rank. `chunks` is the model, once there is one, for the faults that touch it."""

    def __init__(self, faults: list[Fault], rank: int) -> None:
        self.chunks: list[Any] = []
        self._faults = [fault for fault in faults if fault.rank == rank]
        self._times = [0] * len(self._faults)
        self._seen: Counter[tuple[str, int]] = Counter()

    def reach(self, phase: str, step: int) -> None:
        """The rank enters `phase` of `step`."""
        self._seen[phase, step] += 1
        for n, fault in enumerate(self._faults):
            if self._times[n] < fault.times and self._is_due(fault, phase, step):
                self._times[n] += 1
                self._do(fault, step)

    def _is_due(self, fault: Fault, phase: str, step: int) -> bool:
        is_step = not fault.last_step or fault.first_step <= step <= fault.last_step
        is_turn = not fault.occurrence or fault.occurrence == self._seen[phase, step]
        return phase == fault.phase and is_step and is_turn

    def _do(self, fault: Fault, step: int) -> None:
        where = f"rank {fault.rank}, step {step}, {fault.phase}"
        print(f"fault on purpose: {fault.action} on {where}", file=sys.stderr, flush=True)
        act = _act(fault, self.chunks)
        if not fault.delay:
            act()
            return
        timer = threading.Timer(fault.delay, act)
        timer.daemon = True
        timer.start()


def _act(fault: Fault, chunks: list[Any]) -> Callable[[], None]:
    pid = os.getpid()
    actions: dict[str, Callable[[], None]] = {
        "kill": lambda: os.kill(pid, signal.SIGKILL),
        "term": lambda: os.kill(os.getppid(), signal.SIGTERM),
        "stop": lambda: os.kill(pid, signal.SIGSTOP),
        "hang": hang,
        "raise": _raise,
        "nan": lambda: _spoil_gradients(chunks, None),
        "spike": lambda: _spoil_gradients(chunks, fault.factor),
        "flip": lambda: _flip_bit(chunks),
        "slow": lambda: slow_down(pid, fault.factor),
    }
    return actions[fault.action]


def hang() -> None:
    """Sleep for ever."""
    while True:
        time.sleep(3600)


def _raise() -> None:
    raise InjectedError("a fault on purpose")


def _spoil_gradients(chunks: list[Any], factor: float | None) -> None:
    """Multiply all gradients, or make one of them NaN."""
    for chunk in chunks:
        for buffer in chunk.buffers:
            if factor is None:
                buffer.grad_data[:1].fill_(float("nan"))
            else:
                buffer.grad_data.mul_(factor)


def _flip_bit(chunks: list[Any]) -> None:
    """The lowest bit of the first weight of the last matrix."""
    import torch

    weight = [parameter for parameter in chunks[-1].parameters() if parameter.dim() > 1][-1]
    whole = torch.int16 if weight.element_size() == 2 else torch.int32
    weight.data.view(whole).view(-1)[0] ^= 1


def slow_down(pid: int, factor: float) -> None:
    """Let a helper stop the process for all but 1 / `factor` of the time, in slices of milliseconds: a slow machine."""
    program = (
        "import os, signal, time\n"
        f"parent, run, rest = {pid}, {SLICE_SECONDS}, {SLICE_SECONDS * (factor - 1)}\n"
        "while os.getppid() == parent:\n"
        "    os.kill(parent, signal.SIGSTOP); time.sleep(rest)\n"
        "    os.kill(parent, signal.SIGCONT); time.sleep(run)\n"
    )
    subprocess.Popen([sys.executable, "-c", program])
