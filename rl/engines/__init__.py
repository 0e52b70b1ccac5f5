"""Training engines by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

ENGINES = {"fsdp": "rl.engines.fsdp:FsdpEngine"}


def build_engine(name: str, *args: Any, **kwargs: Any) -> Any:
    """The engine called `name`; its module is imported only when it is used."""
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)(*args, **kwargs)
