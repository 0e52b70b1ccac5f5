"""Media gloo and nccl: buckets broadcast from the sender to all receivers, over a process group of their own.

The group is a bare backend, made by hand from a store: it knows nothing of the default groups that FSDP and vLLM have in
the same processes. One code for both backends; they differ in how they are built, and in whose memory the buckets lie.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore
from torch.distributed.distributed_c10d import BroadcastOptions

from rl.sync.media import Party

POLL_S = 0.0005


@dataclass(frozen=True, slots=True)
class Invitation:
    """The store where the members of the group find each other."""

    host: str
    port: int


def _gloo(store: TCPStore, party: Party) -> Any:
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname=party.host)]
    options._timeout = timedelta(seconds=party.timeout_s)
    return ProcessGroupGloo(store, party.rank, party.size, options)


def _nccl(store: TCPStore, party: Party) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=party.timeout_s)
    return ProcessGroupNCCL(store, party.rank, party.size, options)


_BACKENDS: dict[str, Callable[[TCPStore, Party], Any]] = {"cpu": _gloo, "cuda": _nccl}


class _Group:
    """A member of the group."""

    def __init__(self, store: TCPStore, party: Party) -> None:
        self._store, self._device = store, party.device
        self._backends = [_BACKENDS[party.device.type](store, party)]

    def broadcast(self, content: Tensor) -> Any:
        options = BroadcastOptions()
        options.rootRank, options.rootTensor, options.asyncOp = 0, 0, True
        return self._backends[0].broadcast([content], options)

    def close(self) -> None:
        """Let a thread wait for what is still under way, which may be until the time-out: a member may be gone.

        A second call does nothing.
        """
        backends, self._backends = self._backends, []  # no name for the backend here: it must end in that thread
        if backends:
            threading.Thread(target=_forget, args=(backends,), daemon=True).start()


def _forget(backends: list[Any]) -> None:
    backends.clear()


class _Outlet:
    def __init__(self, party: Party) -> None:
        self._party = party
        self._store = TCPStore(
            party.host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=party.timeout_s)
        )
        self._slots: dict[int, Tensor] = {}
        self._works: dict[int, Any] = {}
        self._group: _Group | None = None

    def invitation(self) -> Invitation:
        return Invitation(self._party.host, self._store.port)

    def open(self) -> None:
        self._group = _Group(self._store, self._party)

    def staging(self, slot: int) -> Tensor:
        if slot in self._works:
            self._works.pop(slot).wait()
        if slot not in self._slots:
            self._slots[slot] = torch.empty(self._party.bucket_bytes, dtype=torch.uint8, device=self._party.device)
        return self._slots[slot]

    def send(self, slot: int, nbytes: int) -> None:
        assert self._group is not None
        self._works[slot] = self._group.broadcast(self._slots[slot][:nbytes])

    def rest(self) -> None:
        for work in self._works.values():
            work.wait()
        self._works.clear()
        if self._party.device.type == "cuda":
            self._slots.clear()

    def close(self) -> None:
        self._works.clear()
        if self._group is not None:
            self._group.close()


class _Inlet:
    def __init__(self, party: Party, invitation: Invitation) -> None:
        timeout = timedelta(seconds=party.timeout_s)
        store = TCPStore(invitation.host, invitation.port, is_master=False, timeout=timeout)
        self._device = party.device
        self._group = _Group(store, party)

    def take(self, token: None, into: Tensor, check: Callable[[], None]) -> None:
        work = self._group.broadcast(into)
        while not work.is_completed():
            check()
            time.sleep(POLL_S)
        work.wait()
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # a thread's own device may be another

    def rest(self) -> None:
        pass

    def close(self) -> None:
        self._group.close()


def outlet(party: Party) -> _Outlet:
    return _Outlet(party)


def inlet(party: Party, invitation: Invitation) -> _Inlet:
    return _Inlet(party, invitation)
