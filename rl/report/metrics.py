"""How each metric is shown: its name for people, its unit, its colour, its axis; and which group it is drawn in.

A metric that is not listed is drawn all the same, under its own name, in the group of its prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricView:
    """`zero` keeps 0 on the axis; `noisy` series are smoothed."""

    title: str
    unit: str = ""
    zero: bool = False
    noisy: bool = True


@dataclass(frozen=True, slots=True)
class GroupView:
    """Metrics whose names start with one of the prefixes: drawn one after the other, in one colour."""

    color: str
    prefixes: tuple[str, ...]


VIEWS: Mapping[str, MetricView] = {
    "reward/total": MetricView("Reward"),
    "reward/iou": MetricView("IoU reward"),
    "reward/format": MetricView("Format reward"),
    "reward/std": MetricView("Reward spread", "standard deviation", zero=True),
    "rollout/length_mean": MetricView("Answer length", "tokens, mean"),
    "rollout/length_max": MetricView("Longest answer", "tokens"),
    "rollout/truncated": MetricView("Truncated answers", "share", zero=True),
    "rollout/prefix_cache_hit": MetricView("Prompt tokens from the prefix cache", "share, at most (G − 1)/G", zero=True),
    "rollout/encoder_cache_hit": MetricView("Images from the encoder cache", "share, at most (G − 1)/G", zero=True),
    "loss/lm": MetricView("Language-model loss", "nats a token"),
    "loss/policy": MetricView("Policy loss"),
    "loss/kl": MetricView("KL to the reference", "nats a token", zero=True),
    "policy/entropy": MetricView("Entropy", "nats a token"),
    "policy/clip_fraction": MetricView("Clipped tokens", "share", zero=True),
    "policy/ratio_max": MetricView("Largest ratio", "π / π old"),
    "grad_norm": MetricView("Gradient norm", "before clipping", zero=True),
    "lr": MetricView("Learning rate", zero=True, noisy=False),
    "throughput/samples_per_s": MetricView("Throughput", "answers a second", zero=True),
    "throughput/tokens_per_s": MetricView("Throughput", "tokens a second", zero=True),
    "throughput/rollout_tokens_per_s": MetricView("Sampling speed", "tokens a second", zero=True),
    "throughput/idle_rollout": MetricView("Samplers idle", "share of a step", zero=True),
    "throughput/idle_learner": MetricView("Learner idle", "share of a step", zero=True),
    "throughput/idle_reward": MetricView("Rewards idle", "share of a step", zero=True),
    "throughput/slowest_wait_s": MetricView("Waiting for the slowest group", "seconds since half were there", zero=True),
    "throughput/overhead": MetricView("Neither sampling nor learning", "share of a step", zero=True),
    "staleness/mean": MetricView("Staleness", "policy versions, mean of the tokens", zero=True),
    "staleness/max": MetricView("Oldest token", "policy versions", zero=True),
    "staleness/current_tokens": MetricView("Tokens of the present policy", "share", zero=True),
    "rollout/carried": MetricView("Answers over an update", "sampled by several versions", zero=True),
    "data/epoch": MetricView("Epoch", zero=True, noisy=False),
}

GROUPS: Sequence[GroupView] = (
    GroupView("blue", ("reward/",)),
    GroupView("violet", ("loss/", "policy/")),
    GroupView("red", ("mismatch/",)),
    GroupView("teal", ("rollout/", "staleness/")),
    GroupView("slate", ("grad_norm", "lr")),
    GroupView("amber", ("throughput/",)),
)
OTHER = GroupView("slate", ("",))

# Drawn elsewhere: as validation curves, as phases, as a table of peaks.
ELSEWHERE = ("validation/", "time/", "memory/")

VALIDATION_TITLES: Mapping[str, str] = {
    "mean_iou": "Mean IoU",
    "acc@0.5": "ACC@0.5",
    "acc@0.75": "ACC@0.75",
    "picks_target": "Picks target",
    "format_rate": "Format",
    "parse_rate": "Box can be read",
    "reward": "Reward",
    "samples": "Samples",
    "failures": "Samples lost",
}
# Counts stand in the table only.
VALIDATION_COUNTS = ("samples", "failures")
LOST_TITLES: Mapping[str, str] = {
    "rollout/failures": "answers not sampled",
    "reward/failures": "answers not judged",
    "groups/dropped": "groups under two answers",
    "groups/without_spread": "groups whose rewards were all equal",
}
MODE_COLORS: Mapping[str, str] = {"greedy": "blue", "sampled": "amber"}

# The two that a step is for stand out; the order is that of a step.
PHASE_COLORS: Mapping[str, str] = {
    "rollout": "blue",
    "reward": "amber",
    "advantage": "pink",
    "reference": "teal",
    "old_logprobs": "green",
    "gate": "red",
    "update": "violet",
    "publish": "gold",
    "other": "slate",
}


def in_order(metrics: Iterable[str]) -> list[str]:
    """Validation metrics as VALIDATION_TITLES orders them, others after."""
    rank = {name: index for index, name in enumerate(VALIDATION_TITLES)}
    return sorted(metrics, key=lambda name: rank.get(name, len(rank)))


def view_of(name: str) -> MetricView:
    return VIEWS.get(name) or MetricView(name)


def grouped(names: Sequence[str]) -> list[tuple[GroupView, list[str]]]:
    """The names by group, in the order of GROUPS; listed metrics first, as VIEWS orders them."""
    rank = {name: index for index, name in enumerate(VIEWS)}
    left = [name for name in sorted(names, key=lambda name: rank.get(name, len(rank))) if not name.startswith(ELSEWHERE)]
    groups = []
    for group in (*GROUPS, OTHER):
        members = [name for name in left if name.startswith(group.prefixes)]
        left = [name for name in left if name not in members]
        if members:
            groups.append((group, members))
    return groups
