"""What a user gets who makes a mistake: one line that names the culprit and the way out, exit code 2, nothing half-written."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conversion.llamas import save_sharded
from tests.runs import poro, write_llama, write_run, write_tokens


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokens(folder)
    write_llama(folder / "hf")
    return folder


def refused(*words: str | Path, **environment: str) -> str:
    """Run a command that must be refused; returns its one line."""
    done = poro(*words, code=2, **environment)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error")
    return lines[0]


def run_file(folder: Path, inputs: Path, **changes: Any) -> Path:
    for name in ("fi", "en"):
        for suffix in (".bin", ".idx"):
            shutil.copy(inputs / f"{name}{suffix}", folder / f"{name}{suffix}")
    return write_run(folder / "run.toml", changes)


def test_a_missing_run_file(tmp_path: Path) -> None:
    assert "none.toml: no such run file" in refused("train", tmp_path / "none.toml")


def test_an_unknown_key(tmp_path: Path, inputs: Path) -> None:
    line = refused("train", run_file(tmp_path, inputs), "training.stpes=3")
    assert "training.stpes: unknown key; did you mean 'steps'?" in line


def test_a_tensor_size_that_does_not_divide_the_heads(tmp_path: Path, inputs: Path) -> None:
    done = poro("train", run_file(tmp_path, inputs), "parallel.tensor=3", code=2)
    assert "parallel.tensor (3) does not divide model.num_attention_heads (8)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_layout_that_does_not_fit_the_processes(tmp_path: Path, inputs: Path) -> None:
    path = run_file(tmp_path, inputs)
    line = refused(
        "train", path, "parallel.tensor=2", RANK="0", WORLD_SIZE="3", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1"
    )
    assert "parallel.tensor (2) x parallel.pipeline (1) = 2 does not divide world size 3" in line


def test_data_files_that_are_not_there(tmp_path: Path, inputs: Path) -> None:
    path = run_file(tmp_path, inputs)
    (tmp_path / "en.idx").unlink()
    assert "en.idx" in refused("train", path)
    assert not (tmp_path / "run").exists()


def test_a_truncated_bin(tmp_path: Path, inputs: Path) -> None:
    path = run_file(tmp_path, inputs)
    os.truncate(tmp_path / "fi.bin", 1000)
    assert "fi.bin" in refused("train", path)
    assert not (tmp_path / "run").exists()


def test_token_ids_beyond_the_vocabulary(tmp_path: Path, inputs: Path) -> None:
    line = refused("train", run_file(tmp_path, inputs), "model.vocab_size=100")
    assert "beyond model.vocab_size (100)" in line


def test_a_start_checkpoint_that_is_none(tmp_path: Path, inputs: Path) -> None:
    line = refused("train", run_file(tmp_path, inputs), f"checkpoint.initial={inputs / 'hf'}")
    assert "checkpoint.initial" in line
    assert "poro convert to-megatron" in line


def test_a_start_checkpoint_of_another_model(tmp_path: Path, inputs: Path) -> None:
    poro("convert", "to-megatron", inputs / "hf", tmp_path / "start")
    line = refused("train", run_file(tmp_path, inputs), f"checkpoint.initial={tmp_path / 'start'}", "model.rope_theta=10000.0")
    assert "rope_theta" in line


def test_a_corrupt_json_line(tmp_path: Path, inputs: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "hyvä"}\n{"text": "huono\n')
    shutil.copytree(inputs / "hf", tmp_path / "hf")
    tokenizer = Path(__file__).parents[1] / "cli" / "tokenizer.json"
    before = {path.name for path in tmp_path.iterdir()}
    words = ("data", "tokenize", tmp_path / "text.jsonl", "--tokenizer", tokenizer, "--output", tmp_path / "out")
    done = poro(*words, "--bos=none", "--eod=none", code=3)
    assert "1 of 2 documents rejected, the first at text.jsonl:2: not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} - before == {"out.rejected.jsonl", "out.unpublished"}
    assert "1 documents" in poro(*words, "--bos=none", "--eod=none", "--max-rejected=1").stdout


def test_a_hugging_face_directory_with_a_missing_shard(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "hf")
    shard = sorted(directory.glob("*.safetensors"))[0]
    shard.unlink()
    assert shard.name in refused("convert", "to-megatron", directory, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


@pytest.mark.parametrize("words", [[], ["train"], ["data"], ["convert"], ["demo", "--corpus"]])
def test_incomplete_commands_are_explained(words: list[str]) -> None:
    assert "usage: poro" in poro(*words, code=2).stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["data", "tokenize", "--help"], ["convert", "--help"], ["demo", "--help"]]
)
def test_every_help_is_printed(words: list[str]) -> None:
    assert "usage: poro" in poro(*words).stdout


def test_a_corpus_that_lacks_a_domain(tmp_path: Path) -> None:
    (tmp_path / "fi.jsonl").write_text('{"text": "hyvä"}\n')
    line = refused("demo", "--corpus", tmp_path, "--out", tmp_path / "out")
    assert "lacks en.jsonl, code.jsonl, math.jsonl" in line
    assert not (tmp_path / "out").exists()
