"""ActorGroup: the ranks of one role as one object. Starts them together, calls them together, names the one that failed.

group = ActorGroup.start("learner", Learner, placement["learner"], kwargs_each=[{"rank": 0}, {"rank": 1}], timeout_s=900)
group.call_all("load", path)                 → [result of rank 0, result of rank 1]
group.call_each("step", [(shard0,), (shard1,)])
pending = group.submit_all("generate", …)    → references, while the driver does something else
group.collect("generate", pending)
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from cluster.guardian import guard_this_process
from cluster.logs import log_tail
from cluster.placement import Slot

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class ActorError(RuntimeError):
    """A rank of a role failed; `role`, `rank` and `method` say where, `__cause__` is what Ray reported."""

    def __init__(self, role: str, rank: int, method: str, detail: str) -> None:
        super().__init__(f"{role} rank {rank} failed in {method}: {detail}")
        self.role, self.rank, self.method = role, rank, method


class ActorGroup:
    """Actors of a plain class, one a slot, in rank order."""

    def __init__(self, role: str, actors: Sequence[ActorHandle[Any]]) -> None:
        self.role = role
        self.actors = list(actors)

    @classmethod
    def start(
        cls,
        role: str,
        actor_class: type,
        slots: Sequence[Slot],
        *,
        kwargs_each: Sequence[Mapping[str, Any]] | None = None,
        env_vars: Mapping[str, str] | None = None,
        timeout_s: float,
        max_concurrency: int | None = None,
    ) -> ActorGroup:
        """Start `actor_class(**kwargs)` in every slot at once and wait until all constructors have returned.

        `kwargs_each`: one mapping a rank; without it, no arguments. `env_vars`, and those of a slot of its own, are set
        before the process imports anything. What an actor starts after its constructor ends with it, however it ends.
        Raises ActorError for the first constructor that fails or is not done after `timeout_s`; no actor is left then.
        """
        kwargs_each = [{} for _ in slots] if kwargs_each is None else kwargs_each
        if len(kwargs_each) != len(slots):
            raise ValueError(f"{role}: {len(slots)} slots need as many kwargs, got {len(kwargs_each)}")
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
        if max_concurrency is not None:
            options["max_concurrency"] = max_concurrency
        remote_class: Any = ray.remote(actor_class)
        group = cls(role, [])
        try:
            for slot, kwargs in zip(slots, kwargs_each, strict=True):
                resources = {"num_cpus": slot.resources.get("CPU", 0), "num_gpus": slot.resources.get("GPU", 0)}
                where = {"scheduling_strategy": slot.strategy, "runtime_env": {"env_vars": {**(env_vars or {}), **slot.env}}}
                actor = remote_class.options(**where, **resources, **options).remote(**kwargs)
                group.actors.append(actor)
            group.collect("__init__", [actor.__ray_ready__.remote() for actor in group.actors], timeout_s=timeout_s)
            group.run_all(guard_this_process)
        except BaseException:
            group.shutdown()
            raise
        return group

    def __len__(self) -> int:
        return len(self.actors)

    def submit_all(self, method: str, *args: Any, **kwargs: Any) -> list[ray.ObjectRef[Any]]:
        """Call `method` with the same arguments on every rank, without waiting. Large arguments: ray.put them once."""
        return [getattr(actor, method).remote(*args, **kwargs) for actor in self.actors]

    def submit_each(self, method: str, args_each: Sequence[Sequence[Any]]) -> list[ray.ObjectRef[Any]]:
        """Call `method` with rank i's own arguments, without waiting."""
        if len(args_each) != len(self.actors):
            raise ValueError(f"{self.role}: {len(self.actors)} ranks need as many argument lists, got {len(args_each)}")
        return [getattr(actor, method).remote(*args) for actor, args in zip(self.actors, args_each, strict=True)]

    def submit_to(self, rank: int, method: str, *args: Any) -> ray.ObjectRef[Any]:
        """Call `method` on one rank, without waiting."""
        reference: ray.ObjectRef[Any] = getattr(self.actors[rank], method).remote(*args)
        return reference

    def call_all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """The results of submit_all, in rank order. Raises ActorError."""
        return self.collect(method, self.submit_all(method, *args, **kwargs))

    def call_each(self, method: str, args_each: Sequence[Sequence[Any]]) -> list[Any]:
        """The results of submit_each, in rank order. Raises ActorError."""
        return self.collect(method, self.submit_each(method, args_each))

    def run_all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)` inside every rank's process; for questions about the process rather than the object."""
        references = [actor.__ray_call__.remote(_without_self, function, args) for actor in self.actors]
        return self.collect(function.__name__, references)

    def collect(self, method: str, references: Sequence[ray.ObjectRef[Any]], *, timeout_s: float | None = None) -> list[Any]:
        """The results of one reference a rank, in rank order.

        Fails on the first rank that fails, whatever the others are doing: a collective that lost a member never returns.
        Raises ActorError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        results: dict[int, Any] = {}
        waiting = {reference: rank for rank, reference in enumerate(references)}
        while waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = self.first_done(method, waiting, left)
            if not done:
                rank = min(waiting.values())
                raise ActorError(self.role, rank, method, f"not done after {timeout_s:g} s{self._log_of(rank)}")
            for reference, result in done.items():
                results[waiting.pop(reference)] = result
        return [results[rank] for rank in range(len(references))]

    def first_done(
        self, method: str, waiting: Mapping[ray.ObjectRef[Any], int], timeout_s: float | None
    ) -> dict[ray.ObjectRef[Any], Any]:
        """The results that are there once one is, of references with their ranks; none after `timeout_s`.

        Raises ActorError for a rank that failed.
        """
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=timeout_s) if waiting else ([], [])
        return {reference: self._result(method, reference, waiting[reference]) for reference in done}

    def _result(self, method: str, reference: ray.ObjectRef[Any], rank: int) -> Any:
        try:
            return ray.get(reference)
        except RayError as error:
            raise ActorError(self.role, rank, method, self._describe(error, rank)) from error

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port on rank 0's node for torch.distributed: MASTER_ADDR and MASTER_PORT."""
        addresses: list[tuple[str, int]] = ActorGroup(self.role, self.actors[:1]).run_all(_free_address)
        return addresses[0]

    def shutdown(self) -> None:
        """Kill every actor; returns without waiting for their processes."""
        while self.actors:
            ray.kill(self.actors.pop(), no_restart=True)

    def _log_of(self, rank: int) -> str:
        tail = log_tail(self.actors[rank])
        return f"\nThe end of its log:\n{tail}" if tail else ""

    def _describe(self, error: RayError, rank: int) -> str:
        words = _ANSI.sub("", str(error)).strip()
        if isinstance(error, RayTaskError):
            return f"{type(error.cause).__name__}: {error.cause}\n{words}"
        if isinstance(error, ActorDiedError) and "creation task" in words:
            return f"{words.splitlines()[-1]}\n{words}"
        if isinstance(error, RayActorError):
            return f"its process died; if its log does not say why, `dmesg` may (out of memory).{self._log_of(rank)}"
        return f"{type(error).__name__}: {words}{self._log_of(rank)}"


def _without_self(_actor: object, function: Callable[..., Any], args: Sequence[Any]) -> Any:
    return function(*args)


def _free_address() -> tuple[str, int]:
    """This node's address as Ray knows it, and a port that is free on it now."""
    address: str = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])
