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
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

import ray
from ray._private import ray_constants

from cluster.config import ClusterConfig
from cluster.guardian import Guardian
from cluster.interruptions import Interruptions
from cluster.job import job_environment
from cluster.leftovers import MARK, Leftovers

# ActorGroup reports the first rank that failed; Ray would report the abandoned calls of the others once more.
ENVIRONMENT = {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}
# What a local Ray and its workers need on few cores: no deprioritised workers, one thread a process, no phoning home.
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_events_max_num_task_in_gcs": "1000",  # of 100,000 finished calls it would remember 3 KB each, 300 MB
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# What a joined cluster's workers get of it: how its nodes were started is not ours; threads Ray sets by an actor's CPUs.
WORKER_ENVIRONMENT = {"RAY_worker_niceness": "0", "OMP_WAIT_POLICY": "PASSIVE"}


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
    with Interruptions() as interruptions, _environment(ENVIRONMENT):
        if address == "local":
            connection = _local_ray(config, interruptions)
        else:
            connection = _joined_ray(config, address, interruptions)
        with connection, ExitStack() as owned:
            # ray.init puts a SIGTERM handler of its own in place.
            interruptions.install()
            try:
                yield Session(address == "local", owned)
            except SystemExit:
                # Ray, interrupted while it waits, raises a SystemExit of its own, with status 0.
                if interruptions.termination is not None:
                    raise interruptions.termination from None
                raise
            finally:
                interruptions.hold()


@contextlib.contextmanager
def _joined_ray(config: ClusterConfig, address: str, interruptions: Interruptions) -> Iterator[None]:
    namespace = f"sightline-{uuid.uuid4().hex[:8]}"
    # Ray refuses a variable that the job was submitted with too; the job's counts.
    ours = {key: value for key, value in WORKER_ENVIRONMENT.items() if key not in job_environment()}
    with _loopback() if address.startswith("127.") else contextlib.nullcontext():
        ray.init(address=address, namespace=namespace, log_to_driver=config.worker_logs, runtime_env={"env_vars": ours})
    try:
        yield
    finally:
        interruptions.hold()
        ray.shutdown()


@contextlib.contextmanager
def _local_ray(config: ClusterConfig, interruptions: Interruptions) -> Iterator[None]:
    """A Ray of this program's own on loopback; afterwards no process of it and no shared memory is left."""
    # Ray guards a local cluster with a token by itself, and warns that it does.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Ray's sockets live in this directory and a Unix socket's path ends at 107 bytes: TMPDIR may be too deep.
    directory = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    leftovers = Leftovers(directory)
    failed = False
    with _environment(LOCAL_ENVIRONMENT, {MARK: leftovers.mark}), Guardian(leftovers) as guardian:
        try:
            with _loopback():
                ray.init(
                    address="local",
                    num_cpus=config.local_cpus,
                    object_store_memory=config.local_object_store_mb << 20,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    log_to_driver=config.worker_logs,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(directory),
                )
            guardian.ray_is_up()
            yield
        except Exception:
            failed = True
            raise
        finally:
            interruptions.hold()
            leftovers.remember()
            ray.shutdown()
            leftovers.end()
            _discard(directory, keep_logs=failed)


def _discard(directory: Path, keep_logs: bool) -> None:
    """Remove a local Ray's directory, its spilled objects with it; after a failure the actors' logs stay beside it."""
    logs = directory / "session_latest" / "logs"
    if keep_logs and logs.is_dir():
        kept = directory.with_name(f"{directory.name}-logs")
        shutil.move(logs.resolve(), kept)
        print(f"The logs of Ray and of every actor are kept in {kept}", file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray accept 127.0.0.1 as an address, so that it listens and connects on loopback only.

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
def _environment(defaults: Mapping[str, str], forced: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Set `defaults` unless the user has set them, and `forced`, for this process's children; take them back afterwards."""
    before = {key: os.environ.get(key) for key in (*defaults, *forced)}
    os.environ.update({**defaults, **os.environ, **forced})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
