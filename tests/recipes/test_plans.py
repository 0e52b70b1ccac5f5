"""The READMEs show what the planner prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.plans import BLOCK, READMES, ROOT, rendered


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_plans_shown_are_the_planners(readme: Path) -> None:
    text = readme.read_text()
    assert BLOCK.search(text)
    assert rendered(text) == text, "write them anew: python -m tests.recipes.plans"


def test_every_recipe_at_scale_shows_its_plan() -> None:
    shown = {block[2] for readme in READMES for block in BLOCK.finditer(readme.read_text())}
    at_scale = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").glob("*/*_7*b*.yaml")}
    assert at_scale <= shown
