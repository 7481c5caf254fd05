"""tools/convert_checkpoint.py takes the flags of Megatron-LM's converter, as Poro 2's scripts give them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_poro.conversion import verify
from tests.conversion.llamas import LLAMA, random_tensors, save_llama

ROOT = Path(__file__).parents[2]
MODEL = replace(LLAMA, num_layers=4, rope_original_length=8192)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "convert_checkpoint.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "hf", MODEL, tensors=random_tensors(MODEL, torch.bfloat16))


def test_the_commands_of_poro_2_go_there_and_back(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    there = ("--model-type", "GPT", "--loader", "llama_mistral", "--model-size", "llama3-8B", "--checkpoint-type", "hf")
    sizes = ("--saver", "mcore", "--target-tensor-parallel-size", 2, "--target-pipeline-parallel-size", 2)
    places = ("--load-dir", source, "--save-dir", tmp_path / "meg", "--tokenizer-model", source, "--bf16")
    done = run(*there, *sizes, *places)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "meg" / "latest_checkpointed_iteration.txt").read_text().strip() == "release"
    assert sorted(path.name for path in (tmp_path / "meg" / "release").iterdir())[-1] == "mp_rank_01_001"
    back = ("--model-type", "GPT", "--loader", "mcore", "--saver", "llama_mistral")
    done = run(*back, "--load-dir", tmp_path / "meg", "--save-dir", tmp_path / "back", "--tokenizer-dir", source)
    assert done.returncode == 0, done.stderr
    assert verify(source, tmp_path / "back") == []
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"


def test_rank_files_are_laid_out_anew(source: Path, tmp_path: Path) -> None:
    first = ("--model-type", "GPT", "--loader", "llama_mistral", "--saver", "core", "--load-dir", source)
    assert run(*first, "--save-dir", tmp_path / "one").returncode == 0
    again = (
        "--model-type",
        "GPT",
        "--loader",
        "core",
        "--saver",
        "core",
        "--load-dir",
        tmp_path / "one",
        "--tokenizer-model",
        source,
    )
    assert run(*again, "--save-dir", tmp_path / "two", "--target-pipeline-parallel-size", 4).returncode == 0
    assert verify(tmp_path / "two", source) == []


def test_a_cast_is_asked_for_and_proved(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", MODEL)
    there = ("--model-type", "GPT", "--loader", "llama_mistral", "--saver", "mcore", "--load-dir", source, "--bf16")
    assert run(*there, "--save-dir", tmp_path / "meg").returncode == 0
    cast = {name: tensor.bfloat16() for name, tensor in random_tensors(MODEL).items()}
    assert verify(tmp_path / "meg", save_llama(tmp_path / "cast", MODEL, tensors=cast)) == []


def test_a_mistake_is_one_line_and_code_2(tmp_path: Path) -> None:
    words = ("--model-type", "GPT", "--loader", "llama_mistral", "--saver", "mcore", "--load-dir", tmp_path / "none")
    done = run(*words, "--save-dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "llama_mistral loads a Hugging Face directory" in done.stderr


@pytest.mark.parametrize("flag", ["--target-tensor-parallel-size", "--target-pipeline-parallel-size", "--workers"])
def test_a_size_that_is_none_is_a_usage_error(tmp_path: Path, flag: str) -> None:
    words = ("--model-type", "GPT", "--loader", "llama_mistral", "--saver", "mcore", "--load-dir", tmp_path, flag, "0")
    done = run(*words, "--save-dir", tmp_path / "out")
    assert done.returncode == 2
    assert "0 is not at least 1" in done.stderr


def test_the_sbatch_file_converts_both_ways(source: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "bin" / "poro").write_text(f'#!/bin/sh\nexec {sys.executable} -m megatron_poro "$@"\n')
    for name in ("srun", "poro"):
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "2"}
    for start, end in ((source, tmp_path / "meg"), (tmp_path / "meg", tmp_path / "back")):
        job = environment | {"SOURCE": str(start), "TARGET": str(end), "REFERENCE": str(source)}
        script = ROOT / "examples" / "slurm" / "convert.sbatch"
        done = subprocess.run(["bash", str(script)], env=job, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert verify(source, tmp_path / "back") == []
