"""The machines of a recipe's section `plan`: equal nodes of equal GPUs, the vendor's own unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from rl.plan.config import PlanConfig
from rl.plan.gpus import Gpu, find_gpu


@dataclass(frozen=True, slots=True)
class Hardware:
    """`nodes` equal machines of `gpus_per_node` GPUs, and the price of a GPU-hour, None where nobody gave one."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    nic_bytes_per_s: float
    host_bytes: int
    usd_per_gpu_hour: float | None
    price_source: str

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def hardware_of(config: PlanConfig) -> Hardware | None:
    """The machines of section `plan`, None where it names no GPU. Raises ValueError for a GPU that is not known."""
    if config.gpu is None:
        return None
    gpu = find_gpu(config.gpu)
    nic = gpu.node_nic_bytes_per_s if config.nic_gbit is None else config.nic_gbit * 1e9 / 8
    host = gpu.node_host_bytes if config.host_memory_gb is None else int(config.host_memory_gb * 1e9)
    price, source = (gpu.usd_per_hour, gpu.price_source) if config.price is None else (config.price, "as given")
    return Hardware(gpu, config.nodes, config.gpus_per_node, nic, host, price, source)
