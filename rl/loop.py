"""GRPO, one step at a time, as the paper writes it.

    prompts ─► rollouts (G answers each) ─► rewards ─► group advantages ─► reference logprobs
                  ▲                                                              │
                  └──────── publish weights v+1 ◄──────── update ◄───────────────┘

Rewards, and the reference, begin on groups that are complete while others are sampled (rl/sampling_round.py,
rl/early_reference.py); what a step learns from does not depend on which came first.

A rollout or a reward that fails leaves its group; a group under two members is dropped; both are counted, never scored
zero. The loop sees Protocols only: Ray and vLLM live behind `rl/actors/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from verl.protocol import DataProto

from data.sample import Sample
from data.stream import PromptStream
from rewards.score import Completion, RewardFailure, Score
from rl.advantages import group_advantages
from rl.batch import Group, as_objects, group_batch
from rl.clock import PhaseClock
from rl.config import AlgorithmConfig, GrpoConfig
from rl.early_reference import EarlyReference, Fits
from rl.protocols import FrozenPolicy, PolicyLearner, Rewards, Rollouts
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampling_round import SamplingRounds
from rl.schedule import learning_rate

# The phases of a synchronous step in which a role works; rewards work beside the samplers, and are timed by themselves.
WORK: Mapping[str, Sequence[str]] = {
    "rollout": ("rollout", "publish"),
    "learner": ("gate", "old_logprobs", "update", "publish"),
}
# The phases in which the learner computes.
LEARNING = ("gate", "old_logprobs", "update")


class SyncError(RuntimeError):
    """A rollout engine does not hold the weights the learner published."""


class MismatchError(RuntimeError):
    """Sampler and learner disagree about the policy they share."""


class NothingToLearnError(RuntimeError):
    """Every answer of a step was lost, or every group's rewards were equal; the message counts the reasons."""


@dataclass(frozen=True)
class Roles:
    """Who does the work of a step. `reference` is None when the KL coefficient is 0.

    `reference_fits`: with how many complete groups the reference begins while others are sampled (rl/early_reference.py);
    None: with all of a batch together, as it must where samplers and reference share GPUs.
    """

    rollouts: Rollouts
    rewards: Rewards
    learner: PolicyLearner
    reference: FrozenPolicy | None
    reference_fits: Fits | None = None


@dataclass
class StepReport:
    """What happened in a step: metrics, and why answers were lost."""

    metrics: dict[str, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)


class GrpoLoop:
    """The GRPO stage over `roles`.

    `complete` makes of an answer's text what a reward sees. `version` counts the policies published, 0 the one the stage
    starts from.
    """

    def __init__(
        self,
        roles: Roles,
        prompts: PromptStream,
        complete: Callable[[Sample, str], Completion],
        grpo: GrpoConfig,
        algorithm: AlgorithmConfig,
        sampling: Sampling,
        mismatch_bound: float,
    ) -> None:
        self.roles, self.prompts, self.complete = roles, prompts, complete
        self.grpo, self.algorithm, self.sampling, self.mismatch_bound = grpo, algorithm, sampling, mismatch_bound
        self.version = 0
        self.clock = PhaseClock()
        self.rounds = SamplingRounds(roles.rollouts, self.clock)
        self.reference = None if roles.reference is None else EarlyReference(roles.reference, roles.reference_fits)
        self._gated = False

    def step(self, step: int) -> StepReport:
        """One step of GRPO, `step` counting from 0."""
        report = StepReport()
        self.clock.lap()
        groups = self.collect(step, report)
        batch = self.prepare(groups, report)
        self.gate(batch)
        for part, update in self.updates(batch, step):
            report.metrics |= self.learn(part, update)
        self.publish()
        report.metrics |= self._summary(groups)
        self.look_ahead(step + 1)
        report.metrics |= self._throughput(groups, self.clock.lap())
        return report

    def collect(self, step: int, report: StepReport) -> list[Group]:
        """Sample and judge groups; with dynamic sampling, until enough of them can teach (DAPO)."""
        groups: list[Group] = []
        for attempt in range(self.algorithm.max_sampling_rounds if self.algorithm.dynamic_sampling else 1):
            judged = self.next_groups(self.grpo.prompts_per_step - len(groups), step, attempt, report)
            whole = [group for group in judged if len(group.rollouts) >= 2]
            count_up(report.metrics, "groups/dropped", len(judged) - len(whole))
            teaching = [group for group in whole if self._teaches(group)]
            if self.algorithm.dynamic_sampling:
                count_up(report.metrics, "groups/without_spread", len(whole) - len(teaching))
            groups += teaching
            if len(groups) >= self.grpo.prompts_per_step:
                break
        return groups

    def _teaches(self, group: Group) -> bool:
        """Whether a step learns from the group."""
        if len(group.rollouts) < 2:
            return False
        return not self.algorithm.dynamic_sampling or max(group.rewards) > min(group.rewards)

    def next_groups(self, count: int, step: int, attempt: int, report: StepReport) -> list[Group]:
        """The next `count` prompts with those of their answers that were sampled and judged."""
        samples = self.prompts.take(count)
        judge = partial(self.judge, report=report)
        return self.rounds.run(samples, self._sampling_of(step, attempt), judge, self._begin_reference)

    def _begin_reference(self, sampler: int, group: Group) -> None:
        """`sampler` ended this group, while others may still be sampled."""
        if self.reference is not None and self._teaches(group):
            self.reference.add(sampler, group)

    def _sampling_of(self, step: int, attempt: int) -> Sampling:
        """The step's own seed, so that a resumed run draws what the uninterrupted one would have drawn."""
        base = self.sampling
        seed = ((base.seed or 0) * 1_000_003 + step) * 16 + attempt
        return Sampling(base.n, base.temperature, base.top_p, base.max_tokens, seed % (1 << 31))

    def judge(
        self, samples: Sequence[Sample], answers: Sequence[Sequence[Rollout | RolloutFailure]], report: StepReport
    ) -> list[Group]:
        """Groups of the answers that were sampled and judged; the others are counted by reason."""
        sampled = [
            (sample, [answer for answer in group if isinstance(answer, Rollout)])
            for sample, group in zip(samples, answers, strict=True)
        ]
        lost = [answer.reason for group in answers for answer in group if isinstance(answer, RolloutFailure)]
        requests = [(sample, self.complete(sample, rollout.text)) for sample, group in sampled for rollout in group]
        verdicts = iter(self.roles.rewards.score(requests))
        groups, unjudged = [], []
        for sample, group in sampled:
            pairs: list[tuple[Rollout, Score]] = []
            for rollout in group:
                verdict = next(verdicts)
                if isinstance(verdict, RewardFailure):
                    unjudged.append(verdict.reason)
                else:
                    pairs.append((rollout, verdict))
            groups.append(Group(sample, tuple(rollout for rollout, _ in pairs), tuple(score for _, score in pairs)))
        count_up(report.metrics, "rollout/failures", len(lost))
        count_up(report.metrics, "reward/failures", len(unjudged))
        report.failures.update(f"rollout: {reason}" for reason in lost)
        report.failures.update(f"reward: {reason}" for reason in unjudged)
        return groups

    def prepare(self, groups: Sequence[Group], report: StepReport) -> DataProto:
        """The batch with advantages, the logprobs of the policy that sampled, and those of the reference under way."""
        if not groups:
            reasons = "; ".join(f"{count}× {reason}" for reason, count in report.failures.most_common(3))
            raise NothingToLearnError(
                f"no group of this step can teach. Failures: {reasons or 'none, every reward was equal'}"
            )
        with self.clock.phase("advantage"):
            batch = group_batch(groups)
            batch.batch["advantages"] = group_advantages(batch, self.algorithm)
        if self.reference is not None:
            with self.clock.phase("reference"):
                batch.non_tensor_batch["reference"] = as_objects(self.reference.handles(groups, batch))
        if self.algorithm.old_logprobs == "rollout":
            batch.batch["old_logprobs"] = batch.batch["rollout_logprobs"].clone()
        elif self.grpo.prompts_per_step > self.grpo.prompts_per_update:  # however many groups were lost
            with self.clock.phase("old_logprobs"):
                batch.batch["old_logprobs"] = self.roles.learner.logprobs(batch)
        return batch

    def gate(self, batch: DataProto) -> None:
        """Before anything is learnt: stop when the learner does not reproduce the sampler's logprobs."""
        if self._gated:
            return
        self._gated = True
        with self.clock.phase("gate"):
            learner = self.roles.learner.logprobs(batch)
        gap = (learner - batch.batch["rollout_logprobs"]).abs() * batch.batch["response_mask"]
        if not gap.max() <= self.mismatch_bound:
            raise MismatchError(
                f"sampler and learner disagree by {gap.max():.3g} in the logprob of a token "
                f"(bound {self.mismatch_bound:g}): they do not compute the same policy. Compare rollout.dtype "
                "with learner.dtype, the model folders and the pixel limits; raise `mismatch_bound` if bfloat16 explains it."
            )

    def updates(self, batch: DataProto, step: int) -> list[tuple[DataProto, int]]:
        """The step's mini-batches, each with the number of its update since the stage began; the first is on-policy."""
        per_step = self.grpo.prompts_per_step // self.grpo.prompts_per_update
        size = -(-len(batch) // per_step)
        found = []
        for number, start in enumerate(range(0, len(batch), size)):
            part = batch.select_idxs(list(range(start, min(start + size, len(batch)))))
            part.meta_info = {"on_policy": number == 0}
            found.append((part, step * per_step + number))
        return found

    def learn(self, part: DataProto, update: int) -> dict[str, float]:
        """One optimizer step."""
        per_step = self.grpo.prompts_per_step // self.grpo.prompts_per_update
        lr = learning_rate(self.grpo.optimizer, update, self.grpo.steps * per_step)
        with self.clock.phase("update"):
            return self.roles.learner.update(part, lr)

    def publish(self) -> None:
        """Hand the learner's weights to every sampler, and insist on the receipt."""
        self.version += 1
        with self.clock.phase("publish"):
            hand_over(self.roles.learner, self.roles.rollouts, self.version)

    def look_ahead(self, step: int) -> None:
        """Begin what may begin of `step`, in the time of the step before: nothing, here."""

    def shutdown(self) -> None:
        """End what goes on in the background."""
        self.rounds.close()

    def _summary(self, groups: Sequence[Group]) -> dict[str, float]:
        scores = [score for group in groups for score in group.scores]
        totals = torch.tensor([score.total for score in scores])
        lengths = torch.tensor([len(rollout.tokens) for group in groups for rollout in group.rollouts], dtype=torch.float)
        cut = [rollout.finish_reason == "length" for group in groups for rollout in group.rollouts]
        metrics = {
            "reward/total": float(totals.mean()),
            "reward/std": float(totals.std()),
            "rollout/length_mean": float(lengths.mean()),
            "rollout/length_max": float(lengths.max()),
            "rollout/truncated": sum(cut) / len(cut),
            "data/epoch": float(self.prompts.epoch),
        }
        for name in set.intersection(*(set(score.parts) for score in scores)):
            metrics[f"reward/{name}"] = sum(score.parts[name] for score in scores) / len(scores)
        return metrics

    def _throughput(self, groups: Sequence[Group], times: dict[str, float]) -> dict[str, float]:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        tokens = sum(len(rollout.tokens) for rollout in rollouts)
        seconds = max(times["time/step"], 1e-9)
        speeds = {
            "throughput/samples_per_s": len(rollouts) / seconds,
            "throughput/tokens_per_s": tokens / seconds,
            "throughput/rollout_tokens_per_s": tokens / max(times["time/rollout"], 1e-9),
        }
        rounds = self.rounds.lap()
        busy_s = {"reward": rounds.judging_s} | self._busy(times)
        idle = {f"throughput/idle_{role}": max(0.0, 1.0 - busy / seconds) for role, busy in busy_s.items()}
        overhead = {"throughput/overhead": max(0.0, 1.0 - self._computing(times) / seconds)}
        return times | speeds | idle | overhead | rounds.metrics

    def _computing(self, times: dict[str, float]) -> float:
        """Seconds of the phases in which samplers (the loop waits for them) or learner computed, not passed weights on.

        Whole phases: what a role reads, prepares or waits for inside its own call counts as its work.
        """
        return sum(times.get(f"time/{phase}", 0.0) for phase in ("rollout", *LEARNING))

    def _busy(self, times: dict[str, float]) -> dict[str, float]:
        """Seconds of the step in which each role had something to do; weights keep both busy who send and take them."""
        return {role: sum(times.get(f"time/{phase}", 0.0) for phase in phases) for role, phases in WORK.items()}


def count_up(metrics: dict[str, float], name: str, count: int) -> None:
    metrics[name] = metrics.get(name, 0.0) + count


def hand_over(learner: PolicyLearner, rollouts: Rollouts, version: int) -> None:
    """Publish `version` and check every receipt. Raises SyncError when a sampler answers another version or checksum."""
    published = learner.publish(version)  # the learner sends from here on …
    receipts = rollouts.load(published)  # … while the samplers receive
    check_receipts(version, learner.confirm(published), receipts)


def check_receipts(version: int, checksum: str, receipts: Sequence[WeightsReceipt]) -> None:
    for number, receipt in enumerate(receipts):
        if (receipt.version, receipt.checksum) != (version, checksum):
            raise SyncError(
                f"rollout engine {number} holds version {receipt.version} ({receipt.checksum}), "
                f"the learner published {version} ({checksum})"
            )
