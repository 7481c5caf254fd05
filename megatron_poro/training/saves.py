"""What becomes of the checkpoints of a run: into the metrics and onto the screen; old ones go when a new one counts."""

import sys
import time
from pathlib import Path
from typing import Any

from megatron_poro.config import RunConfig
from megatron_poro.engine.paths import remove_old_checkpoints, step_of
from megatron_poro.engine.saving import Order
from megatron_poro.observe import SinkGroup


class SaveNews:
    """Hears from the saver's thread on rank 0."""

    def __init__(self, config: RunConfig, sinks: SinkGroup) -> None:
        self._config, self._sinks = config, sinks

    def saved(self, order: Order) -> None:
        """A new checkpoint counts."""
        seconds = time.monotonic() - order.began
        self._write("checkpoint", order.target, seconds=seconds, ledger=order.state["ledger"])
        print(f"saved {order.target}", flush=True)
        if order.state["monitor"]["bad_steps"]:
            return  # the run may have to go back to the one before; a later save removes what is old by then
        keep = self._config.checkpoint
        try:
            remove_old_checkpoints(
                Path(self._config.run_directory), keep_last=keep.keep_last, keep_every_steps=keep.keep_every_steps
            )
        except OSError as error:
            print(f"warning: an old checkpoint could not be deleted: {error}", file=sys.stderr, flush=True)

    def failed(self, target: Path, problem: str) -> None:
        """A save was given up."""
        self._write("checkpoint_failed", target, problem=problem)
        print(
            f"warning: {target} was not saved: {problem}. The run's newest checkpoint is the one before. "
            "Free space before the next save",
            file=sys.stderr,
            flush=True,
        )

    def _write(self, event: str, target: Path, **values: Any) -> None:
        self._sinks.write({"event": event, "step": step_of(target), "time": time.time(), "path": str(target), **values})
