"""The actor of medium object_store that holds references. A module of its own: its process loads neither torch nor numpy."""

from __future__ import annotations

from typing import Any

import ray


class Shelf:
    """Holds a reference a slot until another takes its place."""

    def __init__(self) -> None:
        self._slots: dict[int, list[ray.ObjectRef[Any]]] = {}

    def put(self, slot: int, reference: list[ray.ObjectRef[Any]]) -> None:
        self._slots[slot] = reference

    def get(self, slot: int) -> list[ray.ObjectRef[Any]]:
        return self._slots[slot]

    def clear(self) -> None:
        self._slots.clear()
