from pathlib import Path
from typing import Any

import pytest

from megatron_poro.observe.account import Account
from megatron_poro.observe.wandb_marks import Marks
from megatron_poro.observe.wandb_news import alert_of
from megatron_poro.observe.wandb_sync import Upload, plan_upload
from tests.observe.starts import ended, started, steps, validated

NOW = 1e12
"""Long after every record: nothing waits."""


def numbers(upload: Upload) -> list[tuple[str, int]]:
    """What is new and counts."""
    return [(r["event"], r["step"]) for r in upload.records[upload.num_told :] if id(r) in upload.counting]


def test_everything_is_new_at_first() -> None:
    upload = plan_upload([started(0), *steps(1, 2), ended(2)], [], Marks(), now=NOW)
    assert numbers(upload) == [("start", 0), ("step", 1), ("step", 2), ("end", 2)]
    assert (upload.last_step, upload.marks) == (-1, Marks(4, 0))


def test_steps_that_a_later_start_repeats_count_as_that_start_has_them() -> None:
    upload = plan_upload([started(0), *steps(1, 4), started(2), *steps(3, 3), ended(3)], [], Marks(), now=NOW)
    assert [step for event, step in numbers(upload) if event == "step"] == [1, 2, 3]


def test_what_was_uploaded_is_not_new() -> None:
    records = [started(0), *steps(1, 4), ended(4)]
    upload = plan_upload(records, [{"event": "failed"}], Marks(6, 1), now=NOW)
    assert (numbers(upload), upload.events, upload.last_step) == ([], [], 4)


def test_uploaded_steps_that_were_repeated_otherwise_are_taken_back() -> None:
    records = [started(0), *steps(1, 4), started(2), *steps(3, 5, plus=0.5), ended(5)]
    assert plan_upload(records, [], Marks(5), now=NOW).last_step == 2


def test_uploaded_steps_that_were_repeated_to_the_bit_are_kept() -> None:
    records = [started(0), *steps(1, 4), started(2), *steps(3, 5), ended(5)]
    assert plan_upload(records, [], Marks(5), now=NOW).last_step == 4


def test_uploaded_steps_that_are_not_all_repeated_are_taken_back() -> None:
    records = [started(0), *steps(1, 4), started(2), *steps(3, 3), ended(3)]
    assert plan_upload(records, [], Marks(5), now=NOW).last_step == 2


def test_the_newest_step_waits_while_the_run_goes_on() -> None:
    records = [started(0), *steps(1, 3), validated(3, 1.0)]
    now = records[-1]["time"] + 1
    assert numbers(plan_upload(records, [], Marks(), now=now))[-1] == ("step", 2)
    assert numbers(plan_upload([*records, *steps(4, 4)], [], Marks(3), now=now)) == [("step", 3), ("validation", 3)]


@pytest.mark.parametrize(
    ("record", "title"),
    [
        (started(0), None),
        (started(4), "restart"),
        (started(4, left_out=[8, 15]), "rollback"),
        ({"event": "bad_step", "step": 5, "reason": "loss is nan"}, "step left out"),
        ({"event": "checkpoint_failed", "step": 5, "path": "p", "problem": "No space left"}, "checkpoint not saved"),
        ({"event": "stragglers", "step": 5, "ranks": [{"rank": 1, "name": "n", "measure": "forward"}]}, "slow ranks"),
        ({"event": "failed", "rank": 3, "host": "nid1", "code": 137, "message": "SIGKILL"}, "failure"),
        ({"event": "hang", "behind": [3], "hosts": ["nid1"], "reason": "they do not run"}, "hang"),
        (ended(9), "done"),
        ({"event": "end", "step": 9, "stopped_by": "SIGUSR1"}, "stopped"),
        (steps(1, 1)[0], None),
    ],
)
def test_what_people_want_to_hear_of_is_an_alert(record: dict[str, Any], title: str | None) -> None:
    found = alert_of(record)
    assert (found and found[0]) == title


def at(time: float, record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "time": time}


def test_goodput_counts_steps_that_a_restart_repeats_once() -> None:
    account = Account()
    records = [
        at(100.0, started(0)),
        *(at(100.0 + n, record) for n, record in enumerate(steps(1, 4), 1)),
        at(200.0, started(2)),
        *(at(200.0 + n, record) for n, record in enumerate(steps(3, 6), 1)),
    ]
    for record in records:
        account.add(record)
    # 6 steps of a second each count, of 4 + 4 seconds from a start to its last record.
    assert account.numbers() == {"run/starts": 2.0, "run/goodput": 6 / 8}


def test_the_mark_is_all_or_nothing(tmp_path: Path) -> None:
    from megatron_poro.observe.wandb_marks import load_marks, save_marks

    assert load_marks(tmp_path) == Marks()
    save_marks(tmp_path, Marks(3, 1))
    assert load_marks(tmp_path) == Marks(3, 1)
    (tmp_path / "wandb" / "uploaded.json").write_text("{torn")
    assert load_marks(tmp_path) == Marks()
