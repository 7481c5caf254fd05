import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_indexing.pairs_of_documents import contents, read_pair, write_pair

TOOL = Path(__file__).parents[2] / "tools" / "merge_datasets.py"
MEGATRON = "PORO_MEGATRON_LM"


@pytest.fixture
def folder(tmp_path):
    for number in (2, 10, 1):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_pair(tmp_path / "in" / f"{number}", [[[number]]])
    return tmp_path


def run(tool, *words):
    return subprocess.run([sys.executable, str(tool), *map(str, words)], capture_output=True, text=True, check=False)


def test_a_folder_is_merged_in_the_order_of_its_names(folder):
    done = run(TOOL, "--input", folder / "in", "--output-prefix", folder / "m")
    assert done.stdout.endswith("m: 3 documents, 3 tokens\n")
    assert read_pair(folder / "m") == [[[1]], [[10]], [[2]]]


def test_the_bytes_are_those_of_megatrons_tool(folder):
    if MEGATRON not in os.environ:
        pytest.skip(f"set {MEGATRON} to a checkout of Megatron-LM")
    (folder / "ours").mkdir()
    (folder / "theirs").mkdir()
    run(TOOL, "--input", folder / "in", "--output-prefix", folder / "ours" / "m")
    run(
        Path(os.environ[MEGATRON]) / "tools" / "merge_datasets.py",
        "--input",
        folder / "in",
        "--output-prefix",
        folder / "theirs" / "m",
    )
    ours, theirs = contents(folder / "ours"), contents(folder / "theirs")
    assert {name: ours[name] for name in ("m.bin", "m.idx")} == theirs


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--multimodal"], "sequence modes are not supported"), (["--shuffle", "-1"], "must be within"), ([], "exists")],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, flags, message):
    write_pair(folder / "m", [])
    done = run(TOOL, "--input", folder / "in", "--output-prefix", folder / ("n" if flags else "m"), *flags)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
