"""The pool: verdicts in order, hung and crashed calls cut and named, nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from data.box import Frame
from data.sample import Sample
from rewards.config import RewardConfig
from rewards.pool import RewardPool
from rewards.registry import RewardLookupError
from rewards.score import Completion, RewardFailure, Score

HERE = Path(__file__).parent
FRAME = Frame.thousandths()


@pytest.fixture(autouse=True)
def user_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def pairs(sample: Sample, texts: Sequence[str]) -> list[tuple[Sample, Completion]]:
    return [(sample, Completion(text, FRAME)) for text in texts]


def comes_true(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_verdicts_come_in_the_order_of_the_pairs(sample: Sample) -> None:
    with RewardPool(RewardConfig("user_rewards:length", {"scale": 2.0}, workers=3)) as pool:
        assert pool.score([]) == []
        assert pool.score(pairs(sample, ["a"])) == [Score(2.0)]
        verdicts = pool.score(pairs(sample, ["x" * n for n in range(50)]))
    assert verdicts == [Score(2.0 * n) for n in range(50)]


def test_a_batch_larger_than_a_pipe_crosses(sample: Sample) -> None:
    with RewardPool(RewardConfig("user_rewards:length", workers=2)) as pool:
        assert pool.score(pairs(sample, ["x" * 100_000] * 60)) == [Score(100_000.0)] * 60


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise", "KeyError: 'no such category'"),
        ("exit", "SystemExit: 7"),
        ("crash", "the reward ended its process (exit code 3)"),
        ("loop", "timed out after 1 s"),
        ("sleep", "timed out after 1 s"),
        ("backtrack", "timed out after 1 s"),
        ("nan", "ValueError: a score must be finite, got total=nan"),
        ("text", "TypeError: a reward returns a Score or a float, got str"),
        ("recurse", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_call_that_goes_wrong_is_a_named_failure_and_nothing_else_is(sample: Sample, text: str, reason: str) -> None:
    with RewardPool(RewardConfig("user_rewards:by_text", timeout_s=1.0)) as pool:
        first, failure, last = pool.score(pairs(sample, ["fine", text, "fine"]))
        assert (first, last) == (Score(0.5), Score(0.5))
        assert isinstance(failure, RewardFailure) and failure.reason.startswith(reason)
        assert pool.score(pairs(sample, ["fine"])) == [Score(0.5)]


def test_hung_calls_of_two_workers_are_cut_at_the_same_time(sample: Sample) -> None:
    with RewardPool(RewardConfig("user_rewards:by_text", timeout_s=1.0, workers=2)) as pool:
        verdicts = pool.score(pairs(sample, ["fine", "loop", "sleep", "fine"]))
    assert [type(verdict) for verdict in verdicts] == [Score, RewardFailure, RewardFailure, Score]


def test_it_works_off_the_main_thread(sample: Sample) -> None:
    verdicts: list[Score | RewardFailure] = []

    def run() -> None:
        with RewardPool(RewardConfig("user_rewards:by_text", timeout_s=0.5)) as pool:
            verdicts.extend(pool.score(pairs(sample, ["loop", "fine"])))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert verdicts == [RewardFailure("timed out after 0.5 s"), Score(0.5)]


def test_children_outlive_the_thread_that_started_them(sample: Sample) -> None:
    """A pool that lives in a threaded actor: the thread of the first batch ends, the next batch comes from another."""
    pool = RewardPool(RewardConfig("user_rewards:parts"))
    thread = threading.Thread(target=pool.score, args=(pairs(sample, ["a"]),))
    thread.start()
    thread.join()
    (pid,) = pool.pids
    (verdict,) = pool.score(pairs(sample, ["b"]))
    assert isinstance(verdict, Score) and verdict.parts["pid"] == pid
    pool.close()


def test_a_child_killed_between_batches_is_replaced(sample: Sample) -> None:
    with RewardPool(RewardConfig("user_rewards:parts")) as pool:
        pool.score(pairs(sample, ["a"]))
        (pid,) = pool.pids
        psutil.Process(pid).kill()
        comes_true(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        (verdict,) = pool.score(pairs(sample, ["b"]))
    assert isinstance(verdict, Score) and verdict.parts["pid"] != pid


def test_close_leaves_no_process_not_even_a_grandchild(sample: Sample, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with RewardPool(RewardConfig("user_rewards:by_text", timeout_s=1.0)) as pool:
        pool.score(pairs(sample, ["fine", f"spawn {note}"]))
        assert comes_true(lambda: not psutil.pid_exists(int(note.read_text())))
        pids = pool.pids
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("text", ["fine", "loop", "backtrack"])
def test_a_pool_whose_process_is_killed_leaves_no_child(tmp_path: Path, text: str) -> None:
    """SIGKILL to the owner, while the child idles, loops, or is stuck in C with the interpreter's lock held."""
    note = tmp_path / "pid"
    owner = f"""
import pathlib, sys, threading
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent.parent)!r}]
from conftest import sample as fixture
from rewards.config import RewardConfig; from rewards.pool import RewardPool
from rewards.score import Completion; from data.box import Frame
pool = RewardPool(RewardConfig("user_rewards:by_text", timeout_s=600.0))
sample = fixture.__wrapped__() if hasattr(fixture, "__wrapped__") else fixture.__pytest_wrapped__.obj()
pool.score([(sample, Completion("fine", Frame.thousandths()))])
pathlib.Path({str(note)!r}).write_text(str(pool.pids[0]))
print("up", flush=True)
pool.score([(sample, Completion({text!r}, Frame.thousandths()))])
threading.Event().wait()
"""
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        child = psutil.Process(int(note.read_text()))
        time.sleep(0.3)  # Into the call.
        process.send_signal(signal.SIGKILL)
    assert comes_true(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_an_interrupted_batch_does_not_answer_the_next_one(sample: Sample) -> None:
    with RewardPool(RewardConfig("user_rewards:by_text", timeout_s=600.0)) as pool:
        pool.score(pairs(sample, ["fine"]))
        timer = threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.score(pairs(sample, ["fine", "sleep"]))
        assert pool.pids == []
        assert pool.score(pairs(sample, ["nan", "fine"]))[1] == Score(0.5)


def test_an_unknown_reward_and_a_bad_setting_stop_at_once() -> None:
    with pytest.raises(RewardLookupError):
        RewardPool(RewardConfig("locsu"))
    with pytest.raises(ValueError, match="timeout_s"):
        RewardPool(RewardConfig(timeout_s=0.0))
    with pytest.raises(ValueError, match="workers"):
        RewardPool(RewardConfig(workers=0))


def test_the_children_import_neither_torch_nor_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Sample) -> None:
    (tmp_path / "imports_seen.py").write_text(
        "import sys\ndef reward(sample, completion):\n    return float(len({'torch', 'ray', 'vllm'} & set(sys.modules)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with RewardPool(RewardConfig("imports_seen:reward")) as pool:
        assert pool.score(pairs(sample, ["a"])) == [Score(0.0)]
