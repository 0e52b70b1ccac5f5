"""GRPO with the samplers ahead of the learner: the steps of `rl/loop.py`, learnt from groups that are sampled meanwhile.

    prompts ─► lend ─► samplers ─► rewards ─► ready groups          (in the background, at most k steps ahead)
                           ▲                        │ take the oldest
                           │                        ▼
                           │       group advantages ─► reference logprobs ─► update
                           └── pause, load v+1, resume ◄── publish weights v+1 ◄──┘

The bound k is `grpo.max_staleness`: no token that helps to make version v + 1 was sampled by a version before v − k.
It is kept by what is begun and by what is waited for. Under version v, the groups of at most k + 1 steps are on their way,
this step's among them. A step takes whichever groups are ready, oldest first, but waits for those without which a later
step could not learn in time all that must be. With `grpo.drop_stale` it does not wait: a group that is too old when it is
taken is dropped, and its prompt sampled again.

An answer may be sampled by several versions, each token with its own logprob under the version that sampled it: what
verl's off-policy weights (`algorithm.rollout_is`) or the ratio's denominator (`algorithm.old_logprobs=rollout`) need.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from verl.protocol import DataProto

from data.sample import Sample
from rewards.score import Completion
from rl.batch import Group
from rl.config import AlgorithmConfig, GrpoConfig
from rl.group_stream import GroupStream
from rl.loop import LEARNING, GrpoLoop, Roles, StepReport, count_up
from rl.prompt_ledger import Loan, PromptLedger
from rl.protocols import StreamingRollouts
from rl.records import Rollout, RolloutFailure, Sampling
from rl.sampler_counts import SamplerCounts


class AsyncGrpoLoop(GrpoLoop):
    """The GRPO stage over roles whose samplers stream. End it with `shutdown`."""

    def __init__(
        self,
        roles: Roles,
        prompts: PromptLedger,
        complete: Callable[[Sample, str], Completion],
        grpo: GrpoConfig,
        algorithm: AlgorithmConfig,
        sampling: Sampling,
        mismatch_bound: float,
    ) -> None:
        super().__init__(roles, prompts, complete, grpo, algorithm, sampling, mismatch_bound)
        assert isinstance(roles.rollouts, StreamingRollouts)
        self.samplers, self.ledger = roles.rollouts, prompts
        self.stream = GroupStream(roles.rollouts, self._judge)
        self._judged: deque[StepReport] = deque()  # what the background counted, until a step reports it
        self._loans: dict[int, Loan] = {}
        self._next_ticket: int | None = None
        self._worked: dict[str, float] = {}  # seconds by role: so far when a step begins, of the step when it ends
        self._counted: SamplerCounts | None = None  # likewise

    def collect(self, step: int, report: StepReport) -> list[Group]:
        if self._next_ticket is None:
            self._next_ticket = step * self.grpo.prompts_per_step
        self._worked, self._counted = self._work_so_far(), self.rounds.counts()
        return super().collect(step, report)

    def look_ahead(self, step: int) -> None:
        self.feed(step, self.grpo.prompts_per_step)
        self._worked = {role: seconds - self._worked[role] for role, seconds in self._work_so_far().items()}
        self.rounds.count_since(self._counted)

    def _work_so_far(self) -> dict[str, float]:
        return {"rollout": self.samplers.busy_seconds(), "reward": self.stream.judging_s}

    def feed(self, step: int, count: int) -> None:
        """Have the `count` groups that `step` still wants on their way, and those of the steps that may begin by now."""
        if step >= self.grpo.steps:
            return
        ahead = min(self.grpo.max_staleness, self.grpo.steps - 1 - step)
        loans = self.ledger.lend(max(0, count + ahead * self.grpo.prompts_per_step - self.stream.outstanding))
        if not loans:
            return
        assert self._next_ticket is not None
        tickets = range(self._next_ticket, self._next_ticket + len(loans))
        self._next_ticket = tickets.stop
        self._loans |= dict(zip(tickets, loans, strict=True))
        sampling = [self._sampling_of(ticket // self.grpo.prompts_per_step, 0) for ticket in tickets]
        self.stream.submit(tickets, [loan.sample for loan in loans], sampling, self.version)

    def next_groups(self, count: int, step: int, attempt: int, report: StepReport) -> list[Group]:
        """`count` judged groups of tokens that are young enough; of those that are not, the prompts are sampled again."""
        groups: list[Group] = []
        while len(groups) < count:
            self.feed(step, count - len(groups))
            with self.clock.phase("rollout"):
                ready = self.stream.take(count - len(groups), self._may_wait)
            for taken in ready:
                loan = self._loans.pop(taken.ticket)
                if self.version - oldest_version(taken.group, self.version) > self.grpo.max_staleness:
                    count_up(report.metrics, "groups/stale", 1)
                    self.ledger.give_back(loan)
                else:
                    self.ledger.settle(loan)
                    groups.append(taken.group)
        self._report_lost(report)
        return groups

    def _may_wait(self, versions: Sequence[int]) -> bool:
        """Whether groups begun under these versions can all be learnt in time though this step leaves them.

        A group begun under version u must be learnt by the step that version u + k learns in; each step learns from
        `prompts_per_step`. So the next j steps must have room for all that are begun under u ≤ version + j − k.
        """
        if self.grpo.drop_stale:
            return True
        room, limit = self.grpo.prompts_per_step, self.version - self.grpo.max_staleness
        return all(
            sum(version <= limit + steps for version in versions) <= steps * room
            for steps in range(self.grpo.max_staleness + 1)
        )

    def _judge(self, samples: Sequence[Sample], answers: Sequence[Sequence[Rollout | RolloutFailure]]) -> list[Group]:
        """In the background."""
        report = StepReport()
        groups = self.judge(samples, answers, report)
        self._judged.append(report)
        return groups

    def _report_lost(self, report: StepReport) -> None:
        """Failures count in the step in which they became known."""
        while self._judged:
            judged = self._judged.popleft()
            for name, count in judged.metrics.items():
                count_up(report.metrics, name, int(count))
            report.failures.update(judged.failures)

    def prepare(self, groups: Sequence[Group], report: StepReport) -> DataProto:
        """As ever; and which tokens the version sampled that learns now: only on those must sampler and learner agree."""
        batch = super().prepare(groups, report)
        mask = batch.batch["response_mask"]
        ages = token_ages(groups, self.version, mask)
        batch.batch["current_mask"] = mask * (ages == 0)
        carried = sum(bool(rollout.switches) for group in groups for rollout in group.rollouts)
        report.metrics |= {
            "staleness/mean": float((ages * mask).sum() / mask.sum()),
            "staleness/max": float(ages.max()),
            "staleness/current_tokens": float(batch.batch["current_mask"].sum() / mask.sum()),
            "rollout/carried": float(carried),
        }
        for name in ("groups/stale", "rollout/failures", "reward/failures"):
            count_up(report.metrics, name, 0)
        return batch

    def learn(self, part: DataProto, update: int) -> dict[str, float]:
        metrics = super().learn(part, update)
        if part.batch["current_mask"].any():
            return metrics
        return {name: value for name, value in metrics.items() if not name.startswith("mismatch/")}

    def _throughput(self, groups: Sequence[Group], times: dict[str, float]) -> dict[str, float]:
        """`time/rollout` is the loop's waiting; the samplers' speed is over the seconds they had something to do."""
        metrics = super()._throughput(groups, times)
        tokens = sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)
        return metrics | {"throughput/rollout_tokens_per_s": tokens / max(self._busy(times)["rollout"], 1e-9)}

    def _busy(self, times: dict[str, float]) -> dict[str, float]:
        return super()._busy(times) | self._worked

    def _computing(self, times: dict[str, float]) -> float:
        """Samplers and learner work side by side: at least for these seconds one of them did. Taking weights is no work."""
        learning = sum(times.get(f"time/{phase}", 0.0) for phase in LEARNING)
        sampling = self._worked["rollout"] - times.get("time/publish", 0.0)
        return learning + max(times.get("time/rollout", 0.0), sampling - learning)

    def shutdown(self) -> None:
        self.stream.close()
        super().shutdown()


def oldest_version(group: Group, default: int) -> int:
    """The version of the group's oldest token; `default` where no answer was sampled."""
    return min((rollout.policy_version for rollout in group.rollouts), default=default)


def token_ages(groups: Sequence[Group], version: int, like: Tensor) -> Tensor:
    """How many versions before `version` the policy was that sampled each token: [N, G, R], 0 where there is none."""
    ages = torch.zeros_like(like)
    for n, group in enumerate(groups):
        for g, rollout in enumerate(group.rollouts):
            ages[n, g, : len(rollout.tokens)] = version - torch.tensor(rollout.token_versions, dtype=like.dtype)
    return ages
