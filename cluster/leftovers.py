"""Finds and ends what a Ray session left behind: processes, also orphaned ones, and shared-memory segments.

A process belongs to a local session if it is one of Ray's own, descends from one of those, or is an orphan that carries the
session's mark in its environment or writes to the session's logs: the children of an actor that was killed descend from
nobody, and Ray's workers overwrite their environment with their title. What else this program started stays. On a cluster
that is only joined Ray's processes are not ours: there an actor's children are found by the mark alone.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK = "SIGHTLINE_SESSION"
_SHARED_MEMORY = Path("/dev/shm")
# Ray's daemons follow their raylet within a second or two; actors in the middle of a C++ call may take longer.
_GRACE_S = 6.0


class Leftovers:
    """The traces of one session, which keeps its files under `directory`. Make it before Ray starts, `end` it afterwards.

    Without a `directory`: the traces of one actor, made before it starts anything.
    """

    def __init__(
        self, directory: Path | None, mark: str | None = None, segments_before: Iterable[Path] | None = None
    ) -> None:
        self.directory = directory
        self.mark = uuid.uuid4().hex if mark is None else mark
        self.segments_before = _segments() if segments_before is None else frozenset(segments_before)
        self._known: set[psutil.Process] = set()

    def remember(self) -> None:
        """Note the session's processes while their parents live and tell whose they are."""
        family = set(psutil.Process().children(recursive=True))
        for process in psutil.process_iter():
            if self._is_rays(process) if process in family else self._is_orphan(process):
                self._known |= {process, *_descendants(process)}

    def known(self) -> list[tuple[int, float]]:
        """The processes noted so far, by id and start time."""
        return [(process.pid, process.create_time()) for process in self._known if process.is_running()]

    def adopt(self, known: Iterable[tuple[int, float]]) -> None:
        """Note processes that another program's `known` listed, unless their ids have passed on to others."""
        starts = dict(known)
        for process in psutil.process_iter():
            # psutil reckons start times from the boot time, which follows the clock's corrections.
            if process.pid in starts and abs(process.create_time() - starts[process.pid]) < 2.0:
                self._known |= {process, *_descendants(process)}

    def end(self) -> list[str]:
        """Wait for the session's processes to go, kill those that stay, remove segments; says and returns what stayed."""
        self.remember()
        _, stayed = psutil.wait_procs(list(self._known), timeout=_GRACE_S)
        found = [f"process {process.pid} ({_command(process)[:80].strip()})" for process in stayed]
        for process in stayed:
            _kill(process)
        psutil.wait_procs(stayed, timeout=_GRACE_S)
        orphaned = sorted(_unused(_segments() - self.segments_before))
        for segment in orphaned:
            segment.unlink(missing_ok=True)
        found += [f"shared memory {segment}" for segment in orphaned]
        for what in found:
            print(f"Ended what outlived the Ray session: {what}", file=sys.stderr)
        return found

    def _is_rays(self, process: psutil.Process) -> bool:
        return self.directory is not None and str(self.directory) in _command(process)

    def _is_orphan(self, process: psutil.Process) -> bool:
        try:
            if process.environ().get(MARK) == self.mark:
                return True
            output = Path(f"/proc/{process.pid}/fd/1").readlink()
            return self.directory is not None and output.is_relative_to(self.directory)
        except (psutil.Error, OSError):
            # Gone meanwhile, or another user's.
            return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _segments() -> frozenset[Path]:
    """This user's segments in /dev/shm; none where the system has no such folder."""
    if not _SHARED_MEMORY.is_dir():
        return frozenset()
    segments: set[Path] = set()
    for entry in os.scandir(_SHARED_MEMORY):
        try:
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                segments.add(Path(entry.path))
        except FileNotFoundError:
            continue
    return frozenset(segments)


def _unused(segments: frozenset[Path]) -> set[Path]:
    """Those that no process has mapped or open; the others belong to programs that started meanwhile.

    Told by inode: glibc maps a semaphore under a temporary name that it deletes, so its name in the maps is another.
    """
    inodes = {segment: _inode(segment) for segment in segments}
    used: set[int] = set()
    for pid in psutil.pids() if inodes else []:
        try:
            mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
            opened = [_inode(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            # Gone meanwhile, or another user's.
            continue
        used.update(int(line.split()[4]) for line in mapped if str(_SHARED_MEMORY) in line)
        used.update(inode for inode in opened if inode is not None)
    return {segment for segment, inode in inodes.items() if inode is not None and inode not in used}


def _inode(path: Path) -> int | None:
    """The file's number on the shared-memory file system, None for what is gone or lies elsewhere."""
    try:
        found = path.stat()
        return found.st_ino if found.st_dev == _SHARED_MEMORY.stat().st_dev else None
    except OSError:
        return None
