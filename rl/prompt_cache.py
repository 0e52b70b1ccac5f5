"""Encoded prompts that may be used again, kept until they are or all are let go; past a bound in bytes the oldest go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Prompt = TypeVar("Prompt", bound=Sized)


class KeptPrompts(Generic[Prompt]):
    """What is `put` stays until it is taken, until newer ones need its room, or until all is cleared."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._kept: OrderedDict[Hashable, Prompt] = OrderedDict()

    def take(self, key: Hashable) -> Prompt | None:
        """The prompt of this key, which is kept no longer; None where there is none."""
        prompt = self._kept.pop(key, None)
        if prompt is not None:
            self.nbytes -= prompt.nbytes
        return prompt

    def put(self, key: Hashable, prompt: Prompt) -> None:
        """Keep it as the newest, if it fits at all."""
        if prompt.nbytes > self.max_bytes:
            return
        self.take(key)
        self._kept[key] = prompt
        self.nbytes += prompt.nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0
