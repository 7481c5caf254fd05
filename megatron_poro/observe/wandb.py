"""wandb as a sink: one wandb run per run directory, also over restarts. WANDB_MODE (online, offline, disabled) is respected."""

import importlib
import importlib.util
import secrets
from pathlib import Path
from typing import Any

from megatron_poro.config import ObserveConfig
from megatron_poro.errors import ConfigError
from megatron_poro.observe.jsonl import Record


class WandbSink:
    """Logs steps and validations to the wandb run whose id is kept in the run directory."""

    def __init__(self, observe: ObserveConfig, run_directory: Path, config: dict[str, Any]) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(["observe.wandb_project: wandb is not installed; `pip install wandb` or leave the key empty"])
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=observe.wandb_project,
            entity=observe.wandb_entity or None,
            id=_run_id(run_directory / "wandb_id"),
            name=run_directory.name,
            resume="allow",
            dir=str(run_directory),
            config=config,
        )

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


def _run_id(path: Path) -> str:
    """The run's id: made once, then read back by every restart."""
    if not path.is_file():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
