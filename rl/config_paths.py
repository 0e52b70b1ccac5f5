"""Which paths of a recipe a submitted job may not leave relative: they would be looked for in Ray's copy of the checkout.

Ray unpacks the submitted folder on every node into a cache of its own. A run written there goes with the cluster; a dataset
made there is seen by one node alone. What was uploaded with the checkout (a recipe, the tiny model) is on every node.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.job import uploaded_folder

if TYPE_CHECKING:
    from rl.config import Recipe


def relative_paths(recipe: Recipe) -> dict[str, str]:
    """The keys whose paths, in a submitted job, lead into Ray's copy of the checkout and to nothing that came with it."""
    copy = uploaded_folder()
    if copy is None:
        return {}
    written = {"runs": recipe.runs}
    read = {
        "resume": recipe.resume,
        "start_from": recipe.start_from,
        "data.train": recipe.data.train,
        "data.validation": recipe.data.validation,
    }
    missing = {key: path for key, path in read.items() if path is not None and not Path(path).exists()}
    return {key: path for key, path in (written | missing).items() if Path(path).resolve().is_relative_to(copy)}


def explain(found: dict[str, str]) -> str:
    """The refusal, with the remedy."""
    named = ", ".join(f"`{key}={path}`" for key, path in found.items())
    shared = " ".join(f"{key}=/shared/{path}" for key, path in found.items())
    return (
        f"{named} would lie in Ray's copy of the submitted folder, which goes with the cluster and which no other node "
        f"sees; give an absolute path that every node sees, as in {shared}"
    )
