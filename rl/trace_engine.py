"""EngineSteps: the steps of a vLLM engine in this process, each with what it prefilled and decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm import LLM
from vllm.v1.utils import compute_iteration_details

from rl.trace import ENGINE, RECORDER, Event


class EngineSteps:
    """`rl.trace.Source`. While a recording lasts the engine's own step and schedule are listened to; else nothing is.

    It begins and ends in another thread than the engine's, whose step under way must not notice.
    """

    def __init__(self, engine: LLM) -> None:
        self._core: Any = engine.llm_engine.engine_core.engine_core  # vLLM runs in this process: see sampler_env
        self._own: tuple[Callable[..., Any], Callable[..., Any]] | None = None
        RECORDER.sources.add(self)

    def begin(self) -> None:
        step, schedule = self._own = self._core.step_fn, self._core.scheduler.schedule
        scheduled: list[Any] = []

        def listening(*args: Any, **kwargs: Any) -> Any:
            scheduled.append(schedule(*args, **kwargs))
            return scheduled[-1]

        def timed() -> Any:
            scheduled.clear()
            began = RECORDER.now()
            result = step()
            for work in scheduled:
                _record(began, work)
            return result

        self._core.step_fn, self._core.scheduler.schedule = timed, listening

    def end(self) -> list[Event]:
        """Its events are the recorder's already."""
        if self._own is not None:  # None: the sampler was built while the recording lasted
            (self._core.step_fn, self._core.scheduler.schedule), self._own = self._own, None
        return []


def _record(began: int, scheduled: Any) -> None:
    """A step with any prompt in it is a prefill, though answers may be decoded beside it."""
    if not scheduled.total_num_scheduled_tokens:
        return
    work = compute_iteration_details(scheduled)
    args = {
        "prompts": work.num_ctx_requests,
        "prompt_tokens": work.num_ctx_tokens,
        "answers": work.num_generation_requests,
        "answer_tokens": work.num_generation_tokens,
        "images": work.num_encoder_inputs,
    }
    RECORDER.add("prefill" if work.num_ctx_requests else "decode", began, ENGINE, args)
