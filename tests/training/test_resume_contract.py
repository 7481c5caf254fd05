"""The table of docs/operations.md: what a resume may find changed, row by row."""

import shutil
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from megatron_poro.config import load_run
from megatron_poro.data import TrainingData
from megatron_poro.engine.paths import list_checkpoints, read_state
from megatron_poro.errors import CheckpointError
from megatron_poro.training.resume import check_resume
from tests.runs import RUN, ledger_of, losses_of, poro, write_run

# fp32 sums in another order over 20 steps
TOLERANCE = 2e-5
LAST = Path("checkpoints") / "step_00000024"
FREE: dict[str, list[str]] = {
    "TP2": ["parallel.tensor=2"],
    "PP2 with virtual stages": ["parallel.pipeline=2", "parallel.virtual_stages=2"],
    "CP2": ["parallel.context=2"],
    "DP2 and micro-batch": ["parallel.data=2", "training.micro_batch_size=2"],
    "TP2 x PP2 x DP2 with sequence parallelism": [
        *("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2", "parallel.sequence=true"),
        "training.recompute=full",
    ],
}
ALSO_FREE = [
    "training.validate_every_steps=3",
    "training.validate_at_steps=[5]",
    "training.validation_samples=4",
    "training.seed=5",
    "checkpoint.keep_last=7",
    "checkpoint.asynchronous=false",
    "observe.log_every_steps=2",
    "faults.spike_deviations=3.0",
    "model.initializer_std=0.1",
]
REFUSED = {
    "model.rope_theta=10000.0": "model.rope_theta was 500000.0, is 10000.0",
    "model.tied_embeddings=true": "model.tied_embeddings was False, is True",
    "training.steps=25": "training.steps was 24, is 25",
    "training.global_batch_size=16": "training.global_batch_size was 8, is 16",
    "training.batch_ramp=[{from_tokens=5120, global_batch_size=16}]": "training.batch_ramp was ()",
    "training.precision=bf16": "training.precision was fp32, is bf16",
    "optimizer.learning_rate=0.001": "optimizer.learning_rate was 0.003, is 0.001",
    "optimizer.final_learning_rate=0.0": "optimizer.final_learning_rate was 1e-05, is 0.0",
    "optimizer.schedule=linear": "optimizer.schedule was cosine, is linear",
    "optimizer.warmup_fraction=0.2": "optimizer.warmup_fraction was 0.1, is 0.2",
    "optimizer.adam_beta1=0.8": "optimizer.adam_beta1 was 0.9, is 0.8",
    "optimizer.adam_beta2=0.9": "optimizer.adam_beta2 was 0.95, is 0.9",
    "optimizer.adam_epsilon=1e-5": "optimizer.adam_epsilon was 1e-08, is 1e-05",
    "optimizer.weight_decay=0.0": "optimizer.weight_decay was 0.1, is 0.0",
    "optimizer.clip_gradient_norm=2.0": "optimizer.clip_gradient_norm was 1.0, is 2.0",
    "data.seed=5": "data.seed was 1234, is 5",
    "data.sequence_length=32": "data.sequence_length was 64, is 32",
    "data.stages=[{from_tokens=6400, weights={fi=1.0}}]": "data.stages was []",
    "data.reset_position_ids=true": "data.reset_position_ids was False, is True",
    "data.reset_attention_mask=true": "data.reset_attention_mask was False, is True",
    "data.eod_token_id=3": "data.eod_token_id was -1, is 3",
}
NEW_KEYS = {
    "training": ("tokens", "batch_ramp", "recompute", "validate_at_steps"),
    "optimizer": ("warmup_steps", "warmup_tokens", "decay_fraction", "decay_steps", "decay_tokens", "decay_shape"),
    "data": ("reset_attention_mask", "reset_position_ids", "eod_token_id"),
    "parallel": ("context",),
}
"""Keys that the first run files did not have."""


def file_for(folder: Path, inputs: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    checkpoint = {"initial": str(inputs / "start"), "save_every_steps": 0}
    changes = {"training": {"steps": 24, **changes}, "data": {"sources": sources}, "checkpoint": checkpoint}
    return write_run(folder / "run.toml", changes)


@pytest.fixture(scope="module")
def stopped(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, stopped after 4 of 24 steps."""
    folder = tmp_path_factory.mktemp("stopped")
    poro("train", file_for(folder, inputs), "--stop-after=4")
    return folder


@pytest.fixture(scope="module")
def straight(stopped: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, gone on as it was."""
    folder = tmp_path_factory.mktemp("straight")
    shutil.copytree(stopped / "run", folder / "run")
    poro("train", file_for(folder, inputs))
    return folder / "run"


@pytest.mark.parametrize("name", FREE)
def test_the_trajectory_stays_the_same_where_the_change_is_free(
    name: str, stopped: Path, straight: Path, inputs: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run")
    poro("train", file_for(tmp_path, inputs), *FREE[name])
    found, wanted = losses_of(tmp_path / "run"), losses_of(straight)
    assert found.keys() == wanted.keys() == set(range(1, 25))
    for step, values in wanted.items():
        assert found[step] == pytest.approx(values, rel=TOLERANCE), f"step {step}"
    assert ledger_of(tmp_path / "run" / LAST) == ledger_of(straight / LAST)


def resume_with(stopped: Path, *overrides: str) -> None:
    config = load_run(stopped / "run.toml", overrides)
    (checkpoint,) = list_checkpoints(stopped / "run")
    with closing(TrainingData(config.data)) as data:
        check_resume(config, checkpoint, read_state(checkpoint)["data"], data.fingerprint())


@pytest.mark.parametrize("override", REFUSED)
def test_what_determines_the_trajectory_is_refused_by_name_and_can_be_allowed(override: str, stopped: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        resume_with(stopped, override)
    assert REFUSED[override] in str(refused.value)
    way_out = str(refused.value).rpartition("allow it with ")[2]
    assert override.partition("=")[0] in way_out
    resume_with(stopped, override, way_out.replace(" = ", "="))


@pytest.mark.parametrize("override", ALSO_FREE)
def test_what_does_not_determine_it_is_free(override: str, stopped: Path) -> None:
    resume_with(stopped, override)


def test_a_checkpoint_from_before_a_key_existed_counts_as_its_default(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "old")
    (checkpoint,) = list_checkpoints(tmp_path / "old" / "run")
    written = tomllib.loads((checkpoint / "config.toml").read_text())
    for section, keys in NEW_KEYS.items():
        for key in keys:
            del written[section][key]
    del written["faults"]
    (checkpoint / "config.toml").write_text(tomli_w.dumps(written))
    resume_with(tmp_path / "old")
    with pytest.raises(CheckpointError, match=r"training.batch_ramp was \(\)"):
        resume_with(tmp_path / "old", "training.batch_ramp=[{from_tokens=5120, global_batch_size=16}]")


@pytest.mark.parametrize("name", ["optimizer.learning_rat", "training.seed", "observe.log_every_steps", "nothing", "data.sauces"])
def test_a_name_that_no_resume_compares_cannot_be_allowed(name: str, stopped: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"checkpoint.allow_changed: '{name}' is nothing that a resume compares"):
        resume_with(stopped, f'checkpoint.allow_changed=["{name}"]')


def test_tokens_instead_of_steps_are_refused(stopped: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        resume_with(stopped, "training.steps=0", "training.tokens=12288")
    assert "training.tokens was 0, is 12288" in str(refused.value)


def test_bf16_goes_on_with_the_same_bits(inputs: Path, tmp_path: Path) -> None:
    straight = file_for(tmp_path / "straight", inputs, precision="bf16", steps=8)
    poro("train", straight, "parallel.data=2")
    again = file_for(tmp_path / "again", inputs, precision="bf16", steps=8)
    poro("train", again, "parallel.data=2", "--stop-after=4")
    poro("train", again, "parallel.data=2")
    assert losses_of(tmp_path / "again" / "run") == losses_of(tmp_path / "straight" / "run")
