"""Which knobs make a plan fit: found by really turning them and planning again, not by rule of thumb.

One knob is tried first, cheapest in speed and closest to the paper's run first; where no single one is enough, the one that
leaves least missing is kept and the search goes on from there. What would change what is computed or trained
(precision, LoRA) is tried only when nothing else helps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rl.config import Recipe
from rl.config_checks import ConfigError, check_recipe
from rl.plan.plan import Plan, make_plan

MAX_TURNS = 5
Changes = dict[str, Any]  # dotted key → value


@dataclass(frozen=True, slots=True)
class Advice:
    """Overrides that make the recipe fit, and the plan with them."""

    changes: tuple[tuple[str, Any], ...]
    plan: Plan

    @property
    def overrides(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes)


def advise(recipe: Recipe, plan: Plan) -> Advice | None:
    """What makes `recipe` fit, whose `plan` does not; None where no knob that is tried helps."""
    search = _Search(recipe, plan)
    return search.run(knobs) or search.run(all_knobs)


class _Search:
    """Turns knobs of `recipe` and plans it again, each combination once."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        self.recipe, self.plan = recipe, plan
        self.planned: dict[str, Plan | None] = {}

    def run(self, offered: Callable[[Recipe, Plan], Iterator[Changes]]) -> Advice | None:
        turned: dict[str, Any] = {}
        plan = self.plan
        for _ in range(MAX_TURNS):
            tried = []
            for changes in offered(with_changes(self.recipe, turned), plan):
                candidate = self.with_(turned | changes)
                if candidate is None:
                    continue
                if candidate.fits:
                    return Advice(tuple((turned | changes).items()), candidate)
                tried.append((_missing(candidate), changes, candidate))
            least, changes, candidate = min(tried, key=lambda each: each[0], default=(_missing(plan), {}, plan))
            if not tried or least > _missing(plan):
                return None  # a change that helps nothing by itself (more nodes) may be what the next one needs
            turned, plan = turned | changes, candidate
        return None

    def with_(self, changes: Changes) -> Plan | None:
        """The plan with `changes`, None where the recipe refuses them."""
        key = repr(sorted(changes.items()))
        if key not in self.planned:
            self.planned[key] = self._plan(with_changes(self.recipe, changes))
        return self.planned[key]

    def _plan(self, changed: Recipe) -> Plan | None:
        try:
            check_recipe(changed)
        except ConfigError:
            return None
        return make_plan(changed, self.plan.workload)


def _missing(plan: Plan) -> int:
    return sum(problem.excess for problem in plan.problems)


def with_changes(recipe: Recipe, changes: Changes) -> Recipe:
    """A copy of the recipe with dotted keys set."""
    changed = copy.deepcopy(recipe)
    for key, value in changes.items():
        section: Any = changed
        *path, name = key.split(".")
        for part in path:
            section = vars(section)[part]
        setattr(section, name, value)
    return changed


def knobs(recipe: Recipe, plan: Plan) -> Iterator[Changes]:
    """Single changes that bear on what is missing, in the order in which one would rather make them."""
    short = {part for problem in plan.problems for part in problem.role.split("+")}
    if plan.hardware is None:
        yield from _host_knobs(recipe)
        return
    if short & {"learner", "rollout"}:
        yield from _rollout_memory_knobs(recipe)
        yield from _learner_memory_knobs(recipe)
    if short & {"reference"}:
        yield from ({"reference.ranks": recipe.reference.ranks * times} for times in (2, 4))
        yield {"reference.placement": "learner"}
    if short & {"host"}:
        yield from _host_knobs(recipe)
    yield from _placement_knobs(recipe, short)


def _rollout_memory_knobs(recipe: Recipe) -> Iterator[Changes]:
    rollout = recipe.rollout
    steps = (0.9, 0.92) if recipe.cluster.placement != "colocated" else (0.6, 0.5, 0.4, 0.3)
    yield from ({"rollout.gpu_memory_utilization": share} for share in steps)
    for parallel in (2, 4, 8):
        if parallel > rollout.tensor_parallel:
            actors = max(1, rollout.actors * rollout.tensor_parallel // parallel)
            yield {"rollout.tensor_parallel": parallel, "rollout.actors": actors}
            yield {"rollout.tensor_parallel": parallel}


def _learner_memory_knobs(recipe: Recipe) -> Iterator[Changes]:
    learner = recipe.learner
    if not learner.activation_checkpointing:
        yield {"learner.activation_checkpointing": True}
    yield from ({"learner.tokens_per_micro_batch": learner.tokens_per_micro_batch // cut} for cut in (2, 4))
    if learner.engine == "deepspeed" and learner.zero_stage == 2:
        yield {"learner.zero_stage": 3}
    yield from ({"learner.ranks": learner.ranks * times} for times in (2, 4, 8, 16))
    yield {"learner.offload": "optimizer"}
    yield {"learner.offload": "all"}


def _host_knobs(recipe: Recipe) -> Iterator[Changes]:
    if recipe.learner.offload is not None:
        yield {"learner.offload": None}
    if recipe.rollout.actors > 1:
        yield {"rollout.actors": 1}
    if recipe.learner.ranks > 1:
        yield {"learner.ranks": recipe.learner.ranks // 2}
    if recipe.reference.ranks > 1:
        yield {"reference.ranks": recipe.reference.ranks // 2}


def _placement_knobs(recipe: Recipe, short: set[str]) -> Iterator[Changes]:
    """Fewer workers or more nodes, with the learner's ranks on the new ones alone, or there as well.

    Alone, they leave the GPUs they had to the reference.
    """
    if recipe.rollout.actors > 1:
        yield {"rollout.actors": recipe.rollout.actors // 2}
    if recipe.model.lora.rank:
        yield {"reference.placement": "learner"}
    yield {"cluster.placement": "colocated"}
    for nodes in (2, 4, 8, 16):
        if nodes > recipe.plan.nodes:
            added = (nodes - recipe.plan.nodes) * recipe.plan.gpus_per_node
            yield {"plan.nodes": nodes}
            yield {"plan.nodes": nodes, "learner.ranks": added}
            if "reference" in short:
                freed = recipe.reference.ranks + recipe.learner.ranks
                yield {"plan.nodes": nodes, "learner.ranks": added, "reference.ranks": freed}
            yield {"plan.nodes": nodes, "learner.ranks": recipe.learner.ranks + added}


def all_knobs(recipe: Recipe, plan: Plan) -> Iterator[Changes]:
    """Those that change what is computed or trained as well."""
    yield from knobs(recipe, plan)
    if recipe.model.lora.rank and recipe.model.quantization is None:
        yield {"model.quantization": "nf4"}
    if not recipe.model.lora.rank:
        yield {"model.lora.rank": 64, "model.lora.alpha": 64}
