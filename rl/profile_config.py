"""ProfileConfig: which steps of a run are recorded as a Chrome trace. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass
class ProfileConfig:
    """`profile=3-5` on the command line is short for `profile.steps=3-5`.

    `steps`: a step, a range or a list of both, "3-5,40", as the progress line counts them, in every stage that gets so far;
    null: none. Driver, actors and engines are then recorded on one time axis into `<run>/trace.json`, for
    https://ui.perfetto.dev, and one step is drawn in the report. A stretch of steps is written when it is over: one that
    ends with an error leaves no record. `torch`: with the events of torch's profiler, which slow the recorded steps down.
    """

    steps: str | None = None
    torch: bool = False

    def wanted(self) -> frozenset[int]:
        """The steps to be recorded. Raises ValueError."""
        if self.steps is None:
            return frozenset()
        text = self.steps.replace(" ", "")
        if not RANGES.fullmatch(text):
            raise ValueError(f"profile.steps is `{self.steps}`; a step, a range or a list of both: 3, 3-5, 3-5,40")
        found: set[int] = set()
        for part in text.split(","):
            first, last = int(part.partition("-")[0]), int(part.rpartition("-")[2])
            if not 1 <= first <= last:
                raise ValueError(f"profile.steps has `{part}`; steps count from 1, and a range goes upwards, as 3-5")
            found.update(range(first, last + 1))
        return frozenset(found)

    def validate(self, planned: Mapping[str, int]) -> None:
        """Raises ValueError, naming the key, for steps that no stage of the run gets to; `planned`: steps by stage."""
        wanted, longest = self.wanted(), max(planned.values(), default=0)
        if self.torch and not wanted:
            raise ValueError(
                "profile.torch records nothing without profile.steps; set profile.steps=3, or profile.torch=false"
            )
        if wanted and min(wanted) > longest:
            raise ValueError(f"profile.steps is `{self.steps}`, and the run has {longest} steps; choose among them")
