"""Independent jobs on threads. Reading, writing, hashing and copying release the interpreter, so threads are enough."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from data_indexing.progress import Advance

Tell = Callable[[int, str], None]
"""Takes the bytes that were just dealt with and the name of what they belong to; raises once the work was called off."""

T = TypeVar("T")


class CalledOffError(Exception):
    """Another job has failed or the user has interrupted."""


def run_jobs(jobs: Sequence[Callable[[Tell], T]], *, workers: int, advance: Advance) -> list[T]:
    """The results of all jobs, at most `workers` at a time. The first error ends the others at their next `tell` and is raised."""
    lock, called_off = threading.Lock(), threading.Event()

    def tell(amount: int, note: str) -> None:
        if called_off.is_set():
            raise CalledOffError
        with lock:
            advance(amount, note)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(job, tell) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            errors = [error for future in done if (error := future.exception()) and not isinstance(error, CalledOffError)]
            if errors:
                raise errors[0]
        finally:
            called_off.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures]
