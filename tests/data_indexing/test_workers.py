import multiprocessing
import os
import signal
import threading
import time

import pytest

from data_indexing.errors import DataError
from data_indexing.workers import available_cores, map_in_order


def double(number):
    return 2 * number


def large(_):
    return bytes(1 << 20)


def kill_a_child(delay):
    while not (children := multiprocessing.active_children()):
        time.sleep(0.001)
    time.sleep(delay)
    children[0].kill()


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_at_three(number):
    return 1 // (number - 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(map_in_order(double, range(20), workers=workers)) == list(range(0, 40, 2))


def test_a_killed_worker_is_an_error_and_never_a_wait():
    with pytest.raises(DataError, match=r"a worker process died.*fewer --workers"):
        list(map_in_order(die_at_three, range(20), workers=2))


@pytest.mark.parametrize("delay", [0, 0.05, 0.1, 0.2, 0.3])
def test_a_worker_may_be_killed_at_any_moment(delay):
    with pytest.raises(DataError, match="died"):
        results = map_in_order(large, iter(int, 1), workers=2)
        killer = threading.Thread(target=kill_a_child, args=(delay,))
        killer.start()
        for _ in results:
            pass
    killer.join()
    assert multiprocessing.active_children() == []


def test_a_bug_in_a_worker_is_shown_as_it_happened():
    with pytest.raises(RuntimeError, match=r"(?s)in fail_at_three.*ZeroDivisionError"):
        list(map_in_order(fail_at_three, range(20), workers=2))


def test_items_are_read_at_most_two_a_worker_ahead():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = map_in_order(double, items(), workers=2)
    next(results)
    results.close()
    assert len(taken) <= 2 * 2


def test_there_is_at_least_one_core():
    assert available_cores() >= 1
