"""A real trained Llama: the engine's loss is transformers' loss, and the weights survive every layout bit for bit."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tomli_w

from data_indexing.writer import IndexedWriter
from megatron_poro.conversion import read_model_file
from megatron_poro.observe import read_metrics
from tests.runs import poro
from tests.shared_data import shared

# "Once upon a time, there was a little girl named Lily. ...", with BOS, in the model's own tokenizer
IDS = (
    "1 403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292 411 322 265 282 295 433 "
    "426 385 328 432 358 394 261 370 432 352 266 268 388 426"
)
TRANSFORMERS_LOSS = 0.32409974932670593


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    poro("convert", "to-megatron", shared("checkpoints/stories260K_hf"), folder / "start")
    for name in ("text", "held-out"):
        with IndexedWriter(folder / name, "uint16") as writer:
            writer.add_document([int(token) for token in IDS.split()])
    return folder / "start"


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 5), (2, 5)])
def test_loss_and_tensors_are_the_originals_at_every_layout(tensor: int, pipeline: int, start: Path, tmp_path: Path) -> None:
    run = {
        "run_directory": str(tmp_path / "run"),
        "model": asdict(read_model_file(start)[0]),
        "parallel": {"tensor": tensor, "pipeline": pipeline},
        "data": {
            "sequence_length": len(IDS.split()) - 1,
            "sources": [{"name": "text", "path": str(start.parent / "text"), "weight": 1.0}],
            "validation": [{"name": "story", "path": str(start.parent / "held-out")}],
        },
        "training": {"steps": 1, "global_batch_size": 1, "precision": "fp32"},
        "optimizer": {"learning_rate": 1e-4},
        "checkpoint": {"initial": str(start)},
    }
    (tmp_path / "run.toml").write_text(tomli_w.dumps(run))
    poro("train", tmp_path / "run.toml", "--stop-after=0")
    validations = [r["losses"]["story"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["event"] == "validation"]
    assert validations == [pytest.approx(TRANSFORMERS_LOSS, abs=1e-5)]

    saved_by_megatron = tmp_path / "run" / "checkpoints" / "step_00000000"
    poro("convert", "to-hf", saved_by_megatron, tmp_path / "hf")
    original = shared("checkpoints/stories260K_hf")
    assert "same model" in poro("convert", "verify", original, tmp_path / "hf").stdout
    assert len(json.loads((tmp_path / "hf" / "conversion.json").read_text())["tensors"]) == _num_tensors(original)


def _num_tensors(directory: Path) -> int:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as file:
        return len(set(file.keys()) - {"lm_head.weight"})
