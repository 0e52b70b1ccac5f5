"""Samples on their way to the actors: put into Ray's object store once, sent as references, fetched where they are used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import ray

from data.sample import Sample


class SampleShipper:
    """A reference a sample, the same for rollout, reference and learner; the last `keep` references stay alive."""

    def __init__(self, keep: int = 4096) -> None:
        self.keep = keep
        self._references: OrderedDict[str, ray.ObjectRef] = OrderedDict()

    def references(self, samples: Sequence[Sample]) -> list[ray.ObjectRef]:
        found = []
        for sample in samples:
            if sample.id not in self._references:
                self._references[sample.id] = ray.put(sample)
            self._references.move_to_end(sample.id)
            found.append(self._references[sample.id])
        while len(self._references) > max(self.keep, len(samples)):
            self._references.popitem(last=False)
        return found


def fetch(references: Sequence[ray.ObjectRef]) -> list[Sample]:
    """The samples behind references, in an actor."""
    return list(ray.get(list(references)))
