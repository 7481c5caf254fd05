"""wandb in a process of its own, `wandb_worker.py`, which reads records from its standard input.

Inside the trainer a server that hangs would hold up its exit (wandb waits for the server when the interpreter ends), and signals,
forks and the interpreter's lock would be shared. A process can be left alone, and killed. One that loses its trainer sees the end
of its input and marks the wandb run failed.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import IO, Any

from megatron_poro.observe.jsonl import Record
from megatron_poro.observe.wandb import Target

END_SECONDS = 12.0
"""How long its end may take; longer than wandb itself waits for a server then."""


class ProcessSink:
    """Hands records to the process. It is killed where it does not end, and with this one at the latest."""

    def __init__(self, target: Target, mode: str, earlier_bytes: int) -> None:
        command = [sys.executable, "-m", "megatron_poro.observe.wandb_worker"]
        environment = {**os.environ, "WANDB_SILENT": "true"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        atexit.register(self._kill)
        self._send({"target": asdict(target), "mode": mode, "earlier_bytes": earlier_bytes})

    def write(self, record: Record) -> None:
        """Hand one record over; waits while the process is busy."""
        self._send(record)

    def close(self) -> None:
        """Let the process finish the wandb run. Raises TimeoutError when it takes too long, RuntimeError when it failed."""
        self._send(None)
        self._pipe.close()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError("it does not end, and was killed") from None
        finally:
            self._kill()
            atexit.unregister(self._kill)
        if code:
            raise RuntimeError(f"it ended with exit code {code}")

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        return self._process.stdin

    def _send(self, content: Any) -> None:
        self._pipe.write(json.dumps(content).encode() + b"\n")
        self._pipe.flush()

    def _kill(self) -> None:
        """The process and wandb's own service."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
