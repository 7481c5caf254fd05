"""The same run on the same layout writes the same bits: losses, gradient norms, and every byte of weights and optimizer."""

from pathlib import Path

from megatron_poro.conversion import read_checksums
from megatron_poro.engine.paths import list_checkpoints
from tests.runs import RUN, losses_of, poro, write_run


def train(folder: Path, inputs: Path) -> Path:
    folder.mkdir()
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    changes = {"data": {"sources": sources}, "training": {"steps": 6}, "parallel": {"tensor": 2, "data": 2}}
    checkpoint = {"initial": str(inputs / "start"), "save_every_steps": 0}
    poro("train", write_run(folder / "run.toml", {**changes, "checkpoint": checkpoint}))
    return folder / "run"


def test_two_runs_on_one_layout_are_the_same_bits(inputs: Path, tmp_path: Path) -> None:
    first, second = (train(tmp_path / name, inputs) for name in ("first", "second"))
    assert losses_of(first) == losses_of(second)
    files = []
    for run in (first, second):
        (checkpoint,) = list_checkpoints(run)
        files.append({name: entry for name, entry in read_checksums(checkpoint).items() if name.endswith(".distcp")})
    assert files[0] == files[1]
    assert len(files[0]) >= 4
