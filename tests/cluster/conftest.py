"""One local Ray for all tests of this folder that need one; it ends with the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.config import ClusterConfig
from cluster.placement import Placement, RoleSpec, place
from cluster.session import Session, ray_session

CPUS = 8


@pytest.fixture(scope="package")
def session() -> Iterator[Session]:
    with ray_session(ClusterConfig(address="local", local_cpus=CPUS, local_object_store_mb=80)) as session:
        yield session


@pytest.fixture
def placement(session: Session) -> Iterator[Placement]:
    """Two slots for `worker`."""
    placement = place([RoleSpec("worker", 2)], timeout_s=60)
    yield placement
    placement.shutdown()
