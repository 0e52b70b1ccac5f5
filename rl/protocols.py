"""The roles that the loop speaks to, as Protocols: it knows neither Ray nor vLLM.

Implementations: `rl/actors/` (Ray), and in tests plain classes in one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from verl.protocol import DataProto

from data.sample import Sample
from rewards.score import Completion, RewardFailure, Score
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler_counts import SamplerCounts


@dataclass(frozen=True)
class Published:
    """Weights that a learner has begun to send: every sampler iterates over `tensors` once, wherever it loads them.

    `adapter` is PEFT's config when only LoRA matrices travel, None for full weights. `base` are the full weights that an
    adapter stands on, where they are not those of the samplers' own model folder (a quantized base), the first time.
    """

    version: int
    tensors: Iterable[tuple[str, Tensor]]
    adapter: Mapping[str, Any] | None = field(default=None)
    base: Published | None = None


class Rollouts(Protocol):
    """The samplers."""

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        """`sampling.n` completions or failures a sample, in the samples' order."""

    def load(self, published: Published) -> list[WeightsReceipt]:
        """Take over weights; one receipt a sampler, over all that it loaded (an adapter's base included)."""


@dataclass(frozen=True)
class GroupRequest:
    """A prompt to be sampled when its turn comes; `ticket`, counting up, is how the answers are told apart."""

    ticket: int
    sample: Sample
    sampling: Sampling


@dataclass(frozen=True)
class SampledGroup:
    """All answers to the request of this `ticket`, `sampling.n` of them, by the sampler of this number."""

    ticket: int
    answers: tuple[Rollout | RolloutFailure, ...]
    sampler: int = 0


@runtime_checkable
class StreamingRollouts(Rollouts, Protocol):
    """Samplers that go on by themselves: requests go in, finished groups come out, in the order in which they end.

    `load` does not wait for the requests under way: they go on with the new weights from their next token on. `generate`
    answers with one version, whatever is under way. `submit`, `load` and `generate` are one thread's, `collect` another's.
    """

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Take on requests and return at once."""

    def collect(self, timeout_s: float) -> list[SampledGroup]:
        """The groups that ended since the last call; waits for one, at most `timeout_s`."""

    def busy_seconds(self) -> float:
        """Seconds since the start in which there was something to do, the mean of the samplers."""


@runtime_checkable
class CountingRollouts(Protocol):
    """Samplers that know how much of their prompts they computed."""

    def counts(self) -> SamplerCounts:
        """Totals since the start, over all samplers."""


class Rewards(Protocol):
    """The verifiers."""

    def score(self, requests: Sequence[tuple[Sample, Completion]]) -> list[Score | RewardFailure]:
        """A verdict or a failure a request, in order."""


class FrozenPolicy(Protocol):
    """The reference."""

    def begin(self, batch: DataProto) -> Sequence[Any]:
        """Start on the logprobs of the batch's answers, and return at once: a handle a group, which a learner redeems.

        Handles of several calls may come together in one batch; a handle that nobody redeems costs nothing more.
        """


class PolicyLearner(Protocol):
    """The policy that is trained."""

    def logprobs(self, batch: DataProto) -> Tensor:
        """Logprobs [N, G, R] of the batch's answers."""

    def update(self, batch: DataProto, lr: float) -> dict[str, float]:
        """One optimizer step on the whole batch; metrics.

        Reference handles among the batch's non-tensors (`reference`) are redeemed when the first forward is done: the
        reference computes meanwhile.
        """

    def publish(self, version: int) -> Published:
        """Begin to send the current weights as `version`, and return; the samplers must load them for it to end."""

    def confirm(self, published: Published) -> str:
        """Wait until all of it has been taken: the checksum of what was sent. Raises what sending raised."""

    def save(self, directory: Path) -> None:
        """Write weights, optimizer and RNG under `directory`."""

    def load(self, directory: Path) -> None:
        """Continue where `save` was called."""
