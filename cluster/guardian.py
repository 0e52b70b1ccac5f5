"""Small processes that clean up after what was killed outright: a program with a local Ray session, an actor on a cluster.

A program that ends, fails or is interrupted cleans up itself. One that gets SIGKILL, from the kernel when memory runs out
say, cannot: Ray's raylet follows it, but some of its agents, orphans of actors and shared memory stay. The guardian waits at
the end of a pipe; when the pipe closes without a last word, it does what the program would have done.

    line 1   sys.path, so that it finds this module
    line 2   the session's directory, mark and earlier segments
    line 3   Ray's own processes, once it is up: its agents give no hint of their session any more when they are orphans
    line 4   "done", or the end of the pipe

A cluster that was only joined goes on, so every actor on it gets a follower (`guard_this_process`), which outlives it: Ray
ends the actors of a killed driver, but neither what they started in sessions of their own nor their shared memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from cluster.leftovers import MARK, Leftovers

_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); import cluster.guardian as g; g.watch()"
# The fork leaves no child of the actor's: Ray kills those of a worker that exits.
_FOLLOWER = (
    "import json, os, sys; os.fork() and os._exit(0); sys.path[:] = json.loads(sys.argv[1]); "
    "import cluster.guardian as g; g.follow(*json.loads(sys.argv[2]))"
)


class Guardian:
    """Watches over `leftovers` while entered."""

    def __init__(self, leftovers: Leftovers) -> None:
        self._leftovers = leftovers

    def __enter__(self) -> Self:
        # Unmarked, and in a session of its own: neither a Ctrl-C nor the clean-up itself may end it.
        unmarked = {key: value for key, value in os.environ.items() if key != MARK}
        command = [sys.executable, "-c", _BOOTSTRAP]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True, env=unmarked)
        self._say(json.dumps(sys.path))
        segments = [str(segment) for segment in self._leftovers.segments_before]
        self._say(json.dumps([str(self._leftovers.directory), self._leftovers.mark, segments]))
        return self

    def ray_is_up(self) -> None:
        """Tell it which processes are Ray's own."""
        self._leftovers.remember()
        self._say(json.dumps(self._leftovers.known()))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate("done")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def watch() -> None:
    """The guardian's own process: waits for the pipe to close, and cleans up unless it was told that all is done."""
    directory, mark, segments = json.loads(sys.stdin.readline())
    rays_own, _, last_word = sys.stdin.read().partition("\n")
    if "done" in (rays_own, last_word):
        return
    leftovers = Leftovers(Path(directory), mark, map(Path, segments))
    leftovers.adopt(json.loads(rays_own or "[]"))
    leftovers.end()
    shutil.rmtree(directory, ignore_errors=True)


def guard_this_process() -> None:
    """In an actor, before it starts anything: have what it will start ended after it, however it ends.

    Nothing to do in a local session, whose mark every actor carries: the session's guardian watches over them all.
    """
    if MARK in os.environ:
        return
    leftovers = Leftovers(None)
    watched = [os.getpid(), leftovers.mark, [str(segment) for segment in leftovers.segments_before]]
    command = [sys.executable, "-c", _FOLLOWER, json.dumps(sys.path), json.dumps(watched)]
    subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True, check=True)
    os.environ[MARK] = leftovers.mark


def follow(pid: int, mark: str, segments: list[str]) -> None:
    """The follower's own process: waits for the actor `pid` to end, then ends what it left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()
    Leftovers(None, mark, map(Path, segments)).end()
