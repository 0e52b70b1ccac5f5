"""One child process of the reward pool: its pipe, its share of a batch, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from multiprocessing.connection import Connection

from data.sample import Sample
from rewards.config import RewardConfig
from rewards.registry import RewardLookupError
from rewards.score import Completion, RewardFailure, Score

Pair = tuple[Sample, Completion]

# A child imports Pillow and the reward's module; on a starved machine that is seconds, never minutes.
_START_TIMEOUT_S = 120.0
# Between the closing of a child's pipe and its exit code.
_EXIT_GRACE_S = 2.0
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import rewards.child as c; c.serve(*map(int, sys.argv[2:]))"
)


class RewardWorker:
    """Judges pairs one after the other in a process that can be killed, and replaces it when it had to be."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._share: deque[Pair] = deque()
        self.deadline = 0.0
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def busy(self) -> bool:
        """Whether verdicts are still to come."""
        return bool(self._share)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(lifeline)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, *arguments],
            pass_fds=[theirs.fileno(), lifeline],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        os.close(lifeline)
        theirs.close()
        self.channel = Connection(ours.detach())
        self.channel.send((self._config.name, self._config.kwargs))
        self._ready = False

    def await_ready(self) -> None:
        """Until the child has found its reward. Raises RewardLookupError with the child's words, or RuntimeError."""
        if self._ready:
            return
        if not self.channel.poll(_START_TIMEOUT_S):
            raise RuntimeError(
                f"a reward process was not up after {_START_TIMEOUT_S:.0f} s; does the module of {self._config.name!r} hang?"
            )
        try:
            error = self.channel.recv()
        except (EOFError, ConnectionResetError):
            ended = self._end(_EXIT_GRACE_S)
            raise RuntimeError(f"a reward process ended while starting ({ended}); its own output says why") from None
        if error is not None:
            raise RewardLookupError(error)
        self._ready = True

    def assign(self, share: Iterable[Pair]) -> None:
        """Send a share and start the clock of its first call."""
        self._share = deque(share)
        self.await_ready()
        try:
            self.channel.send(list(self._share))
        except (BrokenPipeError, ConnectionResetError):
            # It died between batches (out of memory, a stray kill): no call is to blame, a new process takes the share.
            self._restart()
            self.await_ready()
            self.channel.send(list(self._share))
        self.deadline = time.monotonic() + self._config.timeout_s

    def receive(self) -> list[Score | RewardFailure]:
        """The verdicts that have arrived, in order, waiting for one; a process that ended is its current call's failure."""
        verdicts: list[Score | RewardFailure] = []
        try:
            while self._share and (not verdicts or self.channel.poll()):
                verdicts.append(self.channel.recv())
                self._share.popleft()
        except (EOFError, ConnectionResetError):
            return [*verdicts, self._fail_current(f"the reward ended its process ({self._end(_EXIT_GRACE_S)})")]
        self.deadline = time.monotonic() + self._config.timeout_s
        return verdicts

    def cut(self) -> RewardFailure:
        """End the current call, which is past its time; the rest of the share goes on in a new process."""
        return self._fail_current(f"timed out after {self._config.timeout_s:g} s")

    def _fail_current(self, reason: str) -> RewardFailure:
        self._share.popleft()
        self._restart()
        if self._share:
            self.assign(self._share)
        return RewardFailure(reason)

    def _restart(self) -> None:
        self.kill()
        self._start()

    def kill(self) -> None:
        """End the child and whatever it started itself; returns when it is gone."""
        self._end(grace_s=0.0)
        self.channel.close()
        os.close(self._lifeline)

    def _end(self, grace_s: float) -> str:
        """End the child's process group, after `grace_s` to end by itself, and say how it ended."""
        if self._process.returncode is None:
            deadline = time.monotonic() + grace_s
            # WNOWAIT: a zombie keeps its group's id from being given to somebody else before the killpg.
            while (
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and time.monotonic() < deadline
            ):
                time.sleep(0.01)
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
