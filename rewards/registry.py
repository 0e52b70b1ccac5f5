"""Finds a reward by name: a registered one, or anybody's as `package.module:function`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rewards import focus, iou, locus
from rewards.score import Score

# (sample, completion, **kwargs) -> Score | float; see rewards.score.
RewardFunction = Callable[..., Score | float]

REWARDS: dict[str, RewardFunction] = {
    "focus": focus.reward,
    "iou": iou.reward,
    "locus": locus.reward,
}


class RewardLookupError(ValueError):
    """A reward's name that leads to no usable function, and what to write instead."""


def resolve(name: str, kwargs: Mapping[str, Any] | None = None) -> RewardFunction:
    """The reward called `name`, checked to accept `(sample, completion, **kwargs)`.

    Raises RewardLookupError for an unknown name, a missing module or function, a thing that cannot be called, or a
    signature that does not take the call.
    """
    function = _import(name) if ":" in name else _registered(name)
    _check_signature(name, function, kwargs or {})
    return function


def _registered(name: str) -> RewardFunction:
    if name in REWARDS:
        return REWARDS[name]
    near = difflib.get_close_matches(name, REWARDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RewardLookupError(
        f"no reward is called {name!r}; {hint}known: {', '.join(sorted(REWARDS))}; your own: package.module:function"
    )


def _import(path: str) -> RewardFunction:
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise RewardLookupError(f"a reward's path is package.module:function, got {path!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise RewardLookupError(f"reward {path!r}: its module needs {error.name!r}, which is not installed") from error
        raise RewardLookupError(
            f"reward {path!r}: no module {error.name!r} on the path; run from the folder that holds it, or install it"
        ) from error
    except Exception as error:  # A user's module may raise anything at import.
        raise RewardLookupError(f"reward {path!r}: its module fails at import: {type(error).__name__}: {error}") from error
    if not hasattr(module, function_name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function_name, public, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RewardLookupError(f"reward {path!r}: module {module_name!r} has no {function_name!r}{hint}")
    function: RewardFunction = getattr(module, function_name)
    return function


def _check_signature(name: str, function: RewardFunction, kwargs: Mapping[str, Any]) -> None:
    if not callable(function):
        raise RewardLookupError(f"reward {name!r} is a {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise RewardLookupError(f"reward {name!r} is async; a reward is a plain function, a worker process runs it")
    signature = inspect.signature(function)
    try:
        signature.bind(None, None, **kwargs)
    except TypeError as error:
        raise RewardLookupError(
            f"reward {name!r} has the signature {signature} and cannot be called as reward(sample, completion"
            f"{''.join(f', {key}=…' for key in kwargs)}): {error}"
        ) from error
