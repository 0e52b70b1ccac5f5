"""A session leaves nothing behind: not at its end, not after an error, not after Ctrl-C, not after SIGKILL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.config import ClusterConfig
from cluster.interruptions import Interruptions
from cluster.session import Session, ray_session
from tests.cluster.conftest import CPUS

ROOT = Path(__file__).resolve().parents[2]


class Driver:
    """`tests.cluster.driver` in a process group of its own, as a terminal runs it."""

    def __init__(self, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.driver", mode],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.seen: dict[str, Any] = json.loads(line) if line else pytest.fail(self.process.communicate()[1])

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err

    @property
    def running(self) -> list[int]:
        return [pid for pid in self.seen["family"] if _runs(pid)]

    @property
    def segments(self) -> list[str]:
        return [name for name in self.seen["segments"] if Path(name).exists()]


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def comes_true(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def cleanup() -> Iterator[list[Driver]]:
    """Whatever a failed test leaves running is ended after it."""
    drivers: list[Driver] = []
    yield drivers
    for driver in drivers:
        for pid in [driver.process.pid, driver.seen["own"], *driver.running]:
            if _runs(pid):
                psutil.Process(pid).kill()
        for name in driver.segments:
            Path(name).unlink()
        shutil.rmtree(driver.seen["directory"], ignore_errors=True)


def assert_nothing_left(driver: Driver, out: str, err: str) -> None:
    assert driver.running == []
    assert driver.segments == []
    assert not Path(driver.seen["directory"]).exists()
    # It says what it had to end: what the actors had abandoned.
    assert all(f"Ended what outlived the Ray session: process {pid}" in err for pid in driver.seen["orphans"])
    # And it ends nothing of the program's own.
    assert json.loads(out) == {"own_process_runs": True}


def test_a_normal_end(cleanup: list[Driver]) -> None:
    driver = Driver("return")
    cleanup.append(driver)
    code, out, err = driver.finish()
    assert code == 0
    assert_nothing_left(driver, out, err)


def test_an_error_keeps_the_logs_and_nothing_else(cleanup: list[Driver]) -> None:
    driver = Driver("raise")
    cleanup.append(driver)
    code, out, err = driver.finish()
    assert code == 1 and "RuntimeError: as told" in err
    assert_nothing_left(driver, out, err)
    logs = Path(f"{driver.seen['directory']}-logs")
    assert f"kept in {logs}" in err
    assert {path.name.rsplit("-", 1)[1] for path in logs.glob("worker-*.out")} >= {
        f"{pid}.out" for pid in driver.seen["actors"]
    }
    shutil.rmtree(logs)


def test_ctrl_c_and_an_impatient_second_and_third_one(cleanup: list[Driver]) -> None:
    driver = Driver("wait")
    cleanup.append(driver)
    for _ in range(3):
        driver.press_ctrl_c()
        time.sleep(0.3)
    code, out, err = driver.finish()
    assert code == -signal.SIGINT and "KeyboardInterrupt" in err
    assert "Stopping the actors" in err
    assert_nothing_left(driver, out, err)


def test_sigterm_while_ray_waits(cleanup: list[Driver]) -> None:
    """As a run does nearly all of its time. Ray turns an exit that interrupts it into one of its own."""
    driver = Driver("wait_in_ray")
    cleanup.append(driver)
    driver.process.terminate()
    code, out, err = driver.finish()
    assert code == 128 + signal.SIGTERM
    assert_nothing_left(driver, out, err)


def test_sigkill_is_followed_by_the_guardian(cleanup: list[Driver]) -> None:
    """What the kernel does when memory runs out: the program itself cannot clean up."""
    driver = Driver("wait")
    cleanup.append(driver)
    driver.process.kill()
    assert comes_true(lambda: driver.running == [] and driver.segments == [])
    assert not Path(driver.seen["directory"]).exists()


def test_a_session_listens_on_loopback_only(session: Session) -> None:
    listening = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and all(address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for address in listening)


def test_a_second_session_in_one_program_is_refused(session: Session) -> None:
    with pytest.raises(RuntimeError, match="already running"), ray_session(ClusterConfig()):
        pass


def test_a_signal_interrupts_until_the_clean_up_begins() -> None:
    with Interruptions() as interruptions:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
        interruptions.hold()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_the_program_ignores_stays_ignored() -> None:
    """nohup: closing the terminal must not end the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptions():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interruptions_off_the_main_thread_do_nothing() -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Interruptions() as interruptions:
            interruptions.hold()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [handler]


def test_a_cluster_is_joined_through_ray_address_and_survives_the_program(session: Session) -> None:
    """The address as `ray job submit` passes it; the program's own actors end with it, the cluster goes on."""
    program = """
import ray
from cluster.config import ClusterConfig
from cluster.group import ActorGroup
from cluster.placement import RoleSpec, place
from cluster.session import ray_session
from tests.cluster.workers import Worker

with ray_session(ClusterConfig()) as session:
    placement = session.own(place([RoleSpec("worker", 1)], timeout_s=60, may_grow=not session.local))
    group = session.own(ActorGroup.start("worker", Worker, placement["worker"], timeout_s=120))
    print(session.local, ray.get_runtime_context().gcs_address, *group.call_all("name"))
"""
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_ADDRESS": address}
    joined = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90
    )
    assert joined.stdout.split() == ["False", address, "rank0"], joined.stderr
    assert comes_true(lambda: ray.available_resources().get("CPU") == CPUS)
