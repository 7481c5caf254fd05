"""A short campaign of faults: what `benchmarks/faults.py` does two hundred times, done a few times."""

import json
import subprocess
import sys
from pathlib import Path

from tests.runs import REPOSITORY

NUM_FAULTS = 8


def test_a_run_that_meets_several_faults_ends_as_one_that_met_none(tmp_path: Path) -> None:
    words = [
        "--folder",
        str(tmp_path / "scratch"),
        "--faults",
        str(NUM_FAULTS),
        "--seed",
        "5",
        "--report",
        str(tmp_path / "report.json"),
    ]
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / "benchmarks" / "faults.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["faults"] >= NUM_FAULTS
    assert report["runs"] >= 1
    assert not report["problem"]
