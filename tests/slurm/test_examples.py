"""Every sbatch file of examples/slurm does its job on a real Slurm, with its variables pointed at small data."""

import json
import sys
import time
from pathlib import Path

from data_indexing.reader import IndexedReader
from megatron_poro.engine.paths import list_checkpoints, step_of
from tests.runs import REPOSITORY, write_llama, write_run, write_tokens
from tests.slurm.cluster import Slurm

EXAMPLES = REPOSITORY / "examples" / "slurm"
TOKENIZER = REPOSITORY / "tests" / "cli" / "tokenizer.json"


def write_tokenizer(folder: Path) -> Path:
    """A small tokenizer that begins and ends documents with the tokens of Llama 3.1's base model."""
    plain = json.loads(TOKENIZER.read_text())
    first = 1 + max([*plain["model"]["vocab"].values(), *(token["id"] for token in plain["added_tokens"])])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    names = ("<|begin_of_text|>", "<|end_of_text|>")
    plain["added_tokens"] += [{"id": first + n, "content": name, **flags} for n, name in enumerate(names)]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": names[0], "eos_token": names[1]}))
    return folder


def submit(slurm: Slurm, tmp_path: Path, name: str, *options: str, **variables: str | Path) -> str:
    """Run an example in a job array or job until it is out of the queue; its id."""
    poro = tmp_path / "bin" / "poro"
    poro.parent.mkdir(exist_ok=True)
    poro.write_text(f'#!/bin/sh\nexec {sys.executable} -m megatron_poro "$@"\n')
    poro.chmod(0o755)
    environment = {
        **slurm.environment,
        "SBATCH_ACCOUNT": "project_1",
        "SBATCH_PARTITION": "small",
        "PATH": f"{poro.parent}:{slurm.environment['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        **{key: str(value) for key, value in variables.items()},
    }
    job = slurm.submit("--mem=1G", "--cpus-per-task=2", *options, EXAMPLES / name, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 180
    while slurm.run("squeue", "--noheader", "--jobs", job, check=False).stdout:
        assert time.monotonic() < deadline, slurm.run("squeue").stdout
        time.sleep(0.2)
    return job


def logs(tmp_path: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(tmp_path.glob("slurm-*.out")))


def test_every_example_is_tried_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.sbatch")) == ["convert.sbatch", "pretrain.sbatch", "tokenize.sbatch"]


def test_tokenize_writes_a_pair_for_each_element(slurm: Slurm, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.jsonl").write_text("".join(json.dumps({"text": f"sanoja ja lauseita {n}"}) + "\n" for n in range(50)))
    output = tmp_path / "tokens"
    output.mkdir()
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    submit(slurm, tmp_path, "tokenize.sbatch", "--array=0-1", INPUT=text, OUTPUT=output, SHARDS="2", TOKENIZER=tokenizer)
    pairs = sorted(path.with_suffix("") for path in output.glob("*.idx"))
    assert [pair.name for pair in pairs] == ["00000", "00001"], logs(tmp_path)
    documents = 0
    for pair in pairs:
        with IndexedReader(pair) as reader:
            documents += reader.num_documents
    assert documents == 50


def test_convert_converts_both_ways(slurm: Slurm, tmp_path: Path) -> None:
    write_llama(tmp_path / "llama")
    submit(slurm, tmp_path, "convert.sbatch", SOURCE=tmp_path / "llama", TARGET=tmp_path / "megatron")
    assert (tmp_path / "megatron" / "conversion.json").exists(), logs(tmp_path)
    submit(slurm, tmp_path, "convert.sbatch", SOURCE=tmp_path / "megatron", TARGET=tmp_path / "back", REFERENCE=tmp_path / "llama")
    assert (tmp_path / "back" / "model.safetensors").exists(), logs(tmp_path)


def test_pretrain_finishes_the_run_and_cancels_what_is_left(slurm: Slurm, tmp_path: Path) -> None:
    write_tokens(tmp_path)
    run = write_run(tmp_path / "run.toml", {"parallel": {"tensor": 2}, "training": {"steps": 6}})
    options = ("--array=0-2%1", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--time=0:10:00")
    submit(slurm, tmp_path, "pretrain.sbatch", *options, RUN_FILE=run)
    assert [step_of(saved) for saved in list_checkpoints(tmp_path / "run")][-1:] == [6], logs(tmp_path)
    assert len(list(tmp_path.glob("slurm-*.out"))) == 1
