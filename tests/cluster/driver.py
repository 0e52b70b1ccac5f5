"""A program with a Ray session, for test_session to stop: `python -m tests.cluster.driver return|raise|wait|wait_in_ray`.

Every actor starts a process of its own and a shared-memory segment, and cleans up neither. Prints what runs as one line
of JSON, then does what it was told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import psutil

from cluster.config import ClusterConfig
from cluster.group import ActorGroup
from cluster.placement import RoleSpec, place
from cluster.session import ray_session


class Litterer:
    def __init__(self) -> None:
        orphaned = ["sh", "-c", "setsid sleep 3600 >/dev/null & echo $!"]
        self.orphan = int(subprocess.run(orphaned, stdout=subprocess.PIPE, check=True).stdout)
        self.segment = shared_memory.SharedMemory(create=True, size=4096)
        resource_tracker.unregister(self.segment._name, "shared_memory")  # type: ignore[attr-defined]

    def litter(self) -> tuple[int, int, str]:
        return os.getpid(), self.orphan, f"/dev/shm/{self.segment.name}"

    def sleep(self) -> None:
        time.sleep(3600)


def main(mode: str) -> None:
    own = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    try:
        run(mode, own)
    finally:
        print(json.dumps({"own_process_runs": own.poll() is None}), flush=True)
        own.kill()


def run(mode: str, own: subprocess.Popen[Any]) -> None:
    config = ClusterConfig(address="local", local_cpus=4, local_object_store_mb=80)
    with ray_session(config) as session:
        placement = session.own(place([RoleSpec("litterer", 2)], timeout_s=60))
        group = session.own(ActorGroup.start("litterer", Litterer, placement["litterer"], timeout_s=120))
        actors, orphans, segments = zip(*group.call_all("litter"), strict=True)
        family = {process.pid for process in psutil.Process().children(recursive=True)} - {own.pid}
        directory = sorted(Path("/tmp").glob("sl-*"), key=lambda path: path.stat().st_mtime)[-1]
        started = {"family": sorted({*family, *orphans}), "actors": actors, "orphans": orphans}
        print(json.dumps({**started, "segments": segments, "directory": str(directory), "own": own.pid}), flush=True)
        if mode == "raise":
            raise RuntimeError("as told")
        if mode == "wait":
            time.sleep(3600)
        if mode == "wait_in_ray":
            group.call_all("sleep")


if __name__ == "__main__":
    main(sys.argv[1])
