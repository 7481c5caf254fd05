"""Training and validation with documents kept apart: the same losses at every layout, and other ones than without."""

from pathlib import Path
from typing import Any

import pytest

from megatron_poro.observe import read_metrics
from tests.runs import RUN, losses_of, poro, write_run

EOD = 7  # the walks of the tiny run's texts pass it every hundred tokens or so


def run_file(folder: Path, inputs: Path, **data: Any) -> Path:
    folder.mkdir()
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    changes = {"data": {"sources": sources, **data}, "training": {"steps": 3, "micro_batch_size": 2}}
    return write_run(folder / "run.toml", {**changes, "checkpoint": {"initial": str(inputs / "start"), "save_every_steps": 0}})


def validations_of(run: Path) -> list[float]:
    return [record["losses"]["fi"] for record in read_metrics(run / "metrics.jsonl") if record["event"] == "validation"]


def test_layouts_agree_in_training_and_validation_and_differ_from_plain_attention(inputs: Path, tmp_path: Path) -> None:
    apart = {"reset_attention_mask": True, "reset_position_ids": True, "eod_token_id": EOD}
    poro("train", run_file(tmp_path / "plain", inputs))
    poro("train", run_file(tmp_path / "one", inputs, **apart))
    layout = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.virtual_stages=2", "parallel.sequence=true"]
    poro("train", run_file(tmp_path / "four", inputs, **apart), *layout, "training.recompute=selective")
    plain, one, four = (tmp_path / name / "run" for name in ("plain", "one", "four"))
    for step, values in losses_of(one).items():
        assert losses_of(four)[step] == pytest.approx(values, rel=2e-5)  # fp32 sums in another order
    assert validations_of(four) == pytest.approx(validations_of(one), rel=2e-5)
    assert abs(validations_of(one)[0] - validations_of(plain)[0]) > 1e-4


def test_positions_start_again_in_sequences_that_processes_share(inputs: Path, tmp_path: Path) -> None:
    apart = {"reset_position_ids": True, "eod_token_id": EOD}
    poro("train", run_file(tmp_path / "one", inputs, **apart))
    poro("train", run_file(tmp_path / "shared", inputs, **apart), "parallel.context=2")
    for step, values in losses_of(tmp_path / "one" / "run").items():
        assert losses_of(tmp_path / "shared" / "run")[step] == pytest.approx(values, rel=2e-5)  # fp32 sums in another order


def test_without_manifests_the_missing_token_is_named_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    error = poro("train", run_file(tmp_path / "run", inputs, reset_attention_mask=True), code=2).stderr
    assert "data.sources[0] (fi):" in error
    assert "set data.eod_token_id" in error
    assert "Traceback" not in error
