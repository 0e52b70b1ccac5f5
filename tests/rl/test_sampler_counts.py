"""What is read off the scheduler: each request once, whatever vLLM makes of a preemption."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rl.sampler_counts import PrefillWatch


class Scripted:
    """A scheduler that gives outputs in turn."""

    def __init__(self, *outputs: SimpleNamespace) -> None:
        self.outputs = list(outputs)

    def schedule(self) -> SimpleNamespace:
        return self.outputs.pop(0)


def output(new: list[SimpleNamespace], images: dict[str, list[int]], finished: set[str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(scheduled_new_reqs=new, scheduled_encoder_inputs=images, finished_req_ids=finished or set())


def request(name: str, computed: int = 0) -> SimpleNamespace:
    """100 tokens and two images."""
    return SimpleNamespace(req_id=name, prompt_len=100, num_computed_tokens=computed, mm_features=[0, 1])


def counted(*outputs: SimpleNamespace) -> dict[str, Any]:
    scheduler = Scripted(*outputs)
    watch = PrefillWatch(scheduler)
    for each in list(outputs):
        assert scheduler.schedule() is each
    return watch.counts.cache_hits


FIRST = output([request("a"), request("b", 64)], {"a": [0, 1]})
SHARES = {"rollout/prefix_cache_hit": pytest.approx(64 / 200), "rollout/encoder_cache_hit": pytest.approx(2 / 4)}


def test_a_prompt_and_its_images_are_asked_for_once_a_completion() -> None:
    assert counted(FIRST) == SHARES


def test_images_of_a_prompt_in_pieces_are_added_up() -> None:
    assert counted(output([request("a"), request("b", 64)], {"a": [0]}), output([], {"a": [1]})) == SHARES


def test_what_is_computed_again_counts_for_nothing() -> None:
    """A preempted request comes as a running one, or, from another of vLLM's runners, as a new one."""
    assert counted(FIRST, output([], {"a": [0, 1], "b": [0, 1]}, {"c"})) != SHARES  # b never encoded its own before
    assert counted(FIRST, output([], {"a": [0, 1]})) == SHARES
    assert counted(FIRST, output([request("a"), request("b")], {"a": [0, 1]})) == SHARES


def test_a_name_may_come_again_when_its_request_has_ended() -> None:
    again = output([request("a", 96)], {}, {"a", "b"})
    assert counted(FIRST, again)["rollout/prefix_cache_hit"] == pytest.approx((64 + 96) / 300)
