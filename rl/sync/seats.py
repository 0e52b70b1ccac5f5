"""Where a process works, and which medium joins learner ranks and samplers: decided once, before anything is sent.

    transport     learner rank and sampler                       medium         memory it moves
    ipc           hold one GPU                                   cuda_ipc       GPU
                  run on one machine, without GPUs               shared_memory  host
    nccl          have GPUs, no two the same                     nccl           GPU
    gloo          anywhere                                       gloo           host
    object_store  anywhere, one process a sampler                object_store   host
    auto          the first of ipc, nccl, gloo that is possible

Through ipc every learner rank feeds the samplers beside it, for all ranks gather every tensor; else rank 0 feeds all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

_Choice = Callable[[Sequence["Seat"], Sequence["Seat"]], tuple[str | None, str]]


class RouteError(ValueError):
    """`sync.transport` asks for a medium that cannot reach all samplers."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A process's machine (its kernel's boot and its process namespace) and GPU (by UUID), where it computes on one."""

    machine: str
    gpu: str | None = None

    @classmethod
    def here(cls, device: torch.device) -> Seat:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
        return cls(machine, gpu)

    def neighbourhood(self, medium: str) -> str | None:
        """Whom the medium's senders feed: those with the same; None is everybody."""
        return {"cuda_ipc": self.gpu, "shared_memory": self.machine}.get(medium)


@dataclass(frozen=True, slots=True)
class Route:
    """A medium, and how many receivers every learner rank feeds."""

    medium: str
    audiences: tuple[int, ...]


def route(transport: str, senders: Sequence[Seat], receivers: Sequence[Seat]) -> Route:
    """The way from learner ranks to sampler processes. Raises RouteError with the reason and the remedy."""
    wanted = ("ipc", "nccl", "gloo") if transport == "auto" else (transport,)
    reasons = []
    for candidate in wanted:
        medium, reason = _ROUTES[candidate](senders, receivers)
        if medium is not None:
            return Route(medium, _audiences(medium, senders, receivers))
        reasons.append(reason)
    raise RouteError(f"`sync.transport={transport}`: {'; '.join(reasons)}; use `sync.transport=auto`")


def adapter_route(transport: str, senders: Sequence[Seat], receivers: Sequence[Seat]) -> Route:
    """The way of adapters, which end in host memory wherever the samplers compute: vLLM reads them from a file."""
    in_host_memory = ([replace(seat, gpu=None) for seat in seats] for seats in (senders, receivers))
    return route("gloo" if transport == "nccl" else transport, *in_host_memory)


def _ipc(senders: Sequence[Seat], receivers: Sequence[Seat]) -> tuple[str | None, str]:
    on_gpus = all(seat.gpu is not None for seat in (*senders, *receivers))
    medium = "cuda_ipc" if on_gpus else "shared_memory"
    fed = {seat.neighbourhood(medium) for seat in senders}
    alone = [seat for seat in receivers if seat.neighbourhood(medium) not in fed]
    if not alone:
        return medium, ""
    return None, f"{len(alone)} of {len(receivers)} samplers share no {'GPU' if on_gpus else 'machine'} with a learner rank"


def _nccl(senders: Sequence[Seat], receivers: Sequence[Seat]) -> tuple[str | None, str]:
    gpus = [seat.gpu for seat in (senders[0], *receivers)]
    if None in gpus:
        return None, "NCCL moves GPU memory, and not every side computes on a GPU"
    if len(set(gpus)) < len(gpus):
        return None, "NCCL joins no two processes on one GPU"
    return "nccl", ""


def _anywhere(medium: str) -> _Choice:
    return lambda senders, receivers: (medium, "")


def _audiences(medium: str, senders: Sequence[Seat], receivers: Sequence[Seat]) -> tuple[int, ...]:
    """Every receiver is fed by the first sender of its neighbourhood."""
    places = [seat.neighbourhood(medium) for seat in senders]
    fed = [places.index(seat.neighbourhood(medium)) for seat in receivers]
    return tuple(fed.count(rank) for rank in range(len(senders)))


_ROUTES: dict[str, _Choice] = {
    "ipc": _ipc,
    "nccl": _nccl,
    "gloo": _anywhere("gloo"),
    "object_store": _anywhere("object_store"),
}
