"""What a rank is doing, told to whoever watches it: `enter(phase)` at every change, about a microsecond each.

Three things hang on it: the heartbeat that the supervisor reads (`heartbeat.py`), the seconds of each phase that slow ranks are
found by, and the faults that tests ask for (`injection.py`). Without a supervisor all of it stays quiet. Imports no torch.
"""

import enum
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_poro.engine.heartbeat import Beat, BeatFile
from megatron_poro.engine.injection import Injection

WINDOW = 50
"""Good steps that the slowest is taken over: one slow step long ago does not keep the limit high."""


class Phase(enum.IntEnum):
    """What a rank can be doing, in the order of a step."""

    STARTUP = 0
    LOADING = 1
    DATA = 2
    FORWARD = 3
    BACKWARD = 4  # or waiting for a neighbour stage
    GRADIENTS = 5
    OPTIMIZER = 6
    CHECKING = 7
    VALIDATION = 8
    SAVING = 9
    RENAMING = 10
    ENDING = 11

    @property
    def label(self) -> str:
        """The name in messages and in PORO_FAULT."""
        return "start-up" if self is Phase.STARTUP else self.name.lower()


IN_STEP = frozenset({Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.GRADIENTS, Phase.OPTIMIZER})


@dataclass(frozen=True)
class Limits:
    """Silence that counts as a hang; see FaultsConfig for the keys of these names."""

    factor: float = 0.0
    least_seconds: float = 0.0
    other_seconds: float = 0.0


def limit_in_force(phase: Phase, limits: Limits, slowest_seconds: float) -> float:
    """Seconds of silence in `phase` that count as a hang; 0: none do. Before the first step is done nothing is known of steps."""
    if not limits.factor:
        return 0.0
    if phase in IN_STEP and slowest_seconds:
        return max(limits.least_seconds, limits.factor * slowest_seconds)
    return limits.other_seconds


@dataclass
class Pulse:
    """Where this rank stands, and what it spent on each phase since the last `take_seconds`."""

    limits: Limits = Limits()
    file: BeatFile | None = None
    injection: Injection | None = None
    phase: Phase = Phase.STARTUP
    step: int = 0
    microbatch: int = 0
    sequence: int = 0
    entered: float = field(default_factory=time.monotonic)
    seconds: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.0))
    slowest: float = 0.0
    recent: "deque[float]" = field(default_factory=lambda: deque(maxlen=WINDOW))

    def enter(self, phase: Phase) -> None:
        """Note the time of the phase that ends here, beat, and let a fault that was asked for happen."""
        now = time.monotonic()
        self.seconds[self.phase] += now - self.entered
        self.entered = now
        if phase is Phase.FORWARD:
            self.microbatch += 1
        self.phase = phase
        self.beat()
        if self.injection is not None:
            self.injection.reach(phase.label, self.step)

    def beat(self) -> None:
        """Tell the supervisor that this rank lives."""
        if self.file is not None:
            limit = limit_in_force(self.phase, self.limits, self.slowest)
            self.sequence += 1
            self.file.write(Beat(self.step, self.microbatch, self.phase, self.sequence, time.time(), limit, self.slowest))


_pulse = Pulse()


def start_pulse(pulse: Pulse) -> None:
    """Let the calls below reach `pulse`, from start-up on."""
    global _pulse  # noqa: PLW0603 - one process is one rank
    _pulse = pulse
    pulse.enter(Phase.STARTUP)


def enter(phase: Phase) -> None:
    """This rank begins `phase`; within a phase that takes long, calling it again shows that it lives."""
    _pulse.enter(phase)


def reached(phase: Phase, step: int) -> None:
    """A fault asked for at `phase` of `step` may happen here. For threads beside training, which has gone on since."""
    if _pulse.injection is not None:
        _pulse.injection.reach(phase.label, step)


def begin_step(step: int) -> None:
    """The step numbered `step`, from 1, begins with its data."""
    _pulse.step, _pulse.microbatch = step, 0
    _pulse.enter(Phase.DATA)


def end_step(seconds: float) -> None:
    """The step was good and took `seconds`: what is waited for within a step follows from it."""
    _pulse.recent.append(seconds)
    _pulse.slowest = max(_pulse.recent)
    _pulse.microbatch = 0


def resume_at(step: int) -> None:
    """The run stands after `step` steps."""
    _pulse.step, _pulse.microbatch = step, 0


def last_step_seconds() -> float:
    """Seconds that the last good step took; 0 before the first."""
    return _pulse.recent[-1] if _pulse.recent else 0.0


def watch_model(chunks: Sequence[Any]) -> None:
    """Make the model known to the faults that touch it."""
    if _pulse.injection is not None:
        _pulse.injection.chunks = list(chunks)


def seconds_by_phase() -> dict[Phase, float]:
    """Seconds spent in each phase since the process began, up to now."""
    running = time.monotonic() - _pulse.entered
    return {**_pulse.seconds, _pulse.phase: _pulse.seconds[_pulse.phase] + running}


def seconds_in(phase: Phase) -> float:
    """Seconds spent in `phase` since the process began."""
    return _pulse.seconds[phase]
