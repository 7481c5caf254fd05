"""A checkpoint from a stranger cannot run code in a training run: its opaque objects are never opened."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

from tests.runs import MODEL, poro
from tests.training.test_resume import file_for

EXTRA_STATES = [f"decoder.layers.{part}._extra_state" for part in ("mlp.linear_fc1", "self_attention.linear_qkv")]


class Hostile:
    """Unpickles to a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def plant(checkpoint: Path, command: str) -> None:
    """Put the command where Transformer Engine's layers keep their state, as megatron-core would store it."""
    stored = io.BytesIO()
    torch.save(Hostile(command), stored)
    file = checkpoint / "__9_0.distcp"
    file.write_bytes(stored.getvalue())
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    for name in EXTRA_STATES:
        for layer in range(MODEL["num_layers"]):
            key = f"{name}/shard_{layer}_{MODEL['num_layers']}"
            metadata.state_dict_metadata[key] = dcp.BytesStorageMetadata()
            metadata.storage_data[dcp.MetadataIndex(key)] = filesystem._StorageInfo(file.name, 0, len(stored.getvalue()))
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    (checkpoint / "files.json").unlink(missing_ok=True)


def test_a_start_checkpoint_with_a_hostile_object_starts_the_run_and_runs_nothing(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "start", tmp_path / "start")
    plant(tmp_path / "start", f"touch {tmp_path / 'ran'}")
    run = file_for(tmp_path, inputs, checkpoint={"initial": str(tmp_path / "start")})
    poro("train", run, "--stop-after=1")
    assert not (tmp_path / "ran").exists()
    saved = tmp_path / "run" / "checkpoints" / "step_00000001"
    plant(saved, f"touch {tmp_path / 'ran'}")
    poro("train", run, "--stop-after=2")
    assert not (tmp_path / "ran").exists()
    assert json.loads((tmp_path / "run" / "checkpoints" / "step_00000002" / "state.json").read_text())["step"] == 2
