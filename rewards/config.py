"""RewardConfig: which reward judges a run, and how long a call may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RewardConfig:
    """A reward by name and the processes that run it.

    `name` is registered (locus, focus, iou) or `package.module:function`; `kwargs` go to every call by keyword.
    A call that runs longer than `timeout_s` is cut and becomes a RewardFailure. `workers` are CPU processes.
    """

    name: str = "locus"
    kwargs: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 10.0
    workers: int = 1

    def validate(self) -> None:
        """Raises ValueError, naming the key, for values that cannot work."""
        if not self.timeout_s > 0:
            raise ValueError(f"reward.timeout_s must be positive, got {self.timeout_s}")
        if self.workers < 1:
            raise ValueError(f"reward.workers must be at least 1, got {self.workers}")
