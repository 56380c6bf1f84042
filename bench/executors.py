"""Mapping a function over chunks: in this process, in several, or (extra `ray`) over a cluster. Results come
in any order.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def here(function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[tuple[T, R]]:
    """One after the other, in this process; a task is taken when the one before it is done."""
    for task in tasks:
        yield task, function(task)


def processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """In `workers` processes, with a few tasks in flight at a time."""
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        flying: dict = {}
        try:
            for task in tasks:
                flying[pool.submit(function, task)] = task
                while len(flying) >= workers + 1:
                    done, _ = wait(flying, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield flying.pop(future), future.result()
            while flying:
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    yield flying.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def mapped(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """Locally, in as many processes as asked for; one is this process itself."""
    return here(function, tasks) if workers <= 1 else processes(function, tasks, workers)
