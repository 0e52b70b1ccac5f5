"""Does a recipe fit, and what will it cost: `python -m rl.plan RECIPE.yaml [nodes=… gpu=… gpus_per_node=… key=value …]`.

No GPU, no weights, no network. A key without a section is one of section `plan` (gpu, nodes, gpus_per_node, price, …); any
other override is the recipe's. `--json` prints figures for machines, `--explain` the arithmetic of every byte.

Exit status: 0 it fits, 1 it does not, 2 a recipe, an override, a GPU or a model that is not known.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields

from rl.commands import configured
from rl.config import ConfigError, Recipe, load_recipe
from rl.plan.advice import advise
from rl.plan.config import PlanConfig
from rl.plan.plan import make_plan
from rl.plan.report import to_json, to_text

USAGE = "usage: python -m rl.plan RECIPE.yaml [gpu=H100 nodes=2 key=value …] [--json] [--explain]"
FLAGS = ("--json", "--explain")


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{USAGE}")
        return 0 if argv else 2
    recipe = configured(lambda: _load(argv))
    if isinstance(recipe, int):
        return recipe
    try:
        plan = make_plan(recipe)
    except ValueError as error:
        print(f"config: {error}", file=sys.stderr)
        return 2
    advice = None if plan.fits else advise(recipe, plan)
    as_json = "--json" in argv
    print(to_json(plan, recipe.plan, advice) if as_json else to_text(plan, recipe.plan, advice, "--explain" in argv))
    return 0 if plan.fits else 1


def _load(argv: Sequence[str]) -> Recipe:
    paths = [word for word in argv if "=" not in word and not word.startswith("-")]
    for word in argv:
        if word.startswith("-") and word not in FLAGS:
            raise ConfigError(f"there is no option {word}; one of {', '.join(FLAGS)}")
    if len(paths) != 1:
        raise ConfigError(f"one recipe is planned at a time, got {', '.join(paths) or 'none'}. {USAGE}")
    return load_recipe(paths[0], [sectioned(word) for word in argv if "=" in word])


def sectioned(override: str) -> str:
    """`gpu=H100` as `plan.gpu=H100`; what names a section or a key of the recipe stays. Raises ConfigError.

    >>> sectioned("nodes=2"), sectioned("learner.ranks=8"), sectioned("seed=1")
    ('plan.nodes=2', 'learner.ranks=8', 'seed=1')
    """
    key = override.partition("=")[0]
    own, recipes = [field.name for field in fields(PlanConfig)], [field.name for field in fields(Recipe)]
    if key in own:
        return f"plan.{override}"
    if "." in key or key in recipes:
        return override
    near = difflib.get_close_matches(key, [*own, *recipes], n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise ConfigError(f"there is no key `{key}`; {hint}keys of the plan are {', '.join(own)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
