"""The same run on every layout: one converted checkpoint, 20 steps in fp32, the same losses and gradient norms."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import MODEL, RUN, losses_of, poro, write_llama, write_run

GOLDEN = Path(__file__).parents[1] / "golden" / "losses_fp32.json"
# fp32 sums in another order over 20 steps; the layouts differ from each other by up to 3e-6.
TOLERANCE = 2e-5
LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "TP2": {"tensor": 2},
    "PP2": {"pipeline": 2},
    "PP2 with 2 virtual stages": {"pipeline": 2, "virtual_stages": 2},
    "TP2 x PP2 with sequence parallel": {"tensor": 2, "pipeline": 2, "sequence": True},
    "CP2": {"context": 2},
    "TP2 x PP2 x CP2 with sequence parallel": {"tensor": 2, "pipeline": 2, "context": 2, "sequence": True},
    "DP2 x CP2": {"data": 2, "context": 2},
    "TP2 x PP2 x DP2": {"tensor": 2, "pipeline": 2, "data": 2},
}


def train_20_steps(
    inputs: Path, tmp_path: Path, parallel: dict[str, Any], start: str = "start", **model: Any
) -> dict[int, tuple[float, float]]:
    tmp_path.mkdir(exist_ok=True)
    changes = {
        "model": model,
        "run_directory": str(tmp_path / "run"),
        "parallel": parallel,
        "training": {"steps": 20},
        "checkpoint": {"initial": str(inputs / start), "save_every_steps": 0},
    }
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    poro("train", write_run(tmp_path / "run.toml", {**changes, "data": {"sources": sources}}))
    return losses_of(tmp_path / "run")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_golden_losses(name: str, inputs: Path, tmp_path: Path) -> None:
    found = train_20_steps(inputs, tmp_path, LAYOUTS[name])
    golden = {int(step): pair for step, pair in json.loads(GOLDEN.read_text()).items()}
    assert found.keys() == golden.keys() == set(range(1, 21))
    for step, values in golden.items():
        assert found[step] == pytest.approx(values, rel=TOLERANCE), f"step {step}"


def test_tied_embeddings_are_one_matrix_on_every_layout(inputs: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", {**MODEL, "tied_embeddings": True})
    poro("convert", "to-megatron", tmp_path / "hf", tmp_path / "tied")
    start = str(tmp_path / "tied")
    one = train_20_steps(inputs, tmp_path / "one", {}, start, tied_embeddings=True)
    for name, layout in {"stages": {"pipeline": 2, "data": 2}, "slices": {"tensor": 2}}.items():
        found = train_20_steps(inputs, tmp_path / name, layout, start, tied_embeddings=True)
        assert one.keys() == found.keys() == set(range(1, 21))
        for step, values in one.items():
            assert found[step] == pytest.approx(values, rel=TOLERANCE), f"{name}, step {step}"
