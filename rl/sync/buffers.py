"""Memory to receive buckets in, used again as soon as no tensor lies in it.

Loaders keep tensors for longer than a bucket: vLLM holds on to those of a layer until the layer is whole. So a buffer may
not be written again when its bucket has been read, but when the last tensor that views it is gone.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Who refers to an array that no tensor views: the list it is in, the loop over it, and the call that counts.
IDLE_REFERENCES = 3


class Buffers:
    """Buffers of up to `capacity` bytes on `device`. On a GPU torch's allocator does what is done here for host memory."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device, self._capacity = device, capacity
        self._arrays: list[npt.NDArray[np.uint8]] = []

    def get(self, nbytes: int) -> Tensor:
        """A buffer of exactly `nbytes`, its content arbitrary."""
        if self._device.type == "cuda":
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        for array in self._arrays:
            if sys.getrefcount(array) == IDLE_REFERENCES:
                return torch.from_numpy(array)[:nbytes]
        array = np.empty(self._capacity, np.uint8)  # pages that are never written cost nothing
        self._arrays.append(array)
        return torch.from_numpy(array)[:nbytes]

    def lend(self, buffer: Tensor) -> None:
        """Tell the allocator that the thread that calls reads the buffer, which another has filled."""
        if self._device.type == "cuda":
            buffer.record_stream(torch.cuda.current_stream(self._device))
