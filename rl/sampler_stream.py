"""The sampler as a stream: groups join and leave the running engine, and new weights come between two of its steps.

    submit ─► engine step, step, step ─► finished groups
                        │ pause: vLLM stops scheduling, requests under way give up their keys and values
                        │ load:  version v → v + 1, and how many tokens every answer has by now is written down
                        ▼ resume: their prompt and tokens are computed again under v + 1, the next token is v + 1's
              step, step, …

Requests are validated, sampled and recorded by `VllmSampler`, with its seeds and its failures; what a request breaks in the
engine costs the others no more than their tokens so far: all are then sampled one by one, from their start.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from vllm import RequestOutput

from data.sample import Sample
from rl.prompting import PromptEncoder
from rl.protocols import GroupRequest, SampledGroup
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler import PromptRequest, VllmSampler, check_sampling, failures_of
from rl.sampler_config import SamplerConfig
from rl.sampler_counts import SamplerCounts
from rl.trace import spanned

logger = logging.getLogger(__name__)

ALL_TOKENS = sys.maxsize


@dataclass
class _Flight:
    """A group in the engine. `names` are its answers in vLLM; `starts`, of every answer, where each version took over."""

    asked: GroupRequest
    request: PromptRequest
    names: list[str]
    starts: list[list[tuple[int, int]]] = field(default_factory=list)


class StreamingSampler(VllmSampler):
    """A `VllmSampler` that also samples groups step by step. Not thread-safe: one call at a time."""

    def __init__(self, config: SamplerConfig, encoder: PromptEncoder | None = None) -> None:
        super().__init__(config, encoder)
        self._flights: dict[str, _Flight] = {}  # by vLLM's name of the request
        self._finished: list[SampledGroup] = []

    @property
    def busy(self) -> bool:
        """Whether `advance` has anything to do. Without a whole set of weights nothing is sampled, and nothing forgotten."""
        return self._broken is None and bool(self._flights or self._finished)

    @spanned("take on")
    def submit(self, asked: GroupRequest) -> None:
        """Take a group into the engine. Raises ValueError for a sampling that vLLM cannot do."""
        check_sampling(asked.sampling)
        try:
            request = self._request(0, asked.sample, asked.sampling)
        except ValueError as error:
            self._end(asked, failures_of(asked.sample, asked.sampling.n, str(error)))
            return
        try:
            (name,) = self._engine.enqueue([request.prompt], [request.params], lora_request=self._adapter, use_tqdm=False)
        except Exception as error:  # the prompt's own fault: vLLM renders it here; the requests under way go on
            self._counts += SamplerCounts(engine_errors=1)
            self._end(asked, failures_of(asked.sample, asked.sampling.n, f"vLLM failed: {type(error).__name__}: {error}"))
            return
        n = request.params.n
        flight = _Flight(asked, request, [name] if n == 1 else [f"{number}_{name}" for number in range(n)])
        flight.starts = [[(0, self._version)] for _ in flight.names]
        self._flights[self._states[flight.names[0]].external_req_id] = flight

    @property
    def _states(self) -> Mapping[str, Any]:
        """vLLM's state of every answer that is not finished."""
        states: Mapping[str, Any] = self._engine.llm_engine.output_processor.request_states
        return states

    def advance(self) -> list[SampledGroup]:
        """One step of the engine: a token more for every answer under way. Returns the groups that have ended."""
        self._require_weights()
        started = time.perf_counter()
        if self._flights:
            try:
                outputs = self._engine.llm_engine.step()
            except Exception as error:  # as in a batch: its culprit is found by sampling one by one
                self._start_over(error)
            else:
                for output in outputs:
                    assert isinstance(output, RequestOutput)
                    self._land(self._flights.pop(output.request_id), output)
        self._counts += SamplerCounts(seconds=time.perf_counter() - started)
        finished, self._finished = self._finished, []
        return finished

    def _land(self, flight: _Flight, output: RequestOutput | str) -> None:
        answers = self._records(flight.request, output, flight.asked.sampling.n)
        starts = flight.starts * len(answers) if len(flight.starts) == 1 else flight.starts  # greedy: one answer n times
        self._end(flight.asked, [_with_versions(answer, of) for answer, of in zip(answers, starts, strict=True)])

    def _end(self, asked: GroupRequest, answers: Sequence[Rollout | RolloutFailure]) -> None:
        self._counts += self._count([answers], seconds=0.0)
        self._finished.append(SampledGroup(asked.ticket, tuple(answers)))

    def _start_over(self, error: Exception) -> None:
        self._counts += SamplerCounts(engine_errors=1)
        logger.warning(
            "vLLM failed: %s: %s; %d groups are sampled one by one", type(error).__name__, error, len(self._flights)
        )
        self._abort_all()
        flights, self._flights = list(self._flights.values()), {}
        for flight in flights:
            flight.starts = [[(0, self._version)] for _ in flight.names]
            (output,) = self._run([flight.request])
            self._land(flight, output)

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        """As `VllmSampler.generate`, and with one version, beside the groups under way; those that end meanwhile wait.

        With none under way, it leaves no cache: what a stream computes next is what it computes in a run that is resumed
        here, which does not validate first.
        """
        if not self._flights:
            answers = super().generate(samples, sampling)
            self._reset_caches()
            return answers
        self._require_weights()
        for place, sample in enumerate(samples):
            self.submit(GroupRequest(-1 - place, sample, sampling))  # tickets of the stream are not negative
        mine: dict[int, list[Rollout | RolloutFailure]] = {}
        others: list[SampledGroup] = []
        while len(mine) < len(samples):
            for group in self.advance():
                if group.ticket < 0:
                    mine[-1 - group.ticket] = list(group.answers)
                else:
                    others.append(group)
        self._finished += others
        return [mine[place] for place in range(len(samples))]

    # ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightsReceipt:
        with self._paused():
            return super().load_weights(tensors, version)

    def load_adapter(
        self, tensors: Iterable[tuple[str, torch.Tensor]], adapter_config: Mapping[str, Any], version: int
    ) -> WeightsReceipt:
        with self._paused():
            return super().load_adapter(tensors, adapter_config, version)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """No step is scheduled, none is in flight, and no cache holds anything; afterwards the next version goes on."""
        core = self._engine.llm_engine.engine_core.engine_core
        core.pause_scheduler(mode="keep", clear_cache=True)
        try:
            yield
        finally:
            core.resume_scheduler()
        for flight in self._flights.values():
            for name, starts in zip(flight.names, flight.starts, strict=True):
                state = self._states.get(name)  # none: that answer is finished, the others of its group are not
                starts.append((ALL_TOKENS if state is None else state.detokenizer.num_output_tokens(), self._version))


def _with_versions(answer: Rollout | RolloutFailure, starts: Sequence[tuple[int, int]]) -> Rollout | RolloutFailure:
    """The answer with the versions of its tokens: of versions that begin at one token, the last sampled it."""
    if isinstance(answer, RolloutFailure):
        return answer
    version_at = {place: version for place, version in starts if place < max(1, len(answer.tokens))}
    first, *later = sorted(version_at.items())
    return replace(answer, policy_version=first[1], switches=tuple(later))
