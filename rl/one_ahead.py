"""Maps a function one item ahead: while the caller works with a result, a thread makes the next.

thread   │ make 0 │ make 1 │ waits  │ make 2 │
caller            │ works with 0    │ with 1 │ with 2 │
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of every item in turn; what it raises is raised at its turn. The thread ends with the iterator."""
    with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
        coming: Future[Result] | None = None
        for item in items:
            made, coming = coming, thread.submit(function, item)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()
