"""A driver for `ray job submit` whose two actors start processes and shared memory and clean up neither; it never ends.

`python -m tests.integration.littering_job FILE` writes what runs to FILE as JSON, then waits to be killed.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.group import ActorGroup
from cluster.placement import RoleSpec, place
from cluster.preflight import describe, preflight
from cluster.session import ray_session
from rl.runlog import write_atomically
from tests.cluster.driver import Litterer


class Late:
    """Starts nothing before it is asked to, as our actors do."""

    def litter(self) -> tuple[int, int, str]:
        self.litterer = Litterer()
        return self.litterer.litter()


def main(file: str) -> None:
    with ray_session(ClusterConfig()) as session:
        placement = session.own(place([RoleSpec("litterer", 2, cpus=2)], timeout_s=60, may_grow=not session.local))
        group = session.own(ActorGroup.start("litterer", Late, placement["litterer"], timeout_s=120))
        actors, orphans, segments = zip(*group.call_all("litter"), strict=True)
        facts = {"driver": asdict(describe()), "workers": [asdict(worker) for worker in preflight([group])["litterer"]]}
        started = {"local": session.local, "actors": actors, "orphans": orphans, "segments": segments, **facts}
        write_atomically(Path(file), json.dumps(started))
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
