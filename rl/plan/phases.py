"""The phases of one step and how long each takes, by the roofline of rl/plan/roofline.py.

    GRPO   prefill ─► decode ─► reward ─► old logprobs ─► update ─► optimizer ─► sync        validation, checkpoint: their
                                          reference (meanwhile)    collectives (meanwhile)   share of a step
    SFT                                                    update ─► optimizer

`hidden` is the part of a phase that runs while another one does; a step takes the sum of what is not hidden. With
asynchronous rollouts the shorter side, sampling or learning, is hidden behind the longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rl.plan.roofline import Bound, Cost
from rl.plan.situation import Situation

SAMPLING = ("prefill", "decode", "reward")
AMORTISED = ("validation", "checkpoint")


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds a step, of which `hidden` beside other work; `how` is its arithmetic in a line."""

    name: str
    seconds: float
    bound: Bound
    how: str
    hidden: float = 0.0

    @property
    def exposed(self) -> float:
        return self.seconds - self.hidden


def phase(name: str, cost: Cost, how: str, hidden: float = 0.0) -> Phase:
    return Phase(name, cost.seconds, cost.bound, how, min(hidden, cost.seconds))


def step_seconds(phases: Sequence[Phase]) -> float:
    return sum(each.exposed for each in phases)


def phases_of(at: Situation) -> tuple[Phase, ...]:
    """All phases of a step of the situation's stage, in order."""
    return STAGE_PHASES[at.stage](at)


def _grpo(at: Situation) -> tuple[Phase, ...]:
    from rl.plan import learning, sampling, syncing

    step = (*sampling.rollout(at), *learning.logprobs(at), *learning.update(at), *syncing.publish(at))
    step = _overlapped(step) if at.recipe.grpo.max_staleness else step
    return (*step, sampling.validation(at), learning.checkpoint(at))


def _sft(at: Situation) -> tuple[Phase, ...]:
    from rl.plan import learning, sampling

    return (*learning.update(at), sampling.validation(at), learning.checkpoint(at))


STAGE_PHASES = {"grpo": _grpo, "sft": _sft}


def _overlapped(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Sampling of the next step runs while this one is learnt: the shorter side takes no time of its own."""
    sampling = sum(each.exposed for each in phases if each.name in SAMPLING)
    learning = sum(each.exposed for each in phases if each.name not in (*SAMPLING, "sync"))
    shorter_samples = sampling <= learning
    return tuple(
        replace(each, hidden=each.seconds) if each.name != "sync" and (each.name in SAMPLING) == shorter_samples else each
        for each in phases
    )
