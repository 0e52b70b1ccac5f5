"""What `python -m rl.evaluate` takes beside the recipe's own keys. Imports neither torch nor ray.

checkpoint=PATH        an exported model folder, a run's folder (its export/), or a checkpoint folder of a run;
                       absent: the recipe's model itself
shots=1,2,4            how many supports a query gets (FOCUS); absent: 1, 2 and 4, as far as the dataset has them
datasets=NAME:DIR,…    dataset folders and what to call them; absent: data.validation, by the source of its samples
split=validation       the split of those folders
samples=N              the first N samples of every dataset and shot count; absent: all
backend=vllm           vllm: the recipe's rollout actors on Ray | hf: Hugging Face, in this process
sampling=greedy        greedy | sampled: at validation.temperature and validation.top_p
paper=KEY              whose published figures stand beside; absent: by the model's architecture | none
pictures=12            how many samples are drawn
out=DIR                absent: runs/<recipe name>/evaluate/<time>
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rl.config import ConfigError, Recipe
from rl.paper_results import PAPER_KEYS

# Context managers of (recipe, model folder, most images of a prompt) that yield an rl.evaluation.Answerer.
BACKENDS = {"vllm": "rl.vllm_rollouts:open_vllm", "hf": "rl.hf_rollouts:open_hf"}
SAMPLINGS = ("greedy", "sampled")


@dataclass(frozen=True)
class EvaluationOptions:
    """The keys of this module's docstring, read."""

    checkpoint: str | None = None
    shots: tuple[int, ...] | None = None
    datasets: Mapping[str, str] = field(default_factory=dict)
    split: str = "validation"
    samples: int | None = None
    backend: str = "vllm"
    sampling: str = "greedy"
    paper: str | None = None
    pictures: int = 12
    out: str | None = None


def parse_options(arguments: Sequence[str]) -> tuple[EvaluationOptions, list[str]]:
    """The evaluation's own options, and the overrides of the recipe that remain. Raises ConfigError."""
    own: dict[str, Any] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"an option is key=value, got `{argument}`")
        if key in _READERS:
            own[key] = _READERS[key](key, value)
        else:
            _check_section(key)
            overrides.append(argument)
    options = EvaluationOptions(**own)
    if options.backend == "hf" and options.sampling != "greedy":
        raise ConfigError("`backend=hf` answers greedily only; use backend=vllm for sampling=sampled")
    return options, overrides


def _check_section(key: str) -> None:
    """Refuse a key whose first word neither the evaluation nor the recipe has; the recipe checks the rest of it."""
    section = key.partition(".")[0]
    sections = [item.name for item in fields(Recipe)]
    if section in sections:
        return
    near = difflib.get_close_matches(section, [*_READERS, *sections], n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"options are {', '.join(_READERS)}, and the recipe's own keys"
    raise ConfigError(f"there is no key `{key}`; {hint}")


def _text(key: str, value: str) -> str:
    if not value:
        raise ConfigError(f"`{key}=` has no value; leave it out for the default")
    return value


def _whole(least: int) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        if not value.isdecimal() or int(value) < least:
            raise ConfigError(f"`{key}` is a whole number from {least}, got `{value}`")
        return int(value)

    return read


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ConfigError(f"`{key}` is `{value}`; {hint}one of {', '.join(allowed)}")
        return value

    return read


def _shots(key: str, value: str) -> tuple[int, ...]:
    counts = tuple(_whole(1)(key, item.strip()) for item in value.split(","))
    if len(set(counts)) != len(counts):
        raise ConfigError(f"`{key}` names a count twice: `{value}`")
    return tuple(sorted(counts))


def _datasets(key: str, value: str) -> dict[str, str]:
    """`TAO:runs/data/tao,GOT:runs/data/got`."""
    named: dict[str, str] = {}
    for item in value.split(","):
        name, _, folder = (part.strip() for part in item.partition(":"))
        if not name or not folder:
            raise ConfigError(f"`{key}` is NAME:DIR,NAME:DIR,…; `{item}` is not NAME:DIR")
        if name in named:
            raise ConfigError(f"`{key}` names {name} twice")
        named[name] = folder
    return named


_READERS: dict[str, Callable[[str, str], Any]] = {
    "checkpoint": _text,
    "shots": _shots,
    "datasets": _datasets,
    "split": _text,
    "samples": _whole(1),
    "backend": _one_of(*BACKENDS),
    "sampling": _one_of(*SAMPLINGS),
    "paper": _one_of(*PAPER_KEYS, "none"),
    "pictures": _whole(0),
    "out": _text,
}
