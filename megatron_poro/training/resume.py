"""The resume contract: what a checkpoint determines must be the same in the run file, or be named in checkpoint.allow_changed.

Free to change: the layout, the micro-batch, validation, checkpoint and observe settings, and where files lie.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_poro.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig, load_run
from megatron_poro.errors import CheckpointError

DETERMINING = {
    "model": None,
    "training": ("steps", "tokens", "global_batch_size", "batch_ramp", "precision"),
    "optimizer": None,
    "data": ("reset_attention_mask", "reset_position_ids", "eod_token_id"),
}
"""Sections of the run file, and the keys in them (None: all), that decide what the next step computes."""
SECTIONS: dict[str, type] = {"model": ModelConfig, "training": TrainingConfig, "optimizer": OptimizerConfig, "data": DataConfig}
IGNORED = frozenset({"model.shape", "model.initializer_std", "model.max_position_embeddings"})


def check_resume(config: RunConfig, checkpoint: Path, saved_data: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming every determining value that differs from the checkpoint's and is not allowed to."""
    saved = load_run(checkpoint / "config.toml")
    changes = [*_changed_keys(saved, config), *_changed_values("data", saved_data, data)]
    allowed = config.checkpoint.allow_changed
    _check_names(allowed, saved_data)
    refused = [change for change in changes if not any(_covers(name, change[0]) for name in allowed)]
    if refused:
        listed = "; ".join(f"{key} was {before}, is {after}" for key, before, after in refused)
        names = ", ".join(f'"{key}"' for key, _, _ in refused)
        raise CheckpointError(
            f"{checkpoint}: the run file differs from what this run was trained with: {listed}. Restore it, use another "
            f"run_directory, or allow it with checkpoint.allow_changed = [{names}]"
        )


def _check_names(allowed: Sequence[str], saved_data: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a name in allow_changed that no resume compares."""
    for name in allowed:
        section, _, key = name.partition(".")
        keys = DETERMINING.get(section, ())
        known = [f.name for f in fields(SECTIONS[section])] if keys is None else list(keys)
        known += saved_data if section == "data" else []
        if section not in DETERMINING or (key and key.partition(".")[0].partition("[")[0] not in known):
            raise CheckpointError(
                f"checkpoint.allow_changed: {name!r} is nothing that a resume compares; "
                f"it compares {', '.join(f'{section}.{key}' for key in known) or ', '.join(f'{name}.*' for name in DETERMINING)}"
            )


def _changed_keys(saved: RunConfig, config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    for section, keys in DETERMINING.items():
        before, after = asdict(getattr(saved, section)), asdict(getattr(config, section))
        for key in keys or before:
            name = f"{section}.{key}"
            if name not in IGNORED and before[key] != after[key]:
                yield name, before[key], after[key]


def _changed_values(key: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Leaves that differ between two pieces of plain data, each with its full key."""
    if isinstance(before, Mapping) and isinstance(after, Mapping) and before.keys() == after.keys():
        for name in before:
            yield from _changed_values(f"{key}.{name}", before[name], after[name])
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for n, (left, right) in enumerate(zip(before, after, strict=True)):
            yield from _changed_values(f"{key}[{n}]", left, right)
    elif before != after:
        yield key, before, after


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith((f"{allowed}.", f"{allowed}["))
