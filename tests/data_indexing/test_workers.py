import os
import signal
import threading
import time
from itertools import pairwise

import psutil
import pytest

from data_indexing.errors import DataError
from data_indexing.workers import LARGE_ITEM_BYTES, Team, available_cores


def double(number):
    return 2 * number


def large(_):
    return bytes(1 << 20)


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_at_three(number):
    return 1 // (number - 3)


def refuse(number):
    raise DataError(f"{number} is not wanted")


class Prepared:
    """Says which process prepared it and which runs it."""

    parent = 0

    def prepare(self):
        self.parent = os.getpid()

    def __call__(self, item):
        return self.parent, os.getpid()


class NotPrepared:
    def prepare(self):
        raise DataError("no such thing")

    def __call__(self, item):
        return item


class SlowWithSpans:
    """When it began and when it was done."""

    def __call__(self, item):
        start = time.monotonic()
        time.sleep(0.02)
        return item, start, time.monotonic()


def results(function, items, workers=2, **more):
    with Team(function, workers) as team:
        yield from team.map_in_order(items, **more)


def descendants():
    """Processes of this one's, but for a shell that watches over a session's cluster."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE and process.name() not in ("bash", "cat")]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(results(double, range(20), workers)) == list(range(0, 40, 2))
    assert descendants() == []


def test_a_killed_worker_is_an_error_and_never_a_wait():
    with pytest.raises(DataError, match=r"a worker process died.*fewer --workers"):
        list(results(die_at_three, range(20)))


@pytest.mark.parametrize("delay", [0, 0.05, 0.2, 0.4])
def test_any_process_of_a_team_may_be_killed_at_any_moment(delay):
    def kill_one():
        while not (found := descendants()):
            time.sleep(0.001)
        time.sleep(delay)
        descendants()[-1].kill() if delay else found[0].kill()

    killer = threading.Thread(target=kill_one)
    with pytest.raises(DataError, match="died"):
        found = results(large, iter(int, 1))
        killer.start()
        for _ in found:
            pass
    killer.join()
    assert descendants() == []


def test_a_bug_in_a_worker_is_shown_as_it_happened_and_a_mistake_of_the_user_as_it_is():
    with pytest.raises(RuntimeError, match=r"(?s)in fail_at_three.*ZeroDivisionError"):
        list(results(fail_at_three, range(20)))
    with pytest.raises(DataError, match=r"^7 is not wanted$"):
        list(results(refuse, [7]))


def test_a_function_is_prepared_once_before_the_workers_part():
    found = list(results(Prepared(), range(8)))
    assert len({parent for parent, _ in found}) == 1
    assert len({own for _, own in found}) == 2
    with pytest.raises(DataError, match="no such thing"):
        list(results(NotPrepared(), [1]))


def test_items_are_read_at_most_two_a_worker_ahead():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with Team(double, 2) as team:
        next(team.map_in_order(items()))
    assert len(taken) <= 2 * 2 + 1


def test_large_items_are_under_way_one_at_a_time():
    found = list(results(SlowWithSpans(), range(10), num_bytes=lambda item: LARGE_ITEM_BYTES + 1 if item % 2 else 0))
    spans = sorted((start, end) for item, start, end in found if item % 2)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_there_is_at_least_one_core():
    assert available_cores() >= 1
