"""ClusterConfig: where Ray runs, and how long to wait for it."""

from __future__ import annotations

from dataclasses import dataclass

PLACEMENTS = ("disaggregated", "colocated")


@dataclass
class ClusterConfig:
    """A Ray cluster to join, or the local Ray that is started when there is none.

    `address`: `auto` joins the cluster of RAY_ADDRESS (which `ray job submit` sets) and starts a local Ray without it;
    `local` starts one in any case; anything else is a cluster's address. The `local_` keys shape that local Ray only:
    its logical CPUs (slots for actors, not cores) and the size of its object store.
    `placement`: `disaggregated` gives every role GPUs of its own; `colocated` lets learner, reference and rollouts take
    turns on the same ones: while the one computes, the others sleep or wait in host memory. vLLM's share of a GPU,
    `rollout.gpu_memory_utilization`, is then what it has while it is awake; the sleeping roles' remains must fit beside it.
    `placement_timeout_s`: until the cluster has the resources of every role. `start_timeout_s`: until an actor has loaded.
    `worker_logs`: print the actors' output on the driver's console; their log files hold it in any case.
    """

    address: str = "auto"
    placement: str = "disaggregated"
    placement_timeout_s: float = 300.0
    start_timeout_s: float = 900.0
    local_cpus: int = 32
    local_object_store_mb: int = 512
    worker_logs: bool = False

    def validate(self) -> None:
        """Raises ValueError, naming the key, for values that cannot work."""
        if self.placement not in PLACEMENTS:
            raise ValueError(f"cluster.placement is `{self.placement}`; one of {', '.join(PLACEMENTS)}")
        for key in ("placement_timeout_s", "start_timeout_s", "local_cpus"):
            if not getattr(self, key) > 0:
                raise ValueError(f"cluster.{key} must be positive, got {getattr(self, key)}")
        # Ray refuses an object store under 75 MiB.
        if self.local_object_store_mb < 80:
            raise ValueError(f"cluster.local_object_store_mb must be at least 80, got {self.local_object_store_mb}")
