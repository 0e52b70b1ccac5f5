"""Training engines by name."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

# DeepSpeed tells a console what it does, beginning while it is imported.
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)

ENGINES = {"fsdp": "rl.engines.fsdp:FsdpEngine", "deepspeed": "rl.engines.deepspeed:ZeroEngine"}


def build_engine(name: str, *args: Any, **kwargs: Any) -> Any:
    """The engine called `name`; its module is imported only when it is used."""
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)(*args, **kwargs)
