"""Ctrl-C and SIGTERM as exceptions that unwind the program, and held back while it cleans up after itself."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: `ray job stop`, a batch system's time limit, a closed terminal. `code` is 128 + the signal."""

    code: int


class Interruptions:
    """While entered: SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP raise Terminated; after `hold`, they only say wait.

    Off the main thread, where Python delivers no signals, it does nothing. A signal that the program was started to ignore
    (nohup, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._held = False
        self.termination: Terminated | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            self._before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
            self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals over, again if a library has taken them meanwhile."""
        for number in self._before:
            signal.signal(number, self._on_signal)

    def hold(self) -> None:
        """From here on a signal no longer breaks what is being done."""
        self._held = True
        self.install()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            os.write(2, b"\nStopping the actors; this takes a few seconds.\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.termination = Terminated(128 + number)
            raise self.termination
