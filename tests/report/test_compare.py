"""`poro compare` and the errors of `poro report`: runs of other batch sizes at equal tokens, and what cannot be compared."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.errors import PoroError
from megatron_poro.report.compare import compare_runs
from tests.report.synthetic import write_synthetic
from tests.report.test_series import start, write
from tests.runs import poro, write_run

SEQUENCE = 64


def loss_at(tokens: float) -> float:
    return 10 - tokens / 1e5


def write_run_of(folder: Path, *, batch: int, num_steps: int, offset: float = 0.0, restart: bool = False) -> Path:
    """A run whose loss after n tokens is loss_at(n) + offset; a restart repeats its second half."""
    folder.mkdir()

    def steps(first: int, more: float = 0.0) -> list[dict[str, Any]]:
        return [
            {
                "event": "step",
                "step": step,
                "time": float(step),
                "loss": loss_at(step * batch * SEQUENCE) + offset + more,
                "losses": {"fi": 1.0 + offset},
                "tokens": step * batch * SEQUENCE,
            }
            for step in range(first, num_steps + 1)
        ]

    validations = [{"event": "validation", "step": step, "time": 0.0, "losses": {"fi": 5.0 + offset - step / num_steps}}
                   for step in (0, num_steps)]  # fmt: skip
    again = [start(num_steps // 2), *steps(num_steps // 2 + 1)] if restart else []
    write(folder / "metrics.jsonl", start(0), validations[0], *steps(1, 7.0 if restart else 0.0)[: num_steps // 2], *again)
    if not restart:
        write(folder / "metrics.jsonl", start(0), validations[0], *steps(1), validations[1])
    changes = {
        "data": {"sources": [{"name": name, "path": f"/{name}", "weight": 0.5} for name in ("fi", "en")]},
        "training": {"steps": num_steps, "global_batch_size": batch},
        "optimizer": {"learning_rate": 1e-3 * batch},
    }
    write_run(folder / "config.toml", changes)
    return folder


def test_losses_are_compared_at_equal_tokens_whatever_the_batch_size(tmp_path: Path) -> None:
    a = write_run_of(tmp_path / "a", batch=4, num_steps=400)
    b = write_run_of(tmp_path / "b", batch=8, num_steps=200, offset=0.5)
    found = compare_runs(a, b)
    # A step of B is 512 tokens, over which the loss falls by 0.005; means over the same window differ by half of that at most.
    assert {pair.metric for pair in found.losses} == {"train/loss", "loss_by_source/fi", "validation_loss/fi"}
    for pair in found.losses:
        assert pair.difference == pytest.approx(0.5, abs=0.003)
    keys = {each.key: (each.a, each.b) for each in found.config}
    assert keys["training.global_batch_size"] == (4, 8)
    assert keys["optimizer.learning_rate"] == (4e-3, 8e-3)
    assert set(keys) == {"training.global_batch_size", "training.steps", "optimizer.learning_rate"}


def test_steps_that_a_restart_took_back_have_no_part(tmp_path: Path) -> None:
    a = write_run_of(tmp_path / "a", batch=4, num_steps=400)
    b = write_run_of(tmp_path / "b", batch=4, num_steps=400, restart=True)
    late = compare_runs(a, b, [400 * 4 * SEQUENCE]).losses[0]
    assert late.difference == 0.0
    early = compare_runs(a, b, [200 * 4 * SEQUENCE]).losses[0]
    assert early.difference == pytest.approx(7.0)


def test_the_window_of_the_mean_is_said(tmp_path: Path) -> None:
    a, b = (write_run_of(tmp_path / name, batch=4, num_steps=400) for name in "ab")
    said = poro("compare", a, b, "--at", "51200", "1e5").stdout
    assert "The run files say the same." in said
    assert "means over the 2,560 tokens before" in said
    assert said.count("train/loss") == 2
    expected = f"{loss_at(51_200 - 1280 + 128):.4f}"  # ten steps of 256 tokens, of which the last ends at the point
    assert expected in said
    plain = json.loads(poro("compare", a, b, "--json").stdout)
    assert plain["window_tokens"] == 2560
    assert plain["losses"][0]["difference"] == 0.0


def test_what_has_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    a = write_run_of(tmp_path / "a", batch=4, num_steps=40)
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "metrics.jsonl", start(0))
    with pytest.raises(PoroError, match=r"nothing in common: .*b has no step yet"):
        compare_runs(a, tmp_path / "b")
    with pytest.raises(PoroError, match=r"--at 99999999: both runs have 1 to 10240 tokens"):
        compare_runs(a, a, [99_999_999])
    assert "no metrics.jsonl" in poro("compare", a, tmp_path / "c", code=2).stderr
    assert "no number of tokens" in poro("compare", a, a, "--at", "many", code=2).stderr


def test_runs_without_a_config_are_compared_by_their_losses(tmp_path: Path) -> None:
    a, b = (write_run_of(tmp_path / name, batch=4, num_steps=40) for name in "ab")
    (b / "config.toml").write_text("[model\n")
    found = compare_runs(a, b)
    assert "config.toml" in found.config_problem
    assert found.losses
    assert "config not compared" in found.as_table()


def test_a_report_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    run = write_synthetic(tmp_path, 20)
    out = tmp_path / "nowhere" / "report.html"
    assert f"error: {out}: cannot be written (No such file or directory)" in poro("report", run, "-o", out, code=2).stderr
    (tmp_path / "taken").mkdir()
    assert "cannot be written (Is a directory)" in poro("report", run, "-o", tmp_path / "taken", code=2).stderr
    assert "no metrics.jsonl" in poro("report", tmp_path / "taken", code=2).stderr
    assert not [path for path in os.listdir(tmp_path) if "partial" in path]


def test_a_report_is_made_of_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", start(0))
    poro("report", tmp_path, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "no step was written down yet" in page
    assert "config.toml: no such run file" in page
