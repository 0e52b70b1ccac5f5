"""Samples on their way to the actors: put into Ray's object store once, sent as references, fetched where they are used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import ray

from data.sample import Sample


class SampleShipper:
    """A reference a sample, the same for rollout, reference and learner; the last `keep` references stay alive.

    Ids are unique within a dataset only, and a run has two: a sample is known by its id and its whole content.
    """

    def __init__(self, keep: int = 4096) -> None:
        self.keep = keep
        self._shipped: OrderedDict[str, tuple[Sample, ray.ObjectRef]] = OrderedDict()

    def references(self, samples: Sequence[Sample]) -> list[ray.ObjectRef]:
        references = [self._reference(sample) for sample in samples]
        while len(self._shipped) > self.keep:
            self._shipped.popitem(last=False)
        return references

    def _reference(self, sample: Sample) -> ray.ObjectRef:
        known = self._shipped.get(sample.id)
        if known is None or known[0] != sample:
            known = (sample, ray.put(sample))
            self._shipped[sample.id] = known
        self._shipped.move_to_end(sample.id)
        return known[1]


def fetch(references: Sequence[ray.ObjectRef]) -> list[Sample]:
    """The samples behind references, in an actor."""
    return list(ray.get(list(references)))
