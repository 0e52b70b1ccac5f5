"""What a sampler did, in totals: prompts, tokens, and how much of the prompts vLLM really computed. Imports no vLLM.

A prompt is asked for once a completion, G times a group. Of those, the scheduler has one computed, and lets the others take
its keys and values from the prefix cache, up to the prompt's last whole block. Images go through the vision tower once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplerCounts:
    """Totals since the sampler was built.

    `prompts` and `prompt_tokens` count a prompt once, however many completions it got; `engine_errors` the batches that vLLM
    failed on and that were run again prompt by prompt.

    Counted by vLLM's scheduler, a prompt once a completion: `asked_prompt_tokens`, `cached_prompt_tokens` of them that it
    did not compute, `asked_images`, `encoded_images` of them that went through the vision tower.
    """

    prompts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: int = 0
    engine_errors: int = 0
    seconds: float = 0.0
    asked_prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    asked_images: int = 0
    encoded_images: int = 0

    def __add__(self, other: SamplerCounts) -> SamplerCounts:
        return SamplerCounts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __sub__(self, other: SamplerCounts) -> SamplerCounts:
        return SamplerCounts(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    @property
    def cache_hits(self) -> dict[str, float]:
        """Shares of what was asked for that no model had to compute; at most (G − 1)/G where no prompt comes twice."""
        shares = {}
        if self.asked_prompt_tokens:
            shares["rollout/prefix_cache_hit"] = self.cached_prompt_tokens / self.asked_prompt_tokens
        if self.asked_images:
            shares["rollout/encoder_cache_hit"] = 1.0 - self.encoded_images / self.asked_images
        return shares


class PrefillWatch:
    """Reads off vLLM's scheduler what it has computed of prompts. A request that is preempted counts once."""

    def __init__(self, scheduler: Any) -> None:
        self.counts = SamplerCounts()
        self._schedule: Callable[..., Any] = scheduler.schedule
        scheduler.schedule = self._watched

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        output = self._schedule(*args, **kwargs)
        if output.scheduled_new_reqs or output.scheduled_encoder_inputs:
            new = output.scheduled_new_reqs
            self.counts += SamplerCounts(
                asked_prompt_tokens=sum(request.prompt_len for request in new),
                cached_prompt_tokens=sum(request.num_computed_tokens for request in new),
                asked_images=sum(len(request.mm_features) for request in new),
                encoded_images=sum(map(len, output.scheduled_encoder_inputs.values())),
            )
        return output
