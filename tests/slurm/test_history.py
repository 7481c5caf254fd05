"""What the notes of a launch tell."""

from typing import Any

import pytest

from megatron_poro.slurm.history import attempts, done_shares, excluded, hold_reason, last_failure, num_fruitless, suspects

LAUNCH = {"event": "launch", "time": 0.0, "ids": ["7"]}


def begin(number: int, step: int, *, time: float = 0.0) -> dict[str, Any]:
    return {
        "event": "begin",
        "job": f"7_{number}",
        "restart": 0,
        "time": time,
        "step": step,
        "nodes": ["a", "b"],
        "devices": 8,
        "num_events": 0,
    }


def end(number: int, step: int, *, code: int = 1, time: float = 0.0) -> dict[str, Any]:
    return {"event": "end", "job": f"7_{number}", "time": time, "code": code, "step": step}


@pytest.mark.parametrize(
    ("notes", "newest", "count"),
    [
        ([LAUNCH], 0, 0),
        ([LAUNCH, begin(0, 0), end(0, 0)], 0, 1),
        ([LAUNCH, begin(0, 0), end(0, 10)], 10, 0),
        ([LAUNCH, begin(0, 0), end(0, 10), begin(1, 10), end(1, 10), begin(2, 10), end(2, 10)], 10, 2),
        # One that was killed with its node could not say how it ended: the next one's beginning tells.
        ([LAUNCH, begin(0, 0), begin(1, 0), begin(2, 0), end(2, 0)], 0, 3),
        ([LAUNCH, begin(0, 0), begin(1, 5), begin(2, 5)], 5, 2),
        # What was held and released starts counting anew; so does another launch.
        ([LAUNCH, begin(0, 0), end(0, 0), begin(1, 0), end(1, 0), {"event": "release"}, begin(2, 0), end(2, 0)], 0, 1),
        ([LAUNCH, begin(0, 0), end(0, 0), LAUNCH], 0, 0),
        # A bad node found before training is nobody's failure.
        ([LAUNCH, begin(0, 0), {"event": "requeue", "job": "7_0", "time": 1.0}, begin(1, 0), end(1, 0)], 0, 1),
    ],
)
def test_attempts_without_a_newer_checkpoint_are_counted(notes: list[dict[str, Any]], newest: int, count: int) -> None:
    assert num_fruitless(notes, newest) == count


def test_an_attempt_knows_its_time_and_what_it_gained() -> None:
    first, second = attempts([LAUNCH, begin(0, 0, time=5.0), end(0, 20, code=75, time=9.0), begin(1, 20, time=10.0)], 30)
    assert (first.begin, first.end, first.code, first.step_before, first.step_after) == (5.0, 9.0, 75, 0, 20)
    assert (second.end, second.code, second.step_after, second.got_on) == (None, None, 30, True)


def test_nodes_are_left_out_until_they_are_taken_back() -> None:
    notes = [{"event": "exclude", "node": node, "reason": "slow"} for node in ("a", "b")]
    assert excluded([*notes, {"event": "include", "node": "a"}]) == {"b": "slow"}
    assert excluded([*notes, LAUNCH]) == {}  # as docs/slurm.md says of a node that should not be


def test_a_hold_lasts_until_an_element_begins_or_it_is_launched_again() -> None:
    hold = {"event": "hold", "reason": "it crashes"}
    assert hold_reason([LAUNCH, hold]) == "it crashes"
    assert not hold_reason([LAUNCH, hold, {"event": "release"}])
    assert not hold_reason([LAUNCH, hold, LAUNCH])


def failed(host: str, kind: str, *, time: float) -> dict[str, Any]:
    return {"event": "failed", "host": host, "kind": kind, "rank": 3, "code": 137, "message": kind, "time": time}


def test_a_host_is_blamed_for_a_hang_at_once_and_for_a_kill_the_second_time() -> None:
    kill, again = failed("b", "signal", time=2.0), failed("b", "signal", time=3.0)
    hang = {"event": "hang", "behind": [2], "hosts": ["a"], "reason": "they do not run", "time": 1.0}
    assert suspects([failed("z", "hang", time=1.0), hang, kill], 0) == {"a": "ranks 2 hung: they do not run"}
    assert suspects([{**hang, "behind": list(range(64))}], 0) == {}
    assert suspects([kill, again], 1) == {"b": "rank 3 on b, exit code 137: signal"}
    assert suspects([failed("c", "signal", time=1.0), again], 1) == {}
    assert suspects([hang], 1) == {}
    assert suspects([failed("a", "bug", time=1.0), failed("a", "bug", time=2.0)], 0) == {}


def test_the_last_failure_is_told_with_rank_host_and_code() -> None:
    assert last_failure([failed("a", "hang", time=1.0)]) == "rank 3 on a, exit code 137: hang"
    assert not last_failure([failed("a", "hang", time=1.0)], 1)


def test_a_share_of_another_division_of_the_work_is_not_done() -> None:
    notes = [{"event": "done", "index": index, "count": 2} for index in (0, 1)]
    assert done_shares(notes, 2) == {0, 1}
    assert done_shares(notes, 4) == set()
