"""Whose GPUs are whose: `cluster.placement` by name, as the crew uses it.

disaggregated   OwnGpus      all roles load at once, and the loop speaks to their groups directly
colocated       SharedGpus   one after the other loads and leaves for host memory; the loop's calls make them take turns
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import ray

from rl.actors.colocation import (
    ColocatedLearner,
    ColocatedReference,
    ColocatedRollouts,
    ColocatedStream,
    ExportingLearner,
    Gpus,
    RanksInTurn,
)
from rl.actors.learner import LearnerGroup
from rl.actors.rollout import RolloutGroup
from rl.actors.rollout_stream import StreamingRolloutGroup
from rl.protocols import FrozenPolicy, Rollouts


class Tenancy(Protocol):
    """How roles that have loaded, or are loading, come to be the loop's roles."""

    shared: ClassVar[tuple[str, ...]]

    @property
    def rollouts(self) -> Rollouts: ...

    def begin_stage(self) -> None:
        """The learner of the stage before is gone; another is about to load."""

    def settle(self, group: LearnerGroup, building: list[ray.ObjectRef[Any]]) -> None:
        """`group` is loading; `building` are the calls to wait for."""

    def ready(self) -> None:
        """Wait until everybody has loaded. Raises ActorError."""

    def learner(self, group: LearnerGroup) -> ExportingLearner: ...

    def reference(self, reference: FrozenPolicy, on: LearnerGroup) -> FrozenPolicy:
        """`reference` is computed by the ranks of `on`."""


class OwnGpus:
    """Every role has GPUs of its own."""

    shared: ClassVar[tuple[str, ...]] = ()

    def __init__(self, samplers: RolloutGroup, adapters: bool) -> None:
        self.rollouts = samplers
        self._loading: list[tuple[LearnerGroup, list[ray.ObjectRef[Any]]]] = []

    def begin_stage(self) -> None:
        self._loading = []

    def settle(self, group: LearnerGroup, building: list[ray.ObjectRef[Any]]) -> None:
        self._loading.append((group, building))

    def ready(self) -> None:
        for group, building in self._loading:
            group.ready(building)
        self.rollouts.ready()

    def learner(self, group: LearnerGroup) -> ExportingLearner:
        return group

    def reference(self, reference: FrozenPolicy, on: LearnerGroup) -> FrozenPolicy:
        return reference


class SharedGpus:
    """The roles of a run on the same GPUs, in turn. vLLM measures at its start what it may take: it loads first, alone."""

    shared: ClassVar[tuple[str, ...]] = ("rollout", "learner", "reference")

    def __init__(self, samplers: RolloutGroup, adapters: bool) -> None:
        self.samplers, self.gpus = samplers, Gpus()
        streams = isinstance(samplers, StreamingRolloutGroup)
        self.rollouts = (ColocatedStream if streams else ColocatedRollouts)(samplers, self.gpus, adapters)
        self._tenants: dict[LearnerGroup, RanksInTurn] = {}

    def begin_stage(self) -> None:
        self.samplers.ready()
        if self.gpus.tenant is self.rollouts:
            self.gpus.clear()
        self.gpus.tenant = None
        self._tenants = {}

    def settle(self, group: LearnerGroup, building: list[ray.ObjectRef[Any]]) -> None:
        group.ready(building)
        group.offload()
        self._tenants[group] = RanksInTurn(group)

    def ready(self) -> None:
        """Everybody has loaded: `settle` waited."""

    def learner(self, group: LearnerGroup) -> ExportingLearner:
        learner = ColocatedLearner(group, self._tenants[group], self.gpus)
        self.rollouts.learner = learner
        return learner

    def reference(self, reference: FrozenPolicy, on: LearnerGroup) -> FrozenPolicy:
        return ColocatedReference(reference, self._tenants[on], self.gpus)


TENANCIES: dict[str, type[OwnGpus] | type[SharedGpus]] = {"disaggregated": OwnGpus, "colocated": SharedGpus}
