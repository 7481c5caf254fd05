"""Who is behind, from beats, process states and stacks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_poro.training.hangs import RUNNING, STOPPED, RankReport, find_behind, main_frames, render_hang, with_stacks

BASE = RankReport(0, "nid1", 100, 7, 2, "forward", 3, 99, 130.0, 120.0, RUNNING)

STACKS = """Thread 0x00007f0000000001 (most recent call first):
  File "/lib/threading.py", line 320 in wait
  File "/lib/threading.py", line 1 in _bootstrap

Thread 0x00007f0000000002 (most recent call first):
  File "{file}", line {line} in {function}
  File "/poro/megatron_poro/__main__.py", line 8 in <module>
  File "<frozen runpy>", line 198 in _run_module_as_main

Current thread 0x00007f0000000003 (most recent call first):
  File "/lib/worker.py", line 3 in work
"""


def ranks(*changes: dict[str, Any]) -> list[RankReport]:
    return [replace(BASE, rank=rank, **change) for rank, change in enumerate(changes)]


def behind(*changes: dict[str, Any]) -> list[int]:
    return [report.rank for report in find_behind(ranks(*changes))[0]]


def test_a_stopped_rank_is_behind_whatever_else() -> None:
    assert behind({"step": 6}, {"state": STOPPED}, {}) == [1]


def test_an_earlier_step_is_behind() -> None:
    assert behind({"step": 8}, {"step": 7}, {"step": 8}) == [1]


def test_the_rank_outside_of_a_collective_is_behind_even_when_further_in_the_step() -> None:
    assert behind({"microbatch": 4, "own_work": False}, {"microbatch": 1, "own_work": True}, {"own_work": False}) == [1]
    assert behind({"microbatch": 1, "own_work": False}, {"microbatch": 4, "own_work": True}) == [1]


def test_else_the_earlier_phase_or_microbatch_is_behind() -> None:
    assert behind({"phase_number": 5}, {"phase_number": 6}, {"phase_number": 6}) == [0]
    assert behind({"microbatch": 3}, {"microbatch": 2}, {"microbatch": 3}) == [1]


def test_when_all_stand_at_the_same_point_all_are_named() -> None:
    assert behind({}, {}, {}) == [0, 1, 2]


def test_the_main_thread_is_found_among_others() -> None:
    frames = main_frames(STACKS.format(file="/x/y.py", line=5, function="compute"))
    assert frames[0] == ("/x/y.py", 5, "compute")
    assert main_frames("") == []


def test_waiting_is_told_from_work_by_the_line_of_source(tmp_path: Path) -> None:
    source = tmp_path / "code.py"
    source.write_text("handle.wait()\ntotal = a @ b\ntorch.distributed.all_reduce(x)\n")
    waits = [with_stacks(BASE, STACKS.format(file=source, line=line, function="f")).own_work for line in (1, 2, 3)]
    assert waits == [False, True, False]
    in_torch = "/venv/torch/distributed/distributed_c10d.py"
    assert with_stacks(BASE, STACKS.format(file=in_torch, line=1, function="recv")).own_work is False
    assert with_stacks(BASE, "no stacks: the process is stopped (SIGSTOP)\n") == BASE


def test_the_report_is_short_for_many_ranks_and_whole_when_asked() -> None:
    many = ranks(*[{"step": 7 if rank == 500 else 8} for rank in range(1000)])
    said = render_hang(many, missing=[1000])
    assert "rank 500 on nid1 (pid 100): step 7, forward, microbatch 2, silent for 130.0 s" in said
    assert "999 other ranks: step 8, forward" in said
    assert "never heard of: ranks 1000" in said
    assert len(said.splitlines()) < 10
    assert len(render_hang(many, missing=[], all_ranks=True).splitlines()) > 1000
