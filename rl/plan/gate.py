"""What `rl.train` asks before it starts anything: can this recipe run on its machines at all?

The machines are those of section `plan`; where that names no GPU, this machine's own, if the run will start its Ray here. Of
a cluster that is joined nothing is known before Ray has answered.
"""

from __future__ import annotations

import copy
import os

from cluster.preflight import visible_devices
from rl.config import Recipe
from rl.plan.advice import advise
from rl.plan.plan import cpu_problems, machine_memory, make_plan
from rl.plan.report import advice_lines
from rl.plan.shapes import shape_of

OVERRIDE = "to start it all the same: plan.enforce=false"


def refusal(recipe: Recipe) -> list[str]:
    """Why the recipe cannot run, and what would; empty where it may, or where nothing is known."""
    here = _on_its_machines(recipe) if recipe.plan.enforce else None
    if here is None:
        return []
    try:
        if here.plan.gpu is None and not cpu_problems(here, shape_of(here.model)):
            return []  # at once: no dataset is looked into
        plan = make_plan(here)
    except ValueError as error:
        print(f"plan: not checked: {error}")
        return []
    if plan.fits:
        return []
    problems = [f"{problem.what} (knobs: {problem.remedy})" for problem in plan.problems]
    return [*problems, *advice_lines(advise(here, plan)), OVERRIDE]


def _on_its_machines(recipe: Recipe) -> Recipe | None:
    """The recipe with its machines in section `plan`; None where they are a cluster's that is yet to be asked."""
    if recipe.plan.gpu is not None:
        return recipe
    if recipe.cluster.address not in ("auto", "local") or (recipe.cluster.address == "auto" and "RAY_ADDRESS" in os.environ):
        return None
    devices = visible_devices()
    if not devices:
        return recipe
    found = copy.deepcopy(recipe)
    found.plan.gpu, found.plan.nodes, found.plan.gpus_per_node = devices[0].name, 1, len(devices)
    found.plan.host_memory_gb = machine_memory() / 1e9
    return found
