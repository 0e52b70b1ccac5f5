"""ray_session: joins the cluster or starts a local Ray, and leaves nothing behind, however the program ends.

    with ray_session(config) as session:
        placement = session.own(place(roles, timeout_s=…))      closed in reverse order: groups, then placements,
        group = session.own(ActorGroup.start(…))                then Ray, then whatever is left is ended and named

Ctrl-C and SIGTERM unwind the program like any exception; while it is cleaning up, a second one is told to wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

import ray
from ray._private import ray_constants

from cluster.config import ClusterConfig
from cluster.leftovers import Leftovers

# What a local Ray and its workers need on few cores: no deprioritised workers, one thread a process, no phoning home.
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Closable(Protocol):
    def shutdown(self) -> None: ...


Owned = TypeVar("Owned", bound=Closable)


class Session:
    """A connection to Ray. `local`: this program started it, so no node will join. `own` ties a resource to its end."""

    def __init__(self, local: bool, stack: ExitStack) -> None:
        self.local = local
        self._stack = stack

    def own(self, resource: Owned) -> Owned:
        """Have `resource.shutdown()` called when the session ends, latest first; returns the resource."""
        self._stack.callback(resource.shutdown)
        return resource


@contextlib.contextmanager
def ray_session(config: ClusterConfig) -> Iterator[Session]:
    """Ray for the length of a `with` block. Raises ConnectionError when the named cluster does not answer."""
    config.validate()
    if ray.is_initialized():
        raise RuntimeError("Ray is already running in this process; leave its session before entering another")
    address = os.environ.get("RAY_ADDRESS", "local") if config.address == "auto" else config.address
    connect = _local_ray if address == "local" else _joined_ray
    with _orderly_signals() as closing, connect(config, address), ExitStack() as stack:
        try:
            yield Session(address == "local", stack)
        finally:
            closing.set()


@contextlib.contextmanager
def _joined_ray(config: ClusterConfig, address: str) -> Iterator[None]:
    ray.init(address=address, namespace=f"sightline-{uuid.uuid4().hex[:8]}", log_to_driver=config.worker_logs)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _local_ray(config: ClusterConfig, _address: str) -> Iterator[None]:
    """A Ray of this program's own on loopback; afterwards no process of it and no shared memory is left."""
    # Ray's sockets live in this directory and a Unix socket's path ends at 107 bytes: TMPDIR may be too deep.
    # Ray guards a local cluster with a token by itself, and warns that it does.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    directory = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    failed = True
    with _environment(LOCAL_ENVIRONMENT), Leftovers(directory) as leftovers:
        try:
            with _loopback():
                ray.init(
                    address="local",
                    num_cpus=config.local_cpus,
                    object_store_memory=config.local_object_store_mb << 20,
                    include_dashboard=False,
                    logging_level="warning",
                    log_to_driver=config.worker_logs,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(directory),
                )
            yield
            failed = False
        except (KeyboardInterrupt, SystemExit):
            failed = False
            raise
        finally:
            leftovers.remember()
            ray.shutdown()
            leftovers.end()
            if failed:
                print(f"The logs of Ray and of every actor are kept in {directory}/session_latest/logs", file=sys.stderr)
            else:
                shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray accept 127.0.0.1 as this node's address, so that it listens on loopback only.

    On Linux it replaces a loopback address with the outward one, and then listens on every interface; this flag is the
    one by which it keeps loopback on other systems.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Set what the user has not set, for this process's children; take it back afterwards."""
    added = {key: value for key, value in defaults.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _orderly_signals() -> Iterator[threading.Event]:
    """Turn SIGTERM into an exit that unwinds, and keep signals from breaking the clean-up once the yielded event is set."""
    closing = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield closing
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if closing.is_set():
            os.write(2, b"\nStopping the actors; this takes a few seconds.\n")
            return
        closing.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield closing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
