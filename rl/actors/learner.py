"""LearnerActor and its group: ranks of one policy as Ray actors; also the frozen reference, which only computes logprobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from cluster.devices import own_device
from cluster.group import ActorGroup
from cluster.placement import Slot
from rl.actors.publishing import Publisher, PublishingRank
from rl.actors.samples import SampleShipper, fetch
from rl.config import AlgorithmConfig, AttentionLossConfig, LearnerConfig, ModelConfig, OptimizerConfig, SyncConfig
from rl.engines.base import Rendezvous
from rl.protocols import Published
from rl.trace import WAIT, spanned, traced
from rl.tracking import peak_memory_mib

if TYPE_CHECKING:
    from torch import Tensor
    from verl.protocol import DataProto

    from rl.batch import RankShare
    from rl.sync.line import Address
    from rl.sync.seats import Seat


@traced("logprobs", "reference_logprobs", "update", "publish", "export", "save", "load", "offload", "onload")
class LearnerActor:
    """One rank. Its constructor is empty so that all ranks import and load at the same time, in `build`."""

    def build(
        self,
        model: ModelConfig,
        config: LearnerConfig,
        optimizer: OptimizerConfig | None,
        algorithm: AlgorithmConfig | None,
        attention_loss: AttentionLossConfig | None,
        where: Rendezvous,
        temperature: float,
        start_from: Path | None,
        keeps_reference: bool,
    ) -> None:
        """Load the model; with `start_from`, then the policy that an earlier stage saved there.

        `keeps_reference`: the adapter as it is then is the reference's, whatever is loaded or learnt later.
        """
        from rl.learner import Learner
        from rl.objectives import GrpoObjective, LanguageModelObjective
        from rl.prompting import PromptEncoder

        encoder = PromptEncoder.of(model)
        where = replace(where, local_rank=own_device())
        self.learner = Learner(model, config, optimizer, encoder, where, temperature, attention_loss)
        self.publishing = PublishingRank(self.learner)
        if start_from is not None:
            self.learner.engine.load_policy(start_from)
        if keeps_reference:
            self.learner.keep_reference()
        self.objective = GrpoObjective(algorithm) if algorithm else LanguageModelObjective()

    def logprobs(self, share: RankShare) -> Tensor:
        return self.learner.logprobs(_with_samples(share))

    def reference_logprobs(self, share: RankShare) -> Tensor:
        return self.learner.reference_logprobs(_with_samples(share))

    def update(self, share: RankShare, lr: float) -> dict[str, float]:
        handles = share.batch.non_tensor_batch.pop("reference", None)
        reference = None if handles is None else partial(_redeem, handles, share.batch.batch["responses"].shape)
        return self.learner.update(_with_samples(share), self.objective, lr, reference)

    def seat(self) -> Seat:
        return self.publishing.seat()

    def open_sender(self, population: str, medium: str, receivers: int, config: SyncConfig) -> Address | None:
        return self.publishing.open_sender(population, medium, receivers, config)

    def publish(self, version: int, parts: Sequence[str]) -> str | None:
        return self.publishing.publish(version, parts)

    def adapter_config(self) -> dict[str, Any]:
        from rl.policy import peft_config

        return dict(peft_config(self.learner.model.lora).to_dict())

    def export(self, directory: Path) -> None:
        from rl.export import export_policy

        export_policy(self.learner, directory)

    def save(self, directory: Path) -> None:
        self.learner.save(directory)

    def load(self, directory: Path) -> None:
        self.learner.load(directory)

    def offload(self) -> None:
        self.learner.engine.offload()

    def onload(self) -> None:
        self.learner.engine.onload()

    def peak_memory_mib(self) -> float:
        return peak_memory_mib()


@spanned("fetch samples")
def _with_samples(share: RankShare) -> RankShare:
    share.batch.non_tensor_batch["sample"][:] = fetch(share.batch.non_tensor_batch["sample"])
    return share


@spanned("wait for reference", WAIT)
def _redeem(handles: Sequence[tuple[ray.ObjectRef, int]], shape: Sequence[int]) -> Tensor:
    """The rows behind handles, waiting for the reference where it still computes; zeros where its answers were shorter."""
    import torch

    references = list(dict.fromkeys(reference for reference, _ in handles))
    computed = dict(zip(references, ray.get(references), strict=True))
    whole = torch.zeros(*shape)
    for row, (reference, place) in enumerate(handles):
        found = computed[reference][place]
        whole[row, : found.shape[0], : found.shape[1]] = found
    return whole


class LearnerGroup:
    """`rl.protocols.PolicyLearner` over ranks: cuts a batch, sends every rank its share, puts the answers together."""

    def __init__(
        self,
        role: str,
        slots: Sequence[Slot],
        config: LearnerConfig,
        shipper: SampleShipper,
        env: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self.config, self.shipper, self.timeout_s = config, shipper, timeout_s
        self.group = ActorGroup.start(role, LearnerActor, slots, env_vars=env, timeout_s=timeout_s)

    def build(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig | None,
        algorithm: AlgorithmConfig | None,
        attention_loss: AttentionLossConfig | None,
        temperature: float,
        start_from: Path | None = None,
        keeps_reference: bool = False,
    ) -> list[ray.ObjectRef]:
        """Begin loading on all ranks; `ready` waits."""
        address, port = self.group.rendezvous()
        # Which device is a rank's own shows in its process only: see LearnerActor.build.
        ranks = [Rendezvous(rank, len(self.group), 0, address, port) for rank in range(len(self.group))]
        fixed = (model, self.config, optimizer, algorithm, attention_loss)
        arguments = [(*fixed, where, temperature, start_from, keeps_reference) for where in ranks]
        return self.group.submit_each("build", arguments)

    def fits_at_once(self, lengths: Sequence[int]) -> bool:
        """Whether groups of so many tokens each, in shared rows, are one micro-batch a rank."""
        from rl.batch import fits_at_once

        ranks = len(self.group) // self.config.sequence_parallel
        return fits_at_once(lengths, ranks, self.config.tokens_per_micro_batch)

    def ready(self, pending: list[ray.ObjectRef]) -> None:
        self.group.collect("build", pending, timeout_s=self.timeout_s)

    def logprobs(self, batch: DataProto) -> Tensor:
        from rl.batch import gather_rows

        shares = self._shares(batch)
        return gather_rows(shares, self.group.call_each("logprobs", [(share,) for share in shares]), len(batch))

    def begin(self, batch: DataProto, method: str = "logprobs") -> list[tuple[ray.ObjectRef, int]]:
        """`rl.protocols.FrozenPolicy`: a group's handle is its rank's pending result and its place in it."""
        shares = self._shares(batch)
        pending = self.group.submit_each(method, [(share,) for share in shares])
        found = {
            row: (reference, place)
            for share, reference in zip(shares, pending, strict=True)
            for place, row in enumerate(share.rows)
        }
        return [found[row] for row in range(len(batch))]

    def update(self, batch: DataProto, lr: float) -> dict[str, float]:
        metrics: dict[str, float] = self.group.call_each("update", [(share, lr) for share in self._shares(batch)])[0]
        return metrics

    def _shares(self, batch: DataProto) -> list[RankShare]:
        """Every rank's share, with references in place of samples; ranks that compute sequences together have the same."""
        from rl.batch import as_objects, balance

        together = self.config.sequence_parallel
        shares = balance(batch, len(self.group) // together, self.config.tokens_per_micro_batch, self.config.layout)
        for share in shares:
            samples = list(share.batch.non_tensor_batch["sample"])
            share.batch.non_tensor_batch["sample"] = as_objects(self.shipper.references(samples))
        return [share for share in shares for _ in range(together)]

    def connect(self, model: ModelConfig, config: SyncConfig, samplers: Sequence[Sequence[Seat]]) -> None:
        """Lay the ways to the samplers, whose workers are at these seats. Raises RouteError."""
        self.publisher = Publisher(self.group, model, config, samplers)

    def publish(self, version: int) -> Published:
        return self.publisher.begin(version)

    def confirm(self, published: Published) -> str:
        return self.publisher.confirm(published)

    def export(self, directory: Path) -> None:
        self.group.call_all("export", directory)

    def save(self, directory: Path) -> None:
        self.group.call_all("save", directory)

    def load(self, directory: Path) -> None:
        self.group.call_all("load", directory)

    def offload(self) -> None:
        """All ranks wait in host memory, once they have done what they were asked before."""
        self.group.call_all("offload")

    def onload(self) -> None:
        self.group.call_all("onload")

    def peak_memory(self) -> dict[str, float]:
        """Peak host memory in MiB by rank."""
        return {f"{self.group.role}-{rank}": mib for rank, mib in enumerate(self.group.call_all("peak_memory_mib"))}

    def shutdown(self) -> None:
        self.group.shutdown()


class AdapterReference:
    """`rl.protocols.FrozenPolicy` by the ranks of the learner, with the adapter their stage began with: no second base."""

    def __init__(self, learner: LearnerGroup) -> None:
        self.learner = learner

    def begin(self, batch: DataProto) -> list[tuple[ray.ObjectRef, int]]:
        """The ranks do this before the update that is to come: a rank does one call after the other."""
        return self.learner.begin(batch, "reference_logprobs")
