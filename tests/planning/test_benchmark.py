"""`benchmarks/planner.py` takes any file with the columns, and says what it could not use."""

import json
import subprocess
import sys
from pathlib import Path

from tests.planning.test_published import DGXC

ROOT = Path(__file__).resolve().parents[2]
MEMORY = (
    "test,file,tp,pp,vpp_layers,cp,ep,experts,layers,hidden,heads,kv,ffn,swiglu,seq,mbs,gbs,sp,distopt,recompute,mem_max_gb\n"
    "gpt/gpt3_7b_tp4_pp1_memory_speed,golden.json,4,1,,1,1,,32,4096,32,8,,,8192,2,8,False,True,/,57.1438\n"
    "moe/some_experts,golden.json,1,1,,1,2,8,12,512,8,,,,1024,4,32,False,True,/,3.1\n"
    "gpt/gpt3_15b,golden.json,4,2,8,1,1,,32,6144,48,8,,True,4096,4,,True,True,/,28.4\n"
)


def run(*words: str | Path) -> list[str]:
    command = [sys.executable, ROOT / "benchmarks" / "planner.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    return done.stdout.splitlines()


def test_both_files_are_predicted_row_by_row(tmp_path):
    runs, memory, plot = tmp_path / "runs.csv", tmp_path / "memory.csv", tmp_path / "plot.svg"
    rows = [DGXC, DGXC | {"precision": "fp8"}, DGXC | {"gbs": ""}]
    lines = [",".join(DGXC), *(",".join(row.values()) for row in rows)]
    runs.write_text("\n".join(lines) + "\n")
    memory.write_text(MEMORY)
    output = run("--runs", runs, "--memory", memory, "--plot", plot)
    report = json.loads(output[-1])
    assert report["runs"]["held_out_bf16"]["rows"] == 1 and report["runs"]["unusable"] == 2
    assert report["memory"]["dense"] == {"rows": 1, "median": 0.017, "p90": 0.017, "largest": 0.017}
    refused = [line for line in output if line.startswith("not used")]
    assert [line.rpartition(": ")[2] for line in refused] == ["not bf16 or fp16", "no gbs", "mixture of experts", "no gbs"]
    assert "<circle" in plot.read_text()


def test_the_markdown_has_every_test(tmp_path):
    memory = tmp_path / "memory.csv"
    memory.write_text(MEMORY)
    output = run("--memory", memory, "--markdown")
    assert any(line.startswith("| gpt/gpt3_7b_tp4_pp1_memory_speed | 56.17 | 57.14 (1)") for line in output)
    assert sum(line.startswith("not used") for line in output) == 2
