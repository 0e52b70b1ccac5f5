"""What the phases of a stage are computed from: the recipe on its machine, and how a step's work is dealt out to ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config import OptimizerConfig, Recipe
from rl.plan.memory import KvCache
from rl.plan.operations import Group, Operations, group_operations
from rl.plan.packing import Places
from rl.plan.roofline import Machine
from rl.plan.shapes import ModelShape
from rl.plan.sharding import COMPUTE_BYTES
from rl.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Dealt:
    """A forward's work on its fullest rank: `groups` cut into `micro_batches` of `tokens` in all."""

    groups: int
    micro_batches: int
    tokens: float


@dataclass(frozen=True, slots=True)
class Situation:
    """One stage of a recipe on a machine."""

    recipe: Recipe
    stage: str
    shape: ModelShape
    workload: Workload
    machine: Machine
    places: Places
    kv: KvCache
    validation_samples: int

    @property
    def grpo(self) -> bool:
        return self.stage == "grpo"

    @property
    def steps(self) -> int:
        return self.recipe.grpo.steps if self.grpo else self.recipe.sft.steps

    @property
    def groups(self) -> int:
        """Of a step."""
        return self.recipe.grpo.prompts_per_step if self.grpo else self.recipe.sft.batch_size

    @property
    def groups_per_update(self) -> int:
        return self.recipe.grpo.prompts_per_update if self.grpo else self.recipe.sft.batch_size

    @property
    def answers(self) -> int:
        return self.recipe.grpo.num_generations if self.grpo else 1

    @property
    def optimizer(self) -> OptimizerConfig:
        return self.recipe.grpo.optimizer if self.grpo else self.recipe.sft.optimizer

    @property
    def group(self) -> Group:
        """What the learner computes of a prompt."""
        return Group.of(self.workload, self.answers, self.workload.answer_tokens, self.recipe.learner.layout)

    @property
    def compute_bytes(self) -> int:
        return COMPUTE_BYTES[self.recipe.learner.dtype]

    def together(self, role: str) -> int:
        """Ranks that share a sequence: the learner's alone, a reference on ranks of its own has whole sequences."""
        return self.recipe.learner.sequence_parallel if role == "learner" else 1

    def operations(self, role: str) -> Operations:
        """Of one group on one rank."""
        return group_operations(self.shape, self.group, self.together(role))

    def dealt(self, groups: int, ranks: int, role: str) -> Dealt:
        """`groups` over a role's `ranks`, micro-batches within the recipe's tokens: the rank that has most.

        Ranks that share sequences have the same groups, and one budget.
        """
        each = max(1, math.ceil(groups / (ranks // self.together(role))))
        at_once = max(1, int(self.recipe.learner.tokens_per_micro_batch // self.group.tokens))
        return Dealt(each, math.ceil(each / at_once), each * self.group.tokens)
