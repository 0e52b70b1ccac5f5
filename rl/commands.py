"""What every command does first: check versions, read its configuration, and turn a mistake into a message and a status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from cluster.versions import VersionError, check_versions
from rl.config import ConfigError

Configuration = TypeVar("Configuration")


def configured(load: Callable[[], Configuration]) -> Configuration | int:
    """What `load` reads; or the exit status, after its message: 1 for versions, 2 for a configuration that cannot run."""
    try:
        check_versions()
        return load()
    except VersionError as error:
        print(f"versions: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"config: {error}", file=sys.stderr)
        return 2
