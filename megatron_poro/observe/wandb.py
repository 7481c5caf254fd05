"""wandb as a sink: one wandb run per run directory, also over restarts. WANDB_MODE (online, offline, disabled) is respected."""

import importlib
import importlib.util
import secrets
import sys
from pathlib import Path
from typing import Any

from megatron_poro.config import ObserveConfig
from megatron_poro.errors import ConfigError
from megatron_poro.observe.jsonl import Record

INIT_TIMEOUT_SECONDS = 30.0


class WandbSink:
    """Logs steps and validations to the wandb run whose id is kept in the run directory."""

    def __init__(self, observe: ObserveConfig, run_directory: Path, config: dict[str, Any]) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(["observe.wandb_project: wandb is not installed; `pip install wandb` or leave the key empty"])
        wandb: Any = importlib.import_module("wandb")
        settings = {
            "project": observe.wandb_project,
            "entity": observe.wandb_entity or None,
            "id": _run_id(run_directory / "wandb_id"),
            "name": run_directory.name,
            "resume": "allow",
            "dir": str(run_directory),
            "config": config,
        }
        try:
            self._run = wandb.init(**settings, settings=wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS))
        except Exception as error:  # no key, no network: the run goes on, and `wandb sync` finds everything later
            print(f"warning: wandb goes on offline, in {run_directory / 'wandb'}: {_first_line(error)}", file=sys.stderr)
            self._run = wandb.init(**settings, mode="offline")

    def write(self, record: Record) -> None:
        """Log the numbers of a step or a validation under the step's number."""
        if record["event"] == "step":
            names = ("loss", "gradient_norm", "learning_rate", "tokens", "tokens_per_second")
            self._run.log({f"train/{name}": record[name] for name in names}, step=record["step"])
        elif record["event"] == "validation":
            losses = {f"validation/{name}": loss for name, loss in record["losses"].items()}
            self._run.log(losses, step=record["step"])

    def close(self) -> None:
        """Mark the wandb run finished."""
        self._run.finish()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _run_id(path: Path) -> str:
    """The run's id: made once, then read back by every restart."""
    if not path.is_file():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
