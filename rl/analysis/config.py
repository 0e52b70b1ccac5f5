"""What `python -m rl.analyze` is asked: its own options, apart from the recipe's overrides. No torch, no ray."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config import ConfigError, Recipe

ANSWERS = ("own", "truth")
CATEGORIES = ("out", "in", "both")
IMAGES = ("query", "all")
NORMALIZATIONS = ("peak", "minmax")


@dataclass
class AnalysisConfig:
    """The options, with what `python -m rl.analyze --help` says of them.

    `answer`: the tokens whose attention is read, the model's own greedy answer or the true one. `category`: the prompt
    without the category's name, with it, or both beside each other. `layers`, `each_layer`, `images`, `normalize`, `shared`
    and `peak` say how heat-maps are drawn.
    """

    checkpoint: str | None = None
    out: str | None = None
    samples: int | None = 32
    answer: str = "own"
    category: str = "out"
    heatmaps: int = 8
    layers: list[int] | None = None
    each_layer: bool = False
    images: str = "query"
    normalize: str = "peak"
    shared: bool = False
    peak: float | None = None


def parse_options(items: Sequence[str]) -> tuple[AnalysisConfig, list[str]]:
    """The options among `key=value` items, and the items that are left: overrides of the recipe. Raises ConfigError."""
    names = [item.name for item in fields(AnalysisConfig)]
    sections = [item.name for item in fields(Recipe)]
    own, overrides = [], []
    for item in items:
        key = item.partition("=")[0]
        if key in names and "=" in item:
            own.append(item)
        elif key.partition(".")[0] in sections:
            overrides.append(item)
        else:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"options are {', '.join(names)}"
            raise ConfigError(f"there is no option `{item}`; {hint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(AnalysisConfig), OmegaConf.from_dotlist(own))
    except OmegaConfBaseException as error:
        raise ConfigError(f"`{error.full_key}`: {str(error.msg or error).splitlines()[0]}") from error
    config = OmegaConf.to_object(merged)
    assert isinstance(config, AnalysisConfig)
    check_options(config)
    return config, overrides


def check_options(config: AnalysisConfig) -> None:
    """Refuse values that mean nothing."""
    for key, value, allowed in (
        ("answer", config.answer, ANSWERS),
        ("category", config.category, CATEGORIES),
        ("images", config.images, IMAGES),
        ("normalize", config.normalize, NORMALIZATIONS),
    ):
        if value not in allowed:
            raise ConfigError(f"`{key}` is `{value}`; one of {', '.join(allowed)}")
    if config.samples is not None and config.samples < 1:
        raise ConfigError(f"`samples` is {config.samples}; at least 1, or null for all")
    if config.heatmaps < 0:
        raise ConfigError(f"`heatmaps` is {config.heatmaps}; 0 draws none")
    if config.layers is not None and not config.layers:
        raise ConfigError("`layers` is empty; leave it out for all layers")
    if config.peak is not None and not (config.peak > 0 and config.normalize == "peak"):
        raise ConfigError(f"`peak` is {config.peak}: a positive attention to divide by, and only with normalize=peak")
