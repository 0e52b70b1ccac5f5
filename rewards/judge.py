"""One call of a reward: whatever it does, the outcome is a Score or a named RewardFailure."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from data.sample import Sample
from rewards.registry import RewardFunction
from rewards.score import Completion, RewardFailure, Score

_LONGEST_REASON = 500


def judge(
    function: RewardFunction, kwargs: Mapping[str, Any], sample: Sample, completion: Completion
) -> Score | RewardFailure:
    """The reward's Score in plain floats; an exception, `sys.exit` included, or a wrong result becomes a RewardFailure."""
    try:
        return _plain(function(sample, completion, **kwargs))
    except (Exception, SystemExit) as error:  # Anything a reward raises is its failure, by contract.
        return RewardFailure(f"{type(error).__name__}: {error}"[:_LONGEST_REASON])


def _plain(verdict: object) -> Score:
    if isinstance(verdict, Score):
        return Score(float(verdict.total), {str(name): float(value) for name, value in verdict.parts.items()})
    if isinstance(verdict, Real):
        return Score(float(verdict))
    raise TypeError(f"a reward returns a Score or a float, got {type(verdict).__name__}")
