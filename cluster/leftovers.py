"""Finds and ends what a local Ray session left behind: processes, also orphaned ones, and shared-memory segments.

A process belongs to the session if it is one of Ray's own (their command lines name the session's directory), descends from
one of those, or is an orphan that carries the session's mark in its environment: the children of an actor that was killed
descend from nobody. What else this program started is its own business and stays.
"""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_MARK = "SIGHTLINE_SESSION"
_SHARED_MEMORY = Path("/dev/shm")
# Ray's daemons follow their raylet within a second or two; actors in the middle of a C++ call may take longer.
_GRACE_S = 6.0


class Leftovers:
    """Enter before Ray starts; `remember` while it runs; `end` after it stopped."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._mark = uuid.uuid4().hex
        self._known: set[psutil.Process] = set()
        self._segments_before = _segments()

    def __enter__(self) -> Self:
        os.environ[_MARK] = self._mark
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.environ.pop(_MARK, None)

    def remember(self) -> None:
        """Note the session's processes while their parents live and tell whose they are."""
        family = set(psutil.Process().children(recursive=True))
        for process in family:
            if self._directory in _command(process):
                self._known |= {process, *_descendants(process)}
        self._known |= {process for process in psutil.process_iter() if process not in family and self._is_marked(process)}

    def end(self) -> list[str]:
        """Wait for the session's processes to go, kill those that stay, remove segments; says and returns what stayed."""
        self.remember()
        _, stayed = psutil.wait_procs(list(self._known), timeout=_GRACE_S)
        found = [f"process {process.pid} ({_command(process)[:80]})" for process in stayed]
        for process in stayed:
            _kill(process)
        psutil.wait_procs(stayed, timeout=_GRACE_S)
        orphaned = [segment for segment in sorted(_segments() - self._segments_before) if not _in_use(segment)]
        for segment in orphaned:
            segment.unlink(missing_ok=True)
        found += [f"shared memory {segment}" for segment in orphaned]
        for what in found:
            print(f"Ended what outlived the Ray session: {what}", file=sys.stderr)
        return found

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return bool(process.pid != os.getpid() and process.environ().get(_MARK) == self._mark)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
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


def _segments() -> set[Path]:
    """This user's segments in /dev/shm; none where the system has no such folder."""
    if not _SHARED_MEMORY.is_dir():
        return set()
    segments: set[Path] = set()
    for entry in os.scandir(_SHARED_MEMORY):
        try:
            if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                segments.add(Path(entry.path))
        except FileNotFoundError:
            continue
    return segments


def _in_use(segment: Path) -> bool:
    """Whether any process has it mapped or open: another program's segment that appeared meanwhile."""
    name = str(segment)
    for process in psutil.process_iter():
        try:
            if any(mapping.path == name for mapping in process.memory_maps()):
                return True
            if any(file.path == name for file in process.open_files()):
                return True
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return False
