"""A machine's speed limits: seconds for operations, memory traffic and transfers, and which of them binds.

Every limit is a data sheet's peak times an efficiency of section `plan`. Where two limits run at once (a kernel computes
while it reads, a prefetch gathers while a block computes) the longer counts; what comes one after another is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rl.plan.config import PlanConfig
from rl.plan.hardware import Hardware

Bound = Literal["compute", "HBM", "link", "NIC", "PCIe", "host", "disk", "latency"]

# Assumptions that no data sheet has; the report lists them.
HOST_BYTES_PER_S = 100e9  # a node's memory under an optimizer step on CPU
COPY_BYTES_PER_S = 5e9  # one thread into shared memory
HASH_BYTES_PER_S = 30e9  # XXH3 on one core
TCP_BYTES_PER_S = 2.5e9  # one stream between two nodes
COLLECTIVE_S = 15e-6  # start of one collective, or of one all-reduce of a token step
TOKEN_STEP_S = 3e-3  # a sampler's scheduling and sampling, per token step


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds, and what they are bound by."""

    seconds: float
    bound: Bound


def longest(*costs: Cost) -> Cost:
    """Of what runs at the same time."""
    return max(costs, key=lambda cost: cost.seconds)


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds a step, of which `hidden` run beside other work; `how` is the arithmetic in a line."""

    name: str
    seconds: float
    bound: Bound
    how: str
    hidden: float = 0.0

    @property
    def exposed(self) -> float:
        return self.seconds - self.hidden


def tflop(operations: float) -> str:
    """Operations in words.

    >>> tflop(3.4e15), tflop(2.5e12)
    ('3,400 TFLOP', '2.5 TFLOP')
    """
    tera = operations / 1e12
    return f"{tera:,.0f} TFLOP" if tera >= 100 else f"{tera:.3g} TFLOP"


def phase(name: str, cost: Cost, how: str, hidden: float = 0.0) -> Phase:
    """A phase of `cost`, as much of it hidden as `hidden` seconds of other work allow."""
    return Phase(name, cost.seconds, cost.bound, how, min(hidden, cost.seconds))


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware at the efficiencies of section `plan`."""

    hardware: Hardware
    config: PlanConfig

    def compute(self, operations: float) -> Cost:
        return Cost(operations / (self.hardware.gpu.bf16_flops * self.config.compute_efficiency), "compute")

    def memory(self, transferred: float) -> Cost:
        return Cost(transferred / (self.hardware.gpu.hbm_bytes_per_s * self.config.hbm_efficiency), "HBM")

    def pcie(self, transferred: float) -> Cost:
        return Cost(transferred / (self.hardware.gpu.pcie_bytes_per_s * self.config.link_efficiency), "PCIe")

    def link(self, transferred: float) -> Cost:
        """Between two GPUs of a node."""
        return Cost(transferred / (self.hardware.gpu.link_bytes_per_s * self.config.link_efficiency), "link")

    def nic(self, transferred: float) -> Cost:
        """Into or out of a node, over all its NICs together."""
        return Cost(transferred / (self.hardware.nic_bytes_per_s * self.config.link_efficiency), "NIC")

    def exchange(self, whole: float, ranks: int, nodes: int) -> Cost:
        """An all-gather that ends with `whole` bytes on each of `ranks`, or the reduce-scatter that mirrors it.

        A rank receives what the others hold, a node what the other nodes hold.
        """
        inside = self.link(whole * (ranks - 1) / ranks)
        between = self.nic(whole * (nodes - 1) / nodes)
        return longest(inside, between)

    def broadcast(self, whole: float, nodes: int) -> Cost:
        """From one rank to all others, as a chain: `whole` bytes over each link once."""
        return self.nic(whole) if nodes > 1 else self.link(whole)
