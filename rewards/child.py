"""The process in which rewards run: reads batches from a socket, answers one verdict at a time.

    pool ── (reward name, kwargs) ──► child ── None | error text ──► pool          once
    pool ── [(sample, completion), …] ──► child ── verdict, verdict, … ──► pool    per batch

It imports what rewards need and no more (no torch, no Ray), so that a killed child is replaced in a fraction of a second.
"""

from __future__ import annotations

import fcntl
import os
import signal
from multiprocessing.connection import Connection

from rewards.judge import judge
from rewards.registry import RewardLookupError, resolve


def die_with_parent(lifeline: int) -> None:
    """Let the kernel end this process group when the other end of the pipe `lifeline` closes.

    A thread that waits for end-of-file would not do: a hung regular expression holds the interpreter's lock. Nor would
    PR_SET_PDEATHSIG: it fires when the *thread* that started the child ends. SIGIO's default action is to terminate.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgid(0))
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def serve(channel: int, lifeline: int) -> None:
    """Answer batches on the file descriptor `channel` until the pool closes it."""
    die_with_parent(lifeline)
    pool = Connection(channel)
    try:
        name, kwargs = pool.recv()
        try:
            reward = resolve(name, kwargs)
        except RewardLookupError as error:
            pool.send(str(error))
            return
        pool.send(None)
        while True:
            for sample, completion in pool.recv():
                pool.send(judge(reward, kwargs, sample, completion))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
