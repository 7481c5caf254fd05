"""Activations that are computed again are the same numbers: losses, gradient norms and weights to the last bit."""

from pathlib import Path

import pytest

from megatron_poro.conversion import verify
from tests.runs import RUN, losses_of, poro, write_run


def train(folder: Path, inputs: Path, recompute: str, *overrides: str) -> Path:
    folder.mkdir()
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    changes = {"data": {"sources": sources}, "training": {"steps": 4, "recompute": recompute}}
    checkpoint = {"initial": str(inputs / "start"), "save_every_steps": 0}
    poro("train", write_run(folder / "run.toml", {**changes, "checkpoint": checkpoint}), *overrides)
    return folder / "run"


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="one process"),
        pytest.param(
            ("parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2", "parallel.virtual_stages=2"),
            id="TP2 x PP2 with sequence parallelism and virtual stages",
        ),
    ],
)
def test_recompute_changes_no_bit_in_fp32(overrides: tuple[str, ...], inputs: Path, tmp_path: Path) -> None:
    kept = train(tmp_path / "none", inputs, "none", *overrides)
    for recompute in ("selective", "full"):
        again = train(tmp_path / recompute, inputs, recompute, *overrides)
        assert losses_of(again) == losses_of(kept)
        last = Path("checkpoints") / "step_00000004"
        assert verify(kept / last, again / last) == []
