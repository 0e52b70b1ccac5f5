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
    """Reads off vLLM's scheduler what it has computed of prompts, the first time a request needs it.

    What a request computes again, because it was preempted or went on over new weights, is left out: its caches were
    dropped, and a share of what was asked for once could fall below 0.
    """

    def __init__(self, scheduler: Any) -> None:
        self.counts = SamplerCounts()
        self._encoded: dict[str, set[int]] = {}  # by a request that has begun and not ended: its images seen
        self._schedule: Callable[..., Any] = scheduler.schedule
        scheduler.schedule = self._watched

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        output = self._schedule(*args, **kwargs)
        for request_id in output.finished_req_ids:
            self._encoded.pop(request_id, None)
        for request in output.scheduled_new_reqs:
            if request.req_id not in self._encoded:
                self._encoded[request.req_id] = set()
                self.counts += SamplerCounts(
                    asked_prompt_tokens=request.prompt_len,
                    cached_prompt_tokens=request.num_computed_tokens,
                    asked_images=len(request.mm_features),
                )
        for request_id, images in output.scheduled_encoder_inputs.items():
            seen = self._encoded.setdefault(request_id, set())
            first = set(images) - seen
            seen |= first
            self.counts += SamplerCounts(encoded_images=len(first))
        return output
