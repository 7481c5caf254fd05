"""`poro data blend` and `poro data ledger` answer for a run file at any point, as a table and as JSON."""

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.cli.main import main
from megatron_poro.config import load_run
from megatron_poro.data import TrainingData, documents_of
from tests.runs import write_run, write_tokens


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps of 8 samples of 64 tokens, 30 % fi and 70 % en."""
    folder = tmp_path_factory.mktemp("run")
    write_tokens(folder)
    return write_run(folder / "run.toml")


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    assert main(["data", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "samples"),
    [
        ([], 96),
        (["--samples", "1_000"], 1000),
        (["--samples", "0"], 0),
        (["--tokens", "6463"], 100),
        (["--step", "5"], 40),
        (["training.steps=10"], 80),
        (["training.steps=0", "training.tokens=5121"], 88),
        (["training.batch_ramp=[{from_tokens=5120, global_batch_size=16}]"], 112),
        (["--step", "11", "training.batch_ramp=[{from_tokens=5120, global_batch_size=16}]"], 96),
    ],
)
def test_the_ledger_stands_at_the_point_asked_for(
    run_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], samples: int
) -> None:
    ledger = answer(capsys, "ledger", run_file, *words)
    assert ledger["samples"] == samples == sum(source["samples"] for source in ledger["sources"])
    assert ledger["tokens"] == 64 * samples
    assert abs(ledger["sources"][0]["samples"] - 0.3 * samples) <= 0.5


def test_the_ledger_counts_documents_when_asked(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touched = [source["documents"] for source in answer(capsys, "ledger", run_file, "--documents")["sources"]]
    assert all(0 < count <= 200 for count in touched)
    assert touched[0] < touched[1]
    assert main(["data", "ledger", str(run_file), "--documents"]) == 0
    assert f"{sum(touched)}" in capsys.readouterr().out.splitlines()[-1]


def test_the_blend_is_that_of_the_whole_run(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blend = answer(capsys, "blend", run_file, "training.steps=800")
    assert blend["tokens"] == 800 * 8 * 64
    assert [source["name"] for source in blend["sources"]] == ["fi", "en"]
    assert len(blend["warnings"]) == 1
    assert len(blend["notes"]) == 1
    assert main(["data", "blend", str(run_file)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("source")


@pytest.mark.parametrize("words", [["--samples", "-1"], ["--step", "x"], ["--samples", "1", "--step", "1"]])
def test_a_point_that_cannot_be_is_refused(run_file: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "ledger", str(run_file), *words])
    assert stopped.value.code == 2


def test_samples_are_shown_with_their_origin(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_run(run_file)
    with closing(TrainingData(config.data)) as data:
        rows, origins = data.samples(range(8, 10)).tolist(), documents_of(data, range(8, 10))
    assert main(["data", "inspect", str(run_file), "--samples", "8-9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [[int(token) for token in line.split()] for line in lines[1::2]] == rows
    for line, origin in zip(lines[::2], origins, strict=True):
        documents = f"documents {origin.documents.start}-{origin.documents.stop - 1}"
        assert line == f"=== sample {origin.sample}: {origin.source}, epoch 0, sequence {origin.sequence}, {documents} ==="


def test_the_ledger_goes_around_the_samples_that_the_run_left_out(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {n: answer(capsys, "ledger", run_file, "--samples", str(n)) for n in (40, 64, 120)}
    directory = run_file.parent / "run"
    directory.mkdir()
    (directory / "left_out.json").write_text(json.dumps({"left_out": [[40, 64]], "rollbacks": []}))
    ledger = answer(capsys, "ledger", run_file, "--samples", "96")
    assert "left_out.json" in failure(capsys, "ledger", run_file, "--documents")
    shutil.rmtree(directory)
    counts = [[source["samples"] for source in whole[n]["sources"]] for n in (40, 64, 120)]
    assert [source["samples"] for source in ledger["sources"]] == [
        a - b + c for a, b, c in zip(counts[2], counts[1], counts[0], strict=True)
    ]
    assert ledger["samples"] == 96


def failure(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["data", *map(str, words)]) == 2
    return capsys.readouterr().err
