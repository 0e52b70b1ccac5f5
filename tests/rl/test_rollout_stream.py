"""Streaming rollout actors on real Ray, with a script in the place of the engine: who gets what, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.placement import RoleSpec, place
from cluster.session import ray_session
from data.sample import Sample
from rl.actors.rollout_stream import StreamingRolloutActor, StreamingRolloutGroup
from rl.actors.samples import SampleShipper, fetch
from rl.protocols import GroupRequest, SampledGroup
from rl.records import RolloutFailure, Sampling
from rl.sampler_config import SamplerConfig
from rl.sampler_counts import SamplerCounts
from tests.rl.test_batch import sample

SAMPLING = Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=8)
# Eight answers at once and two ahead: two groups of four an actor.
CONFIG = SamplerConfig(model="none", dtype="float32", max_model_len=64, max_images=1, max_num_seqs=8)


class ScriptedActor(StreamingRolloutActor):
    """Answers every request but that of the sample `s0`, which waits until it is released."""

    def build(self, config: SamplerConfig) -> None:
        self.ended: list[SampledGroup] = []
        self.changed, self.released, self.asked = threading.Condition(), False, 0

    def submit(self, tickets: Sequence[int], references: Sequence[ray.ObjectRef], sampling: Sequence[Sampling]) -> None:
        with self.changed:
            for ticket, each in zip(tickets, fetch(references), strict=True):
                self.asked += 1
                if each.id == "s0":
                    self.held = ticket
                else:
                    self._end(ticket)
            self.changed.notify_all()

    def _end(self, ticket: int) -> None:
        self.ended.append(SampledGroup(ticket, (RolloutFailure(f"answer to {ticket}", "scripted"),)))

    def collect(self) -> list[SampledGroup]:
        with self.changed:
            self.changed.wait_for(lambda: bool(self.ended))
            ended, self.ended = self.ended, []
            return ended

    def release(self) -> None:
        with self.changed:
            self._end(self.held)
            self.changed.notify_all()

    def counts(self) -> SamplerCounts:
        return SamplerCounts(prompts=self.asked)


class ScriptedGroup(StreamingRolloutGroup):
    actor_class = ScriptedActor


@pytest.fixture(scope="module")
def rollouts() -> Iterator[ScriptedGroup]:
    with ray_session(ClusterConfig(address="local", local_cpus=2, local_object_store_mb=80)) as session:
        placement = session.own(place([RoleSpec("rollout", 2)], timeout_s=60))
        group = session.own(ScriptedGroup(placement["rollout"], CONFIG, "cpu", SampleShipper(), 120.0))
        group.ready()
        yield group


def requests(count: int) -> list[GroupRequest]:
    samples: list[Sample] = [sample(n) for n in range(count)]
    return [GroupRequest(ticket, each, SAMPLING) for ticket, each in enumerate(samples)]


def collected(rollouts: ScriptedGroup, count: int) -> list[SampledGroup]:
    found: list[SampledGroup] = []
    while len(found) < count:
        found += rollouts.collect(5.0)
    return found


def test_a_long_answer_holds_up_its_own_place_only(rollouts: ScriptedGroup) -> None:
    """Twelve groups for two actors with room for two each: the one that got the long answer is left one place."""
    rollouts.submit(requests(12))
    early = collected(rollouts, 11)
    assert sorted(group.ticket for group in early) == list(range(1, 12))
    assert all(group.answers[0].prompt_id == f"answer to {group.ticket}" for group in early)
    assert {group.sampler for group in early} == {0, 1}
    assert rollouts.collect(0.0) == []
    rollouts.group.collect("release", [rollouts.group.submit_to(0, "release")])
    (late,) = collected(rollouts, 1)
    assert (late.ticket, late.sampler) == (0, 0)
    assert rollouts.counts().prompts == 12


def test_what_fits_is_dealt_in_turn(rollouts: ScriptedGroup) -> None:
    rollouts.submit(requests(4)[1:])
    assert {group.ticket: group.sampler for group in collected(rollouts, 3)} == {1: 0, 2: 1, 3: 0}
