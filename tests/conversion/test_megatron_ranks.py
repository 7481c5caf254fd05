"""The program that plays a job's ranks writes what Megatron-LM would, and notices one wrong number."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_poro.conversion import to_megatron
from tests.conversion.llamas import LLAMA, random_tensors, save_llama

pytest.importorskip("megatron.core")

LAYOUTS = ("2x1x1", "2x2x2", "4x2x1")
UNTIED = replace(LLAMA, num_layers=8, num_key_value_heads=4)  # 511 tokens make a row of padding
MODELS = {"untied": UNTIED, "tied": replace(UNTIED, tied_embeddings=True)}


def play(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    program = [sys.executable, "-m", "tests.conversion.megatron_ranks", command, *map(str, arguments)]
    return subprocess.run(program, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", params=MODELS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `converted` and, in `ranks`, what the ranks of each layout wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    to_megatron(save_llama(folder / "huggingface", MODELS[request.param]), folder / "converted")
    done = play("write", folder / "converted", folder / "ranks", *LAYOUTS)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def change_file(file: Path, change: Callable[[dict[str, torch.Tensor]], object], key: str = "model") -> None:
    """Write a rank's file again with other weights."""
    state = torch.load(file, weights_only=False)
    change(state[key])
    torch.save(state, file)


def drop_extra_states(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if name.endswith("_extra_state")]:
        del weights[name]


def test_a_wrong_bit_in_one_rank_is_named_and_missing_extra_states_are_not(written: Path) -> None:
    ranks = written / "ranks"
    for file in ranks.glob("2x1x1/*/*/*.pt"):
        change_file(file, drop_extra_states)
    done = play("check", written / "converted", ranks, *LAYOUTS)
    assert done.returncode == 0, done.stderr[-4000:]

    name = "decoder.layers.1.mlp.linear_fc2.weight"
    file = ranks / "4x2x1/iter_0000007/mp_rank_03_001/model_optim_rng.pt"
    change_file(file, lambda weights: weights[name].view(torch.int32)[5, 2].bitwise_xor_(1))
    done = play("check", written / "converted", ranks, *LAYOUTS)
    assert done.returncode == 1
    assert f"4x2x1 mp_rank_03_001 model: {name}[5, 2] is " in done.stderr
    assert "check 2x2x2" in done.stdout


def test_virtual_stages_go_round_the_pipeline_ranks(written: Path) -> None:
    tensors = random_tensors(UNTIED)
    files = [written / f"ranks/2x2x2/iter_0000007/mp_rank_{rank:02d}_001/model_optim_rng.pt" for rank in range(2)]
    states = [torch.load(file, weights_only=False) for file in files]
    for stage, layer in enumerate((2, 6)):  # the first layers of the second pipeline rank's chunks
        shards = [state[f"model{stage}"]["decoder.layers.0.mlp.linear_fc1.weight"].chunk(2) for state in states]
        gate, up = (torch.cat(parts) for parts in zip(*shards, strict=True))
        assert torch.equal(gate, tensors[f"model.layers.{layer}.mlp.gate_proj.weight"])
        assert torch.equal(up, tensors[f"model.layers.{layer}.mlp.up_proj.weight"])


def test_the_last_stage_saves_a_tied_embedding_as_its_output_layer(written: Path) -> None:
    first, last = (
        torch.load(written / f"ranks/4x2x1/iter_0000007/mp_rank_03_{stage:03d}/model_optim_rng.pt", weights_only=False)
        for stage in range(2)
    )
    embedding, output = first["model"]["embedding.word_embeddings.weight"], last["model"]["output_layer.weight"]
    assert embedding.shape == output.shape == (128, 32)
    assert torch.equal(embedding, output) == (written.name.startswith("tied"))
