"""Samples cross Ray's object store once, and never in another's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cluster.config import ClusterConfig
from cluster.session import ray_session
from rl.actors.samples import SampleShipper, fetch, image_bytes
from tests.rl.learner_case import case_samples
from tests.rl.pictures import png


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(ClusterConfig(address="local", local_object_store_mb=100)):
        yield


def test_a_sample_is_put_once_and_arrives_whole() -> None:
    shipper, samples = SampleShipper(), case_samples(3)
    first, again = shipper.references(samples), shipper.references(case_samples(3))
    assert first == again
    assert fetch(first) == samples


def test_samples_of_two_datasets_that_share_an_id_do_not_take_each_others_place() -> None:
    shipper, (held_out,) = SampleShipper(), case_samples(1)
    training = replace(held_out, images=(png(np.random.default_rng(9), 112, 112), held_out.images[1]))
    assert held_out.id == training.id
    shipper.references([held_out])
    assert fetch(shipper.references([training, held_out, training])) == [training, held_out, training]


def test_old_references_are_let_go() -> None:
    shipper, samples = SampleShipper(keep=2), case_samples(4)
    assert fetch(shipper.references(samples)) == samples
    assert len(shipper._shipped) == 2


def test_old_references_are_let_go_by_their_bytes_too() -> None:
    samples = case_samples(4)
    weights = [image_bytes(sample) for sample in samples]
    shipper = SampleShipper(keep_bytes=weights[2] + weights[3])
    first = shipper.references(samples)
    again = shipper.references(samples[2:])
    assert again == first[2:] and shipper._bytes == weights[2] + weights[3]
    other = replace(samples[3], images=(samples[0].images[0], samples[3].images[1]))
    shipper.references([other])
    assert shipper._bytes == sum(image_bytes(sample) for sample, _ in shipper._shipped.values()) <= shipper.keep_bytes
