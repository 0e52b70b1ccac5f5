"""The records that travel between the roles of a run: sampling requests, rollouts, weight receipts.

A rollout that failed is a RolloutFailure with its reason, never an empty rollout.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: `n` completions a prompt; temperature 0 is greedy. `seed` fixes the draw of every prompt and step."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion.

    `tokens` are the completion's ids, the end token included when it was sampled. `logprobs` are the sampler's own, one
    a token, after temperature and the ban of image placeholders. `prompt_tokens` counts the prompt after image expansion.

    `policy_version` sampled the first token, and all of them unless new weights arrived meanwhile: `switches` are then the
    (place of a token, version) from which on a later version sampled. So `policy_version` is the oldest.
    """

    prompt_id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    policy_version: int
    prompt_tokens: int
    switches: tuple[tuple[int, int], ...] = ()

    @property
    def token_versions(self) -> list[int]:
        """The policy version that sampled each token.

        >>> Rollout("id", (7, 8, 9), (-1.0, -1.0, -1.0), "text", "stop", 4, 10, switches=((2, 5),)).token_versions
        [4, 4, 5]
        """
        starts = [(0, self.policy_version), *self.switches]
        ends = [*(place for place, _ in self.switches), len(self.tokens)]
        return [version for (start, version), end in zip(starts, ends, strict=True) for _ in range(start, end)]


@dataclass(frozen=True, slots=True)
class RolloutFailure:
    """A completion that could not be sampled, and why."""

    prompt_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WeightsReceipt:
    """A rollout engine's acknowledgement: the version it now samples from and the checksum of the bytes it loaded."""

    version: int
    checksum: str
