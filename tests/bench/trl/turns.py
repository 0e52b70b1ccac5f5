"""Two training programs that take turns on the same cores: each waits before a step until it is granted some more.

    bench: listen ─► grant k ─► program: k steps ─► seconds of the k steps ─► bench: grants the other one

Standard library only: one of the two programs runs in TRL's environment.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection


class Turns:
    """The program's end of a pipe, by its file descriptor. Between its turns a program waits there and computes nothing."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._connection = Connection(descriptor)
        self._left = 0
        self._began: float | None = None

    def before_step(self) -> None:
        """Wait for a grant if none is left. The first wait says that the program is ready."""
        if self._left == 0:
            self._hand_over()
            self._left = self._connection.recv()
            self._began = time.perf_counter()
        self._left -= 1

    def finish(self, rewards: list[float]) -> None:
        """After the last step: the seconds of the last turn, then the mean reward of every step."""
        self._hand_over()
        self._connection.send(rewards)
        self._connection.close()

    def _hand_over(self) -> None:
        self._connection.send(None if self._began is None else time.perf_counter() - self._began)
