"""Medium object_store: buckets as objects of Ray's store, which brings them to the receivers' nodes.

References travel inside calls of a small actor only, where Ray counts them: sent over the line, an object would never be
freed. The actor belongs to the sender and ends with it. Two buckets are referred to at a time; Ray deletes others once a
second, or at once when their room is needed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from torch import Tensor

from rl.sync.media import Party
from rl.sync.shelf import Shelf

WAIT_S = 0.5  # between two looks at whether the sender lives


@dataclass(frozen=True, slots=True)
class Invitation:
    """The shelf's handle, as Ray serialises it out of band."""

    shelf: ActorHandle[Any]


class _Outlet:
    def __init__(self, party: Party) -> None:
        self._staging = torch.empty(party.bucket_bytes, dtype=torch.uint8)
        self._shelf: Any = ray.remote(Shelf).options(num_cpus=0).remote()

    def invitation(self) -> Invitation:
        return Invitation(self._shelf)

    def open(self) -> None:
        pass

    def staging(self, slot: int) -> Tensor:
        return self._staging

    def send(self, slot: int, nbytes: int) -> int:
        reference = ray.put(self._staging[:nbytes].numpy())  # a copy: the staging is free again
        ray.get(self._shelf.put.remote(slot, [reference]))
        return slot

    def rest(self) -> None:
        ray.get(self._shelf.clear.remote())

    def close(self) -> None:
        ray.kill(self._shelf)


class _Inlet:
    def __init__(self, party: Party, invitation: Invitation) -> None:
        self._shelf: Any = invitation.shelf
        self._timeout_s = party.timeout_s

    def take(self, token: int, into: Tensor, check: Callable[[], None]) -> None:
        (reference,) = self._wait(self._shelf.get.remote(token), check)
        content: np.ndarray[Any, np.dtype[np.uint8]] = self._wait(reference, check)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            into.copy_(torch.from_numpy(content))

    def _wait(self, reference: ray.ObjectRef[Any], check: Callable[[], None]) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while not ray.wait([reference], timeout=WAIT_S)[0]:
            check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"a bucket did not reach this node within {self._timeout_s:g} s (`sync.timeout_s`)")
        try:
            return ray.get(reference)
        except RayError:
            check()  # the shelf and its objects end with the sender, whose own words say more
            raise

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


def outlet(party: Party) -> _Outlet:
    return _Outlet(party)


def inlet(party: Party, invitation: Invitation) -> _Inlet:
    return _Inlet(party, invitation)
