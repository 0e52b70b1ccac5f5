"""The phases of one step and how long each takes, by the roofline of rl/plan/roofline.py.

    GRPO   prefill ─► decode ─► reward ─► old logprobs ─► update ─► optimizer ─► sync        validation, checkpoint: their
                                          reference (meanwhile)    collectives (meanwhile)   share of a step
    SFT                                                    update ─► optimizer

`hidden` is the part of a phase that runs while another one does; a step takes the sum of what is not hidden. With
asynchronous rollouts the shorter side, sampling or learning, is hidden behind the longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rl.plan import learning, sampling, syncing
from rl.plan.roofline import Phase
from rl.plan.situation import Situation

SAMPLING = ("prefill", "decode", "reward")
ALONE = ("sync", "sleep, wake")  # neither side goes on meanwhile


def phases_of(at: Situation) -> tuple[Phase, ...]:
    """All phases of a step of the situation's stage, in order."""
    return STAGE_PHASES[at.stage](at)


def step_seconds(phases: Sequence[Phase]) -> float:
    return sum(each.exposed for each in phases)


def _grpo(at: Situation) -> tuple[Phase, ...]:
    step = (*sampling.rollout(at), *learning.logprobs(at), *learning.update(at), *syncing.publish(at))
    if at.recipe.grpo.max_staleness:
        step = overlapped(step)
    return (*step, sampling.validation(at), learning.checkpoint(at))


def _sft(at: Situation) -> tuple[Phase, ...]:
    return (*learning.update(at), sampling.validation(at), learning.checkpoint(at))


STAGE_PHASES = {"grpo": _grpo, "sft": _sft}


def overlapped(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Sampling of the next step runs while this one is learnt: the shorter side takes no time of its own."""
    sampled = sum(each.exposed for each in phases if each.name in SAMPLING)
    learnt = sum(each.exposed for each in phases if each.name not in (*SAMPLING, *ALONE))
    samplers_wait = sampled <= learnt
    return tuple(
        replace(each, hidden=each.seconds) if each.name not in ALONE and (each.name in SAMPLING) == samplers_wait else each
        for each in phases
    )
