"""RolloutActor and its group: vLLM samplers as Ray actors; a batch of prompts is dealt out to them in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import ray

from cluster.devices import see_own_devices_alone
from cluster.group import ActorGroup
from cluster.placement import Slot
from data.sample import Sample
from rl.actors.samples import SampleShipper, fetch
from rl.config import ModelConfig, RolloutConfig
from rl.protocols import Published
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler_config import Device, SamplerConfig, sampler_env
from rl.sampler_counts import SamplerCounts
from rl.trace import traced
from rl.tracking import peak_memory_mib

if TYPE_CHECKING:
    from rl.sync.seats import Seat


@traced("generate", "load", "sleep", "wake")
class RolloutActor:
    """One vLLM engine. Its constructor is empty so that all actors import and load at the same time, in `build`."""

    def build(self, config: SamplerConfig) -> None:
        see_own_devices_alone()
        from rl.sampler import VllmSampler

        self.sampler = VllmSampler(config)

    def generate(self, references: Sequence[ray.ObjectRef], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        return self.sampler.generate(fetch(references), sampling)

    def load(self, published: Published) -> WeightsReceipt:
        from rl.weights import added

        loaded = [] if published.base is None else [self.load(published.base).checksum]
        if published.adapter is None:
            receipt = self.sampler.load_weights(published.tensors, published.version)
        else:
            receipt = self.sampler.load_adapter(published.tensors, published.adapter, published.version)
        return WeightsReceipt(receipt.version, added([*loaded, receipt.checksum]))

    def counts(self) -> SamplerCounts:
        return self.sampler.counts

    def seats(self) -> list[Seat]:
        return self.sampler.seats()

    def sleep(self, keep_weights: bool) -> None:
        self.sampler.sleep(keep_weights)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        self.sampler.wake(part)

    def peak_memory_mib(self) -> float:
        return peak_memory_mib()


class RolloutGroup:
    """`rl.protocols.Rollouts` over actors. Loading begins with the constructor; `ready` waits for it."""

    actor_class: type[RolloutActor] = RolloutActor
    max_concurrency: int | None = None  # methods of an actor that may run side by side

    def __init__(
        self,
        slots: Sequence[Slot],
        config: SamplerConfig,
        device: Device,
        shipper: SampleShipper,
        timeout_s: float,
    ) -> None:
        self.shipper, self.timeout_s = shipper, timeout_s
        env = sampler_env(device, config.model)
        self.group = ActorGroup.start(
            "rollout",
            self.actor_class,
            slots,
            env_vars=env,
            timeout_s=timeout_s,
            max_concurrency=self.max_concurrency,
        )
        self._loading: list[ray.ObjectRef] = self.group.submit_all("build", config)

    def ready(self) -> None:
        """Wait until every engine has loaded. Raises ActorError."""
        self.group.collect("build", self._loading, timeout_s=self.timeout_s)

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        ranks = len(self.group)
        references = self.shipper.references(samples)
        shares = self.group.call_each("generate", [(references[rank::ranks], sampling) for rank in range(ranks)])
        return [shares[place % ranks][place // ranks] for place in range(len(samples))]

    def load(self, published: Published) -> list[WeightsReceipt]:
        return self.group.call_all("load", published)

    def counts(self) -> SamplerCounts:
        """`rl.protocols.CountingRollouts`."""
        return sum(self.group.call_all("counts"), start=SamplerCounts())

    def seats(self) -> list[list[Seat]]:
        """By actor, where its engine's workers are."""
        return self.group.call_all("seats")

    def sleep(self, keep_weights: bool) -> None:
        self.group.call_all("sleep", keep_weights)

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        self.group.call_all("wake", part)

    def peak_memory(self) -> dict[str, float]:
        """Peak host memory in MiB by actor."""
        return {f"rollout-{rank}": mib for rank, mib in enumerate(self.group.call_all("peak_memory_mib"))}

    def shutdown(self) -> None:
        self.group.shutdown()


def sampler_config(
    model: ModelConfig, rollout: RolloutConfig, seed: int, max_images: int, sleeps: bool = False
) -> SamplerConfig:
    """The engine that a recipe asks for; it `sleeps` where it shares its GPUs."""
    adapters = model.lora.rank if model.lora.sync == "adapter" else 0
    return SamplerConfig(
        model=model.path,
        dtype=rollout.dtype,
        max_model_len=rollout.max_model_len,
        max_images=max_images,
        min_pixels=model.min_pixels,
        max_pixels=model.max_pixels,
        kv_cache_bytes=None if rollout.kv_cache_mib is None else rollout.kv_cache_mib << 20,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel,
        enforce_eager=rollout.enforce_eager,
        max_lora_rank=adapters,
        seed=seed,
        sleeps=sleeps,
    )
