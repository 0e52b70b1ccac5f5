"""Colocation: samplers, learner and reference take turns on the same GPUs, behind the loop's own Protocols.

    generate, submit         ─► the samplers are awake             learner and reference in host memory
    begin                    ─► the reference is on the GPUs       the samplers asleep
    logprobs, update, save … ─► the learner is on the GPUs         the reference done, and in host memory
    load                     ─► the samplers take memory for weights ─► load ─► the learner leaves ─► room for a KV cache

Between two tenants one leaves before the other enters. Only while weights are handed over are both on the GPUs: the learner
with everything it has, parameters and optimizer state, the samplers with what they load into, and no KV cache yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor
from verl.protocol import DataProto

from data.sample import Sample
from rl.loop import hand_over
from rl.protocols import (
    CountingRollouts,
    FrozenPolicy,
    GroupRequest,
    PolicyLearner,
    Published,
    Rollouts,
    SampledGroup,
    StreamingRollouts,
)
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler_counts import SamplerCounts


class Samplers(Rollouts, Protocol):
    """Samplers that can give up the GPUs: `rl.actors.rollout.RolloutGroup`."""

    def sleep(self, keep_weights: bool) -> None: ...

    def wake(self, part: Literal["weights", "kv_cache"]) -> None: ...


class StreamingSamplers(Samplers, StreamingRollouts, CountingRollouts, Protocol):
    """`rl.actors.rollout_stream.StreamingRolloutGroup`."""


class ExportingLearner(PolicyLearner, Protocol):
    """A learner as a run needs it: `rl.actors.learner.LearnerGroup`."""

    def export(self, directory: Path) -> None: ...


class Movable(Protocol):
    """Ranks that can wait in host memory; `offload` waits for what they were asked before."""

    def offload(self) -> None: ...

    def onload(self) -> None: ...


class Tenant(Protocol):
    """Who may hold the GPUs."""

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class Gpus:
    """The GPUs that all roles share, and who holds them."""

    def __init__(self) -> None:
        self.tenant: Tenant | None = None

    def give(self, tenant: Tenant) -> None:
        """Have `tenant` on the GPUs, once whoever is there has left."""
        if tenant is not self.tenant:
            self.clear()
            tenant.enter()
            self.tenant = tenant

    def clear(self) -> None:
        if self.tenant is not None:
            self.tenant.leave()
        self.tenant = None


class ColocatedRollouts:
    """`rl.protocols.Rollouts`. Built when the samplers have loaded and hold the GPUs.

    `adapters`: only adapters are published, so the base is kept while the samplers sleep. Else the weights are given up,
    because a publication follows an update; where none did (a checkpoint was written), the last one is asked for again.
    """

    def __init__(self, samplers: Samplers, gpus: Gpus, adapters: bool) -> None:
        self.samplers, self.gpus, self.adapters = samplers, gpus, adapters
        self.learner: PolicyLearner | None = None
        self.version = 0
        self._weights_awake = self._whole = True
        gpus.tenant = self

    def enter(self) -> None:
        if not self._weights_awake:
            self.samplers.wake("weights")
        self.samplers.wake("kv_cache")
        self._weights_awake = True

    def leave(self) -> None:
        self.samplers.sleep(keep_weights=self.adapters)
        self._weights_awake, self._whole = False, self.adapters

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        self._awake()
        return self.samplers.generate(samples, sampling)

    def _awake(self) -> None:
        if not self._whole:
            assert self.learner is not None
            hand_over(self.learner, self, self.version)
        self.gpus.give(self)

    def load(self, published: Published) -> list[WeightsReceipt]:
        """The learner, which has begun to send, holds the GPUs until everything has arrived."""
        assert self.gpus.tenant is not self
        self.samplers.wake("weights")
        self._weights_awake = True
        receipts = self.samplers.load(published)
        self.version, self._whole = published.version, True
        self.gpus.give(self)
        return receipts


class ColocatedStream(ColocatedRollouts):
    """`rl.protocols.StreamingRollouts`, of samplers that stream. They keep the GPUs until all that was submitted has ended:
    who asks for them before that finds the samplers unwilling to sleep.
    """

    samplers: StreamingSamplers

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        self._awake()
        self.samplers.submit(requests)

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        return self.samplers.collect(timeout_s)

    def busy_seconds(self) -> float:
        return self.samplers.busy_seconds()

    def counts(self) -> SamplerCounts:
        return self.samplers.counts()


class RanksInTurn:
    """A learner's or a reference's ranks as a tenant. Built when they wait in host memory."""

    def __init__(self, ranks: Movable) -> None:
        self.ranks = ranks

    def enter(self) -> None:
        self.ranks.onload()

    def leave(self) -> None:
        self.ranks.offload()


class ColocatedLearner:
    """`rl.protocols.PolicyLearner` whose ranks are `tenant`."""

    def __init__(self, learner: ExportingLearner, tenant: Tenant, gpus: Gpus) -> None:
        self.learner, self.tenant, self.gpus = learner, tenant, gpus

    def logprobs(self, batch: DataProto) -> Tensor:
        self.gpus.give(self.tenant)
        return self.learner.logprobs(batch)

    def update(self, batch: DataProto, lr: float) -> dict[str, float]:
        self.gpus.give(self.tenant)
        return self.learner.update(batch, lr)

    def publish(self, version: int) -> Published:
        self.gpus.give(self.tenant)
        return self.learner.publish(version)

    def confirm(self, published: Published) -> str:
        return self.learner.confirm(published)

    def save(self, directory: Path) -> None:
        self.gpus.give(self.tenant)
        self.learner.save(directory)

    def load(self, directory: Path) -> None:
        self.gpus.give(self.tenant)
        self.learner.load(directory)

    def export(self, directory: Path) -> None:
        self.gpus.give(self.tenant)
        self.learner.export(directory)


class ColocatedReference:
    """`rl.protocols.FrozenPolicy` whose ranks are `tenant`: its own, or the learner's if that computes the reference."""

    def __init__(self, reference: FrozenPolicy, tenant: Tenant, gpus: Gpus) -> None:
        self.reference, self.tenant, self.gpus = reference, tenant, gpus

    def begin(self, batch: DataProto) -> Sequence[Any]:
        self.gpus.give(self.tenant)
        return self.reference.begin(batch)
