"""One rank from its first line to its exit code: it tells its supervisor that it lives, trains, and says why it ends."""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_poro.config import FaultsConfig, RunConfig
from megatron_poro.engine.heartbeat import HEARTBEATS, BeatFile, beat_path, stacks_path
from megatron_poro.engine.injection import read_injection
from megatron_poro.engine.launch import World, export_world
from megatron_poro.engine.phases import Limits, Pulse, start_pulse
from megatron_poro.errors import STOPPED_CODE, UNSAVED_CODE, USER_ERROR_CODE, USER_ERRORS, WEIGHTS_CODE, UnsavedError, WeightsError
from megatron_poro.topology import Layout
from megatron_poro.training.failures import Failure, Start, load_start, lost_a_peer, report_failure, wait_for_failure
from megatron_poro.training.lock import lock_run
from megatron_poro.training.signals import Requests

if TYPE_CHECKING:
    from megatron_poro.engine.platform import Platform

HOLD_BACK_SECONDS = 10.0
"""How long a rank that lost a peer waits to hear whose fault it was, before it takes it for its own."""
BUG_CODE = 1


def run_rank(config: RunConfig, world: World, *, prepare: Callable[[], Layout], last_step: int) -> int:
    """Train as one rank. After an error this rank ends at once, without another collective: the others may be anywhere.

    `prepare` gives the layout and raises the user's mistakes.
    """
    directory = Path(os.environ[HEARTBEATS])
    start = load_start(directory)
    _show_life(world, directory, config.faults)
    requests = Requests(Path(config.run_directory) if world.rank == 0 else None)
    requests.listen()
    try:
        export_world(world)
        layout = prepare()
        platform = load_engine(world.local_rank)
        from megatron_poro.training.loop import train  # loaded by now

        with lock_run(Path(config.run_directory)) if world.rank == 0 and not world.is_local else contextlib.nullcontext():
            reached = train(config, world, layout, platform, requests=requests, last_step=last_step)
        requests.close()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # torch raises a BaseException when a checkpoint cannot be written
        code = _explain_end(start, world, error)
        sys.stdout.flush()
        os._exit(code)
    return 0 if reached else STOPPED_CODE


def load_engine(local_rank: int = 0) -> "Platform":
    """Load torch, and megatron-core, which must find the platform; returns that."""
    _quiet_known_warnings()
    from megatron_poro.engine.platform import start_platform

    platform = start_platform(local_rank)
    import megatron_poro.training.loop  # noqa: F401

    return platform


def _show_life(world: World, directory: Path, faults: FaultsConfig) -> None:
    """Let SIGQUIT write this process's stacks, whatever it is stuck in, and begin to beat."""
    stacks = open(stacks_path(directory, world.rank), "a")  # noqa: SIM115 - lives as long as the rank
    faulthandler.register(signal.SIGQUIT, file=stacks, all_threads=True)
    limits = Limits(faults.hang_factor, faults.hang_least_seconds, faults.hang_other_seconds)
    injection = read_injection(os.environ, world.rank)
    start_pulse(Pulse(limits=limits, file=BeatFile(beat_path(directory, world.rank)), injection=injection))


def _quiet_known_warnings() -> None:
    """megatron-core warns on import about optional packages (`poro doctor` lists them) and about its own use of torch."""
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _explain_end(start: Start, world: World, error: BaseException) -> int:
    """Say why this rank ends; returns its exit code. What another rank's end caused is a line; what all would say is said once."""
    is_lost = lost_a_peer(error)
    if is_lost and (failure := wait_for_failure(start, HOLD_BACK_SECONDS)) is not None:
        if failure.kind != "user":
            time.sleep(0.3)  # the one whose fault it is speaks first
            _say(_name(world), f"ends because rank {failure.rank} on {failure.host} {_verb(failure)}: {_last_line(error)}")
        return failure.code
    code, kind = _code_and_kind(error)
    message = str(error) if kind != "bug" else "".join(traceback.format_exception(error))
    first = report_failure(start, kind, world.rank, code, _last_line(error))
    is_said = first.kind in ("user", "weights") and first.rank != world.rank and first.code == code
    if is_lost:
        _say(_name(world), f"lost another rank, and nobody said why within {HOLD_BACK_SECONDS:.0f} s: a node may be gone")
    if not is_said:
        _say(_name(world) if kind == "bug" else "error", message)
    return code


def _code_and_kind(error: BaseException) -> tuple[int, str]:
    if isinstance(error, WeightsError):
        return WEIGHTS_CODE, "weights"
    if isinstance(error, UnsavedError):
        return UNSAVED_CODE, "user"
    return (USER_ERROR_CODE, "user") if isinstance(error, USER_ERRORS) else (BUG_CODE, "bug")


def _verb(failure: Failure) -> str:
    return "is silent" if failure.kind == "hang" else f"failed ({failure.message})"


def _name(world: World) -> str:
    return f"error: rank {world.rank} on {socket.gethostname()}"


def _say(prefix: str, message: str) -> None:
    print("\n".join(f"{prefix}: {line}" for line in message.rstrip().splitlines()), file=sys.stderr, flush=True)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
