"""Which medium joins whom: by where learner ranks and samplers are."""

from __future__ import annotations

import pytest
import torch

from rl.sync.seats import Route, RouteError, Seat, adapter_route, route

HERE, THERE = Seat("a"), Seat("b")
GPU = [Seat("a", f"gpu-{number}") for number in range(4)]
FAR_GPU = [Seat("b", f"gpu-{number}") for number in range(4, 8)]


@pytest.mark.parametrize(
    ("senders", "receivers", "expected"),
    [
        ([HERE], [HERE, HERE], Route("shared_memory", (2,))),
        ([HERE, HERE], [HERE], Route("shared_memory", (1, 0))),
        ([HERE, THERE], [THERE, HERE, THERE], Route("shared_memory", (1, 2))),
        ([HERE], [HERE, THERE], Route("gloo", (2,))),
        (GPU[:2], GPU[2:], Route("nccl", (2, 0))),
        (GPU[:2], FAR_GPU, Route("nccl", (4, 0))),
        (GPU[:2], [GPU[1], GPU[0], GPU[1]], Route("cuda_ipc", (1, 2))),
        # A GPU of its own for one sampler and a shared one for the other: only host memory is between all of them.
        (GPU[:1], [GPU[0], GPU[1]], Route("gloo", (2,))),
        (GPU[:1], [HERE], Route("shared_memory", (1,))),
    ],
)
def test_auto_takes_the_shortest_way(senders: list[Seat], receivers: list[Seat], expected: Route) -> None:
    assert route("auto", senders, receivers) == expected


def test_what_is_asked_for_is_taken() -> None:
    assert route("gloo", [HERE], [HERE]).medium == "gloo"
    assert route("object_store", GPU[:1], GPU[:1]).medium == "object_store"


@pytest.mark.parametrize(
    ("transport", "senders", "receivers", "reason"),
    [
        ("ipc", [HERE], [HERE, THERE], "1 of 2 samplers share no machine"),
        ("ipc", GPU[:2], GPU[1:], "2 of 3 samplers share no GPU"),
        ("nccl", [HERE], [HERE], "not every side computes on a GPU"),
        ("nccl", GPU[:1], GPU[:1], "no two processes on one GPU"),
    ],
)
def test_a_way_that_leads_nowhere_is_refused(
    transport: str, senders: list[Seat], receivers: list[Seat], reason: str
) -> None:
    with pytest.raises(RouteError, match=f"`sync.transport={transport}`: .*{reason}.*use `sync.transport=auto`"):
        route(transport, senders, receivers)


@pytest.mark.parametrize(("transport", "medium"), [("nccl", "gloo"), ("ipc", "shared_memory"), ("auto", "shared_memory")])
def test_adapters_go_through_host_memory(transport: str, medium: str) -> None:
    assert adapter_route(transport, GPU[:1], GPU[:1]).medium == medium


def test_a_process_on_a_cpu_knows_its_machine() -> None:
    seat = Seat.here(torch.device("cpu"))
    assert seat == Seat.here(torch.device("cpu")) and seat.gpu is None and len(seat.machine) > 36
