"""PlanConfig: the machines a recipe is planned for, and the assumptions of the planner. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from rl.plan.gpus import find_gpu


@dataclass
class PlanConfig:
    """Which GPUs a recipe is meant for, and what its plan assumes.

    `gpu`: a name of rl/plan/gpus.py, loosely written (A100-80G, h100); null: the recipe runs on CPU, or on whatever the
    cluster has. `price`: dollars a GPU-hour; null: a list price, where one is known. `nic_gbit`, `host_memory_gb`: of a
    node; null: those of the vendor's own machine. `answer_tokens`: mean tokens of an answer; null: measured or assumed.
    `longest_answer`: a step's longest answer as a multiple of the mean. Efficiencies are shares of the data sheet's peak.
    `enforce`: `rl.train` refuses to start what does not fit.
    """

    gpu: str | None = None
    nodes: int = 1
    gpus_per_node: int = 8
    price: float | None = None
    nic_gbit: float | None = None
    host_memory_gb: float | None = None
    disk_gb_per_s: float = 1.0
    answer_tokens: float | None = None
    longest_answer: float = 3.0
    compute_efficiency: float = 0.4
    hbm_efficiency: float = 0.7
    link_efficiency: float = 0.8
    enforce: bool = True

    def validate(self) -> None:
        """Raises ValueError, naming the key, for values that cannot be."""
        if self.gpu is not None:
            find_gpu(self.gpu)
        for key in ("nodes", "gpus_per_node", "disk_gb_per_s"):
            if not getattr(self, key) > 0:
                raise ValueError(f"plan.{key} must be positive, got {getattr(self, key)}")
        for key in ("nic_gbit", "host_memory_gb", "answer_tokens"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"plan.{key} must be positive, or null for the usual one; got {value}")
        if self.price is not None and self.price < 0:
            raise ValueError(f"plan.price is dollars a GPU-hour, 0 or more; got {self.price}")
        if self.longest_answer < 1:
            raise ValueError(f"plan.longest_answer is a multiple of the mean, at least 1; got {self.longest_answer}")
        for key in ("compute_efficiency", "hbm_efficiency", "link_efficiency"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"plan.{key} is a share of the peak, above 0 and up to 1; got {getattr(self, key)}")
