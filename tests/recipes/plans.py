"""The planner's outputs that the recipes' READMEs show. `python -m tests.recipes.plans` writes them anew."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from rl.config import load_recipe
from rl.plan.plan import make_plan
from rl.plan.report import to_text

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "recipes/locus/README.md", ROOT / "recipes/focus/README.md"]
_OPENING = r"<details><summary><code>python -m rl\.plan (\S+?\.yaml)</code></summary>\n\n```text\n"
BLOCK = re.compile(rf"({_OPENING})(.*?)(```)", re.DOTALL)


def rendered(text: str) -> str:
    """A README with every plan as the planner prints it now, where no dataset is built."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            return BLOCK.sub(lambda block: f"{block[1]}{_plan(block[2])}\n{block[4]}", text)
        finally:
            os.chdir(before)


def _plan(recipe_path: str) -> str:
    recipe = load_recipe(ROOT / recipe_path)
    return to_text(make_plan(recipe), recipe.plan, None, False)


if __name__ == "__main__":
    for readme in READMES:
        readme.write_text(rendered(readme.read_text()))
