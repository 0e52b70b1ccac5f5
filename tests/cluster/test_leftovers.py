"""Shared memory in use is told from shared memory that was left, whoever made it."""

from __future__ import annotations

import multiprocessing
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

from cluster.leftovers import _segments, _unused


def test_a_semaphore_in_use_is_not_taken_for_a_leftover() -> None:
    """glibc maps it under a temporary name that is deleted at once: only its inode tells that it is alive."""
    before = _segments()
    lock = multiprocessing.get_context("spawn").Lock()
    made = _segments() - before
    assert made and all(path.name.startswith("sem.") for path in made)
    assert _unused(made) == set()
    assert lock.acquire(timeout=1)


def test_a_segment_nobody_holds_is_a_leftover_and_a_mapped_one_is_not() -> None:
    segment = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]
    path = Path("/dev/shm") / segment.name
    assert _unused(frozenset({path})) == set()
    segment.close()
    assert _unused(frozenset({path})) == {path}
    path.unlink()
