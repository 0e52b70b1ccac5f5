"""Counts the bytes of tensors that are alive, by their storages: what an allocator has to hold, without its rounding."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Between `with` and its end, `now` and `peak` bytes of `held` and of every tensor that an operator made.

    Storages that are emptied and filled again in place (FSDP's gathered parameters) are followed. Memory inside a kernel is
    not seen.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in held:
            self.see(tensor)
        self._resize = torch.UntypedStorage.resize_

    def see(self, tensor: Tensor) -> None:
        """Count a tensor from now on; one on `meta` has no bytes."""
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        if local.is_meta:
            return
        storage = local.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._gone, key)
        self._record(key, storage.nbytes())

    def _record(self, key: int, size: int) -> None:
        self.now += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __enter__(self) -> LiveBytes:
        counter, resize = self, self._resize

        def resize_and_record(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage._cdata in counter._sizes:
                counter._record(storage._cdata, size)
            return result

        torch.UntypedStorage.resize_ = resize_and_record  # type: ignore[method-assign]
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *arguments: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*arguments)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result
