"""Real photographs that ship inside scikit-image and scikit-learn, split into those for training and those for validation.

They are read from the installed packages: nothing is downloaded, and neither package is imported.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image

Split = Literal["train", "val"]

_SKIMAGE = ("skimage", "data")
_SKLEARN = ("sklearn", "datasets/images")

# Disjoint on purpose: a validation scene shows objects on a photograph that training has never seen.
PHOTOGRAPHS: dict[Split, tuple[tuple[tuple[str, str], str], ...]] = {
    "train": (
        (_SKIMAGE, "astronaut.png"),
        (_SKIMAGE, "coffee.png"),
        (_SKLEARN, "china.jpg"),
        (_SKIMAGE, "motorcycle_left.png"),
        (_SKIMAGE, "brick.png"),
        (_SKIMAGE, "grass.png"),
        (_SKIMAGE, "hubble_deep_field.jpg"),
        (_SKIMAGE, "camera.png"),
    ),
    "val": (
        (_SKIMAGE, "chelsea.png"),
        (_SKLEARN, "flower.jpg"),
        (_SKIMAGE, "rocket.jpg"),
        (_SKIMAGE, "gravel.png"),
    ),
}


def _package_file(package: str, folder: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    path = Path(locations[0], folder, name) if locations else None
    if path is None or not path.is_file():
        raise ValueError(f"the photograph {name} of {package} is not installed; pip install 'sightline[demo]'")
    return path


@cache
def load_photographs(split: Split) -> tuple[Image.Image, ...]:
    """The split's photographs, decoded to RGB; kept in memory, about 6 MB a split. Raises ValueError if one is missing."""
    loaded = []
    for (package, folder), name in PHOTOGRAPHS[split]:
        with Image.open(_package_file(package, folder, name)) as image:
            loaded.append(image.convert("RGB"))
    return tuple(loaded)
