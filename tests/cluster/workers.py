"""A plain class for actor groups, with every way to fail."""

from __future__ import annotations

import os
import threading
import time


class Worker:
    def __init__(self, rank: int = 0, fail: str = "") -> None:
        self.rank = rank
        print(f"worker {rank} speaks", flush=True)
        if fail == "raise":
            raise KeyError("no checkpoint there")
        if fail == "exit":
            os._exit(3)

    def name(self, prefix: str = "rank", *, suffix: str = "") -> str:
        # The first rank answers last.
        time.sleep(0.2 if self.rank == 0 else 0.0)
        return f"{prefix}{self.rank}{suffix}"

    def environment(self, key: str) -> str | None:
        return os.environ.get(key)

    def name_or_hang(self, hang: bool) -> str:
        if hang:
            threading.Event().wait()
        return self.name()

    def fail_or_hang(self, how: str) -> None:
        """Rank 1 fails; the others wait for it for ever, as a collective does."""
        if self.rank != 1:
            threading.Event().wait()
        if how == "raise":
            raise OSError("no space left on device")
        os._exit(5)
