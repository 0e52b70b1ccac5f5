"""Samples on their way to the actors: put into Ray's object store once, sent as references, fetched where they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import ray

from data.sample import Sample

# A step of 512 prompts at the papers' sizes; held here and in the object store.
KEEP_BYTES = 1 << 30


class SampleShipper:
    """A reference a sample, the same for rollout, reference and learner.

    The last `keep` references stay alive, or as many of them as have `keep_bytes` of images. Ids are unique within a
    dataset only, and a run has two: a sample is known by its id and its whole content. Threads may ship side by side.
    """

    def __init__(self, keep: int = 4096, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep, self.keep_bytes = keep, keep_bytes
        self._shipped: OrderedDict[str, tuple[Sample, ray.ObjectRef]] = OrderedDict()
        self._bytes = 0
        self._shipping = threading.Lock()

    def references(self, samples: Sequence[Sample]) -> list[ray.ObjectRef]:
        with self._shipping:
            references = [self._reference(sample) for sample in samples]
            while len(self._shipped) > self.keep or self._bytes > self.keep_bytes:
                _, (oldest, _) = self._shipped.popitem(last=False)
                self._bytes -= image_bytes(oldest)
            return references

    def _reference(self, sample: Sample) -> ray.ObjectRef:
        known = self._shipped.get(sample.id)
        if known is None or known[0] != sample:
            self._bytes += image_bytes(sample) - (0 if known is None else image_bytes(known[0]))
            known = (sample, ray.put(sample))
            self._shipped[sample.id] = known
        self._shipped.move_to_end(sample.id)
        return known[1]


def image_bytes(sample: Sample) -> int:
    """Encoded bytes that travel with a sample."""
    return sum(len(image.encoded) for image in sample.images if image.encoded is not None)


def fetch(references: Sequence[ray.ObjectRef]) -> list[Sample]:
    """The samples behind references, in an actor."""
    return list(ray.get(list(references)))
