"""The background thread: in order, errors to whoever waits, and no hold on the end of a program."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from data.background import BackgroundThread

PATIENCE_S = 20.0


def test_tasks_are_done_in_order_and_errors_reach_whoever_waits() -> None:
    thread, done = BackgroundThread("worker"), list[int]()
    first, failing, last = thread.submit(done.append, 1), thread.submit(int, "x"), thread.submit(done.append, 2)
    assert first.result(PATIENCE_S) is None
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(PATIENCE_S)
    last.result(PATIENCE_S)
    assert done == [1, 2]
    assert thread.submit(threading.current_thread).result(PATIENCE_S).name == "worker"


def test_what_is_cancelled_before_its_turn_is_not_done() -> None:
    thread, going_on, done = BackgroundThread("worker"), threading.Event(), list[int]()
    thread.submit(going_on.wait, PATIENCE_S)
    given_up = thread.submit(done.append, 1)
    assert given_up.cancel()
    going_on.set()
    thread.submit(done.append, 2).result(PATIENCE_S)
    assert done == [2]


def test_it_ends_with_its_owner_and_when_it_is_closed() -> None:
    let_go, closed = BackgroundThread("a"), BackgroundThread("b")
    threads = [each.submit(threading.current_thread).result(PATIENCE_S) for each in (let_go, closed)]
    del let_go
    gc.collect()
    closed.close(PATIENCE_S)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_program_ends_whatever_its_thread_still_had_to_do() -> None:
    program = (
        "import threading; from data.background import BackgroundThread\n"
        "thread = BackgroundThread('worker')\n"
        "for _ in range(3): thread.submit(threading.Event().wait)\n"
        "raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False).returncode == 7
