"""Placement on a real cluster of two, three and four raylets with eight logical GPUs each, and one of a smaller machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MACHINES = [8, 8, 8, 4]
A, B, C, SMALL, LATE = (f"127.0.0.{number}" for number in range(11, 16))
LEARNER, REFERENCE = ({"name": name, "gpus": 1, "together": True} for name in ("learner", "reference"))
ROLLOUT = {"name": "rollout", "gpus": 1}

QUESTIONS: dict[str, dict[str, Any]] = {
    # Four rollouts that share the learner's first machine would cut it in two.
    "two": {"nodes": [8, 8], "roles": [{**ROLLOUT, "count": 4}, {**LEARNER, "count": 8}]},
    "two, learner on both": {
        "nodes": [8, 8],
        "roles": [{**ROLLOUT, "count": 1, "tensor_parallel": 4}, {**LEARNER, "count": 12}],
    },
    "two, pairs": {"nodes": [8, 8], "roles": [{**ROLLOUT, "count": 5, "tensor_parallel": 2}, {**LEARNER, "count": 6}]},
    "three": {
        "nodes": [8, 8, 8],
        "roles": [{**ROLLOUT, "count": 2, "tensor_parallel": 4}, {**LEARNER, "count": 8}, {**REFERENCE, "count": 8}],
    },
    "three of two sizes": {
        "nodes": [8, 8, 4],
        "roles": [{**ROLLOUT, "count": 2, "tensor_parallel": 8}, {**LEARNER, "count": 4}],
    },
    "four": {
        "nodes": MACHINES,
        "roles": [{**ROLLOUT, "count": 3, "tensor_parallel": 4}, {**LEARNER, "count": 16}, {"name": "reward", "count": 1}],
    },
    "too many": {"nodes": MACHINES, "roles": [{**ROLLOUT, "count": 4, "tensor_parallel": 8}]},
    "own GPUs": {
        "nodes": [8, 4],
        "roles": [{**ROLLOUT, "count": 1, "tensor_parallel": 2}, {**LEARNER, "count": 2}],
        "start": True,
    },
    "all GPUs in sight": {
        "nodes": [8],
        "roles": [{**LEARNER, "count": 2}],
        "start": True,
        "env": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "7,6,5,4,3,2,1,0"},
    },
    "colocated": {
        "nodes": [8, 4],
        "roles": [{**ROLLOUT, "count": 3, "tensor_parallel": 4}, {**LEARNER, "count": 12}, {**REFERENCE, "count": 4}],
        "shared": ["rollout", "learner", "reference"],
    },
    "colocated, started": {
        "nodes": [4],
        "roles": [{**ROLLOUT, "count": 1, "tensor_parallel": 2}, {**LEARNER, "count": 2}],
        "shared": ["rollout", "learner"],
        "start": True,
    },
    "a machine that joins": {
        "nodes": MACHINES,
        "roles": [{**ROLLOUT, "count": 4, "tensor_parallel": 8}],
        "late": 8,
    },
}


@pytest.fixture(scope="module")
def answers() -> Iterator[Mapping[str, dict[str, Any]]]:
    directory = tempfile.mkdtemp(prefix="sl-c-", dir="/tmp")  # Ray's sockets live there: a short path
    asked = json.dumps({"machines": MACHINES, "questions": list(QUESTIONS.values())})
    env = {**os.environ, "RAY_TMPDIR": directory, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.cluster.nodes"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, input=asked, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        yield dict(zip(QUESTIONS, lines, strict=True))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(
    ("name", "learner", "rollout"),
    [
        ("two", [A] * 8, [B] * 4),
        ("two, learner on both", [A] * 8 + [B] * 4, [B]),
        ("two, pairs", [A] * 6, [A, B, B, B, B]),
        ("three of two sizes", [SMALL] * 4, [A, B]),
        ("four", [A] * 8 + [B] * 8, [SMALL, C, C]),
    ],
)
def test_the_learner_fills_machines_in_rank_order_and_groups_are_whole(
    name: str, learner: list[str], rollout: list[str], answers: Mapping[str, dict[str, Any]]
) -> None:
    """Which of two equal machines does not matter."""
    assert _renamed(*(machines_of(answers[name], role) for role in ("learner", "rollout"))) == _renamed(learner, rollout)


def machines_of(found: Mapping[str, Any], role: str) -> list[str]:
    return [machine for machine, *_ in found[role]]


def _renamed(*roles: list[str]) -> list[list[int]]:
    """Machines by the order in which they are first used."""
    first: dict[str, int] = {}
    return [[first.setdefault(machine, len(first)) for machine in role] for role in roles]


def test_two_collectives_have_a_machine_each(answers: Mapping[str, dict[str, Any]]) -> None:
    learner, reference, rollout = (machines_of(answers["three"], role) for role in ("learner", "reference", "rollout"))
    assert len(learner) == len(reference) == 8
    assert sorted((*set(learner), *set(reference), *set(rollout))) == [A, B, C]


def test_what_cannot_be_is_refused_with_both_sides(answers: Mapping[str, dict[str, Any]]) -> None:
    refused = answers["too many"]["refused"]
    assert "the roles ask for 32 GPU, the cluster has 28" in refused
    assert f"{SMALL}   32 CPU, 4 GPU" in refused and "rollout      4 × (1 CPU, 8 GPU)" in refused


def test_a_rank_sees_its_own_gpus_and_knows_which_is_its_own(answers: Mapping[str, dict[str, Any]]) -> None:
    found = answers["own GPUs"]
    seen = [gpus.split(",") for _, gpus, _ in (*found["rollout"], *found["learner"])]
    assert [len(gpus) for gpus in seen] == [2, 1, 1]
    assert len({gpu for gpus in seen for gpu in gpus}) == 4
    assert all(own == 0 for _, _, own in found["learner"])


def test_a_rank_that_sees_all_gpus_of_the_machine_picks_its_own(answers: Mapping[str, dict[str, Any]]) -> None:
    """Where an administrator has Ray leave CUDA_VISIBLE_DEVICES alone. Ray's first GPU is the first in it, here 7."""
    learner = answers["all GPUs in sight"]["learner"]
    assert {gpus for _, gpus, _ in learner} == {"7,6,5,4,3,2,1,0"}
    assert sorted(own for _, _, own in learner) == [0, 1]


def test_colocated_roles_have_the_same_gpus(answers: Mapping[str, dict[str, Any]]) -> None:
    """A sampler over four GPUs, and on each of them a learner's rank; the reference on the first four."""
    found = answers["colocated"]
    spans = [(machine, gpus.split(",")) for machine, gpus in found["rollout"]]
    assert [len(gpus) for _, gpus in spans] == [4, 4, 4]
    each = [[machine, gpu] for machine, gpus in spans for gpu in gpus]
    assert found["learner"] == each
    assert found["reference"] == each[:4]
    assert len({tuple(place) for place in each}) == 12


def test_colocated_actors_see_what_their_slots_say(answers: Mapping[str, dict[str, Any]]) -> None:
    found = answers["colocated, started"]
    ((_, sampler, _),) = found["rollout"]
    assert [(gpus, own) for _, gpus, own in found["learner"]] == [(gpu, 0) for gpu in sampler.split(",")]


def test_a_machine_that_joins_is_waited_for(answers: Mapping[str, dict[str, Any]]) -> None:
    assert sorted(machines_of(answers["a machine that joins"], "rollout")) == [A, B, C, LATE]
