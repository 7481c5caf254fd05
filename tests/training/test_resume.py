"""What a resume may change and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import RUN, losses_of, poro, write_run


def file_for(folder: Path, inputs: Path, **changes: Any) -> Path:
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    return write_run(
        folder / "run.toml", {"data": {"sources": sources}, "checkpoint": {"initial": str(inputs / "start")}, **changes}
    )


@pytest.fixture(scope="module")
def stopped(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, stopped after 4 of 12 steps."""
    folder = tmp_path_factory.mktemp("stopped")
    poro("train", file_for(folder, inputs), "--stop-after=4")
    return folder


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, with its checkpoints of steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("finished")
    poro("train", file_for(folder, inputs))
    return folder


def test_a_determining_value_that_differs_is_refused_by_name(stopped: Path) -> None:
    error = poro("train", stopped / "run.toml", "optimizer.learning_rate=0.001", code=2).stderr
    assert "optimizer.learning_rate was 0.003, is 0.001" in error
    assert "allow_changed" in error
    assert "Traceback" not in error


def test_a_value_that_is_allowed_to_change_may_change(stopped: Path, inputs: Path, tmp_path: Path) -> None:
    _copy(stopped / "run", tmp_path / "run")
    allow = 'checkpoint.allow_changed=["training.steps"]'
    poro("train", file_for(tmp_path, inputs), "training.steps=6", allow)
    assert len(losses_of(tmp_path / "run")) == 6


def test_data_in_which_one_token_was_replaced_is_refused(stopped: Path, inputs: Path, tmp_path: Path) -> None:
    _copy(stopped / "run", tmp_path / "run")
    _copy(inputs / "fi.idx", tmp_path / "fi.idx")
    tokens = bytearray((inputs / "fi.bin").read_bytes())
    tokens[1000] ^= 1
    (tmp_path / "fi.bin").write_bytes(tokens)
    path = file_for(tmp_path, inputs)
    path.write_text(path.read_text().replace(str(inputs / "fi"), str(tmp_path / "fi")))
    assert "data.sources[0].content was sampled:" in poro("train", path, code=2).stderr


def test_a_finished_run_is_left_as_it_is(stopped: Path, inputs: Path, tmp_path: Path) -> None:
    _copy(stopped / "run", tmp_path / "run")
    path = file_for(tmp_path, inputs)
    poro("train", path)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "is done: 12 steps" in poro("train", path).stdout
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert "optimizer.learning_rate was 0.003, is 0.5" in poro("train", path, "optimizer.learning_rate=0.5", code=2).stderr


def damage_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_text("{")


def damage_metadata(checkpoint: Path) -> None:
    (checkpoint / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")


def flip_a_byte_of_the_tensors(checkpoint: Path) -> None:
    path = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_common(checkpoint: Path) -> None:
    (checkpoint / "common.pt").unlink()


def truncate_tensors(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:1000])


def remove_model(checkpoint: Path) -> None:
    (checkpoint / "model.json").unlink()


def change_checksums(checkpoint: Path) -> None:
    listed = (checkpoint / "files.json").read_text()
    (checkpoint / "files.json").write_text(listed.replace('"format"', '"gormat"'))


def remove_checksums(checkpoint: Path) -> None:
    (checkpoint / "files.json").unlink()


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = [
    damage_state,
    damage_metadata,
    flip_a_byte_of_the_tensors,
    remove_common,
    truncate_tensors,
    remove_model,
    change_checksums,
    remove_checksums,
    empty,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    finished: Path, inputs: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    _copy(finished / "run", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "step_00000012")
    damage(checkpoints / "step_00000008")
    names = {path.name for path in (checkpoints / "step_00000008").iterdir()}
    done = poro("train", file_for(tmp_path, inputs))
    assert "step 4 of 12" in done.stdout
    assert str(checkpoints / "step_00000008") in done.stderr
    assert "Traceback" not in done.stderr
    (aside,) = checkpoints.glob("damaged-step_00000008-*")
    assert {path.name for path in aside.iterdir()} == names
    assert losses_of(tmp_path / "run") == losses_of(finished / "run")


def test_a_run_whose_last_checkpoint_is_cut_short_is_not_done(finished: Path, inputs: Path, tmp_path: Path) -> None:
    _copy(finished / "run", tmp_path / "run")
    truncate_tensors(tmp_path / "run" / "checkpoints" / "step_00000012")
    assert "step 8 of 12" in poro("train", file_for(tmp_path, inputs)).stdout
    assert losses_of(tmp_path / "run") == losses_of(finished / "run")


def test_a_run_without_a_whole_checkpoint_starts_again(stopped: Path, inputs: Path, tmp_path: Path, finished: Path) -> None:
    _copy(stopped / "run", tmp_path / "run")
    truncate_tensors(tmp_path / "run" / "checkpoints" / "step_00000004")
    assert "step 0 of 12" in poro("train", file_for(tmp_path, inputs)).stdout
    assert losses_of(tmp_path / "run") == losses_of(finished / "run")


def test_a_folder_of_another_name_neither_counts_nor_blocks(stopped: Path, inputs: Path, tmp_path: Path) -> None:
    _copy(stopped / "run", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    _copy(checkpoints / "step_00000004", checkpoints / "step_backup")
    assert "step 4 of 12" in poro("train", file_for(tmp_path, inputs)).stdout
    assert (checkpoints / "step_backup").is_dir()


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(inputs: Path, tmp_path: Path) -> None:
    error = poro("train", file_for(tmp_path, inputs), "optimizer.learning_rate=1e15", code=2).stderr
    assert "nothing of them was saved" in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_provenance_outlives_the_initial_checkpoint(stopped: Path, inputs: Path, tmp_path: Path) -> None:
    _copy(stopped / "run", tmp_path / "run")
    poro("train", file_for(tmp_path, inputs), "checkpoint.initial=/moved/away")
    models = [json.loads(path.read_text()) for path in sorted((tmp_path / "run" / "checkpoints").glob("step_*/model.json"))]
    assert len(models) == 3
    assert all(model["source"] == models[0]["source"] for model in models)
    assert "weights_sha256" in models[0]["source"]


def test_every_checkpoint_carries_config_ledger_and_versions(stopped: Path) -> None:
    checkpoint = stopped / "run" / "checkpoints" / "step_00000004"
    state = json.loads((checkpoint / "state.json").read_text())
    assert (state["step"], state["samples"], state["tokens"]) == (4, 32, 32 * 64)
    assert sum(source["samples"] for source in state["ledger"]["sources"]) == 32
    assert state["versions"].keys() == {"megatron_poro", "megatron_core", "torch"}
    assert (checkpoint / "config.toml").is_file()


def _copy(source: Path, target: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
