"""Checkpoints of a run are megatron-core's: its own strict loader finds every number where ours does, at any layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import MODEL, REPOSITORY, RUN, poro, write_run


@pytest.mark.parametrize(
    ("precision", "parallel", "tied"),
    [("fp32", {"tensor": 2, "data": 2}, False), ("bf16", {"pipeline": 2, "data": 2}, True)],
    ids=["fp32, TP2 x DP2, padded", "bf16, PP2 x DP2, tied"],
)
def test_megatron_core_loads_what_a_run_saved(
    precision: str, parallel: dict[str, int], tied: bool, inputs: Path, tmp_path: Path
) -> None:
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    # 257 tokens make one row of padding at two-way tensor parallelism.
    model = {**MODEL, "tied_embeddings": True} if tied else {**MODEL, "vocab_size": 257}
    changes = {"model": model, "parallel": parallel, "data": {"sources": sources}, "training": {"precision": precision}}
    poro("train", write_run(tmp_path / "run.toml", changes), "--stop-after=2")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.engine.reload_program",
        str(checkpoint),
        "1x1x1",
        "2x2x1",
        "2x1x2",
        "1x1x3",
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("equal") == 1 + 4 + 4 + 3
