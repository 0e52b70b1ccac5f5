"""Shards of a policy on disk: every rank writes the pieces of the flattened parameters it holds, any number of ranks read.

zero-00000-of-00002.safetensors    master/<name>, exp_avg/<name>, exp_avg_sq/<name>   one dimension each
                                   header: where each piece starts, how long the whole parameter is, the steps done
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PATTERN = "zero-*-of-*.safetensors"


@dataclass(frozen=True)
class Extent:
    """Elements [start, start + length) of a flattened parameter of `numel` elements."""

    name: str
    start: int
    length: int
    numel: int


@dataclass(frozen=True)
class Shard:
    """A piece of one parameter and of its optimizer state, by kind: master, exp_avg, exp_avg_sq."""

    extent: Extent
    tensors: dict[str, Tensor]


def write_shards(directory: Path, rank: int, world_size: int, shards: Iterable[Shard], steps: float | None) -> None:
    """Write a rank's pieces; `steps` is the optimizer's count, None before its first. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    extents: dict[str, tuple[int, int, int]] = {}
    for shard in shards:
        extent = shard.extent
        extents[extent.name] = (extent.start, extent.length, extent.numel)
        tensors |= {f"{kind}/{extent.name}": tensor.detach().cpu().clone() for kind, tensor in shard.tensors.items()}
    header = {"world_size": world_size, "steps": steps, "extents": extents}
    path = directory / f"zero-{rank:05d}-of-{world_size:05d}.safetensors"
    try:
        save_file(tensors, path, metadata={"sightline": json.dumps(header)})
    except SafetensorError as error:
        raise OSError(f"rank {rank} could not write its shards: {error}") from error


class ShardReader:
    """What `write_shards` left in a directory. Raises ValueError where that is nothing, or not whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        paths = sorted(directory.glob(PATTERN))
        if not paths:
            raise ValueError(
                f"{directory} holds no shards of DeepSpeed; another engine's are read by that engine (learner.engine=fsdp), "
                "or give the run's export as model.path"
            )
        self._files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        headers = [json.loads(file.metadata()["sightline"]) for file in self._files]
        if len(paths) != headers[0]["world_size"]:
            raise ValueError(
                f"{directory} holds the shards of {len(paths)} ranks, {headers[0]['world_size']} wrote them: it is not whole"
            )
        self.steps: float | None = headers[0]["steps"]
        self._found: dict[str, list[tuple[int, Extent]]] = {}
        for number, header in enumerate(headers):
            for name, (start, length, numel) in header["extents"].items():
                self._found.setdefault(name, []).append((number, Extent(name, start, length, numel)))

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of every parameter, by name."""
        return {name: pieces[0][1].numel for name, pieces in self._found.items()}

    def read(self, kind: str, wanted: Extent) -> Tensor:
        """The `kind` of `wanted`'s elements, from whichever files have them; nothing else is read."""
        parts = []
        for number, extent in sorted(self._found[wanted.name], key=lambda piece: piece[1].start):
            low = max(wanted.start, extent.start)
            high = min(wanted.start + wanted.length, extent.start + extent.length)
            if low < high:
                piece = self._files[number].get_slice(f"{kind}/{wanted.name}")
                parts.append(piece[low - extent.start : high - extent.start])
        return torch.cat(parts) if parts else torch.empty(0)
