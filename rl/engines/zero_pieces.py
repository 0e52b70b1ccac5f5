"""What one rank holds of every parameter under ZeRO: where the pieces lie in DeepSpeed's flat tensors, and moving those.

ZeRO-2   every parameter whole in the compute dtype; of the float32 masters, one slice of all of them end to end
ZeRO-3   an even slice of every parameter in the compute dtype; the masters of those slices end to end, group by group
Frozen parameters have no master: under ZeRO-2 each rank answers for an even slice of them, under ZeRO-3 for its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from torch import Tensor, nn

from rl.engines.base import Rendezvous
from rl.engines.shards import Extent

HOST = torch.device("cpu")
MOMENTS = ("exp_avg", "exp_avg_sq")
Held = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class Piece:
    """A rank's piece of a parameter: `values` is a view of it. `flat`, `offset`: its master's place, None when frozen."""

    extent: Extent
    values: Tensor
    flat: Tensor | None = None
    offset: int = 0


class Zero(Protocol):
    """A stage of ZeRO around a policy. `optimizer` is None for a frozen one."""

    optimizer: torch.optim.Optimizer | None

    def pieces(self) -> Iterator[Piece]:
        """Every held parameter of which this rank has something, in the policy's order."""

    def refresh(self) -> None:
        """Parameters follow the pieces that were written to. Collective."""

    def offload(self) -> None:
        """Everything to host memory."""

    def onload(self) -> None:
        """Back to where it was."""


class Zero2:
    """Around `engine`, a DeepSpeedEngine of stage 2; None for a frozen policy, which every rank holds whole.

    `held` are the parameters a checkpoint has, by name.
    """

    def __init__(self, policy: nn.Module, held: Held, engine: Any | None, where: Rendezvous, device: torch.device) -> None:
        self.policy, self.held, self.engine, self.where, self.device = policy, held, engine, where, device
        self.optimizer = None if engine is None else engine.optimizer.optimizer

    def pieces(self) -> Iterator[Piece]:
        for name, parameter in self.held.items():
            if parameter.requires_grad:
                yield from self._trained(name, parameter)
            else:
                extent = self._answered(name, parameter, self.where.rank)
                yield Piece(extent, parameter.data.view(-1).narrow(0, extent.start, extent.length))

    def _trained(self, name: str, parameter: nn.Parameter) -> Iterator[Piece]:
        assert self.engine is not None
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:  # all of it lies in other ranks' slices
            return
        flat = self.engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        inside, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        extent = Extent(name, inside.start, inside.numel, parameter.numel())
        yield Piece(extent, flat.data.narrow(0, here.start, here.numel), flat, here.start)

    def _answered(self, name: str, parameter: nn.Parameter, rank: int) -> Extent:
        numel = parameter.numel()
        each = -(-numel // self.where.world_size)
        start = min(rank * each, numel)
        return Extent(name, start, min(each, numel - start), numel)

    def refresh(self) -> None:
        for name, parameter in self.held.items():
            if not parameter.requires_grad:
                for rank in range(self.where.world_size):
                    extent = self._answered(name, parameter, rank)
                    dist.broadcast(parameter.data.view(-1).narrow(0, extent.start, extent.length), src=rank)
        if self.engine is not None:
            self.engine.optimizer.update_lp_params()

    def offload(self) -> None:
        if self.engine is not None:
            self.engine.offload_states(pin_memory=False)
        self._move_frozen(HOST)

    def onload(self) -> None:
        self._move_frozen(self.device)
        if self.engine is not None:
            self.engine.reload_states()

    def _move_frozen(self, device: torch.device) -> None:
        for parameter in self.policy.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(device)


class Zero3:
    """Around `engine`, a DeepSpeedEngine of stage 3; without an optimizer it only gathers a frozen policy.

    `held` are the parameters a checkpoint has, by name; `on_host` says what lives in host memory anyway (learner.offload).
    """

    def __init__(
        self, policy: nn.Module, held: Held, engine: Any, where: Rendezvous, device: torch.device, on_host: str | None
    ) -> None:
        self.policy, self.held, self.engine, self.rank, self.device = policy, held, engine, where.rank, device
        self.zero, self.on_host = engine.optimizer, on_host
        self.optimizer = None if isinstance(self.zero, DeepSpeedZeRoOffload) else self.zero.optimizer

    def pieces(self) -> Iterator[Piece]:
        for name, parameter in self.held.items():
            each, numel = parameter.partition_numel(), parameter.ds_numel  # type: ignore[operator,attr-defined]
            start = min(self.rank * each, numel)
            extent = Extent(name, start, min(each, numel - start), numel)
            if not parameter.requires_grad:
                yield Piece(extent, parameter.ds_tensor.data.narrow(0, 0, extent.length))  # type: ignore[attr-defined]
                continue
            group, offset, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
            flat = self.zero.fp32_partitioned_groups_flat[group]
            yield Piece(extent, flat.data.narrow(0, offset, extent.length), flat, offset)

    def refresh(self) -> None:
        self._release()
        if self.optimizer is not None:
            for group in range(len(self.zero.fp16_groups)):
                self.zero._reassign_or_swap_out_partitioned_parameters(group)

    def _release(self) -> None:
        """Let go of whole parameters: small ones stay gathered from step to step, and would stay what they were."""
        (self.zero if self.optimizer is None else self.zero.parameter_offload).partition_all_parameters()

    def offload(self) -> None:
        self._release()
        self._move(HOST)
        if self.optimizer is not None and self.on_host != "all":
            self.engine.offload_states(include=[States.lp_grads, States.contiguous_grad_buffer], pin_memory=False)

    def onload(self) -> None:
        self._move(self.device)
        if self.optimizer is not None and self.on_host != "all":
            self.engine.reload_states()

    def _move(self, device: torch.device) -> None:
        if self.on_host != "all":
            self._move_slices(device)
        if self.optimizer is not None and self.on_host is None:
            self._move_optimizer(self.optimizer, device)

    def _move_slices(self, device: torch.device) -> None:
        for parameter in self.policy.parameters():
            if self.optimizer is None or not parameter.requires_grad:
                parameter.ds_tensor.data = parameter.ds_tensor.data.to(device)  # type: ignore[attr-defined]
        if self.optimizer is None:
            return
        self.zero.lp_param_buffer.data = self.zero.lp_param_buffer.data.to(device)
        self.zero.fp16_partitioned_groups_flat.clear()
        self.zero._set_fp16_partitioned_groups_flat()
        for group in range(len(self.zero.fp16_groups)):
            self.zero._unflatten_partitioned_parameters(group)

    def _move_optimizer(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        for flat in self.zero.fp32_partitioned_groups_flat:
            flat.data = flat.data.to(device)
        for state in optimizer.state.values():
            state |= {kind: state[kind].to(device) for kind in MOMENTS}
