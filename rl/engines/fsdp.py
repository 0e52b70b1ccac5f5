"""The FSDP2 engine: `fully_shard` over every transformer block, gloo on CPU, NCCL on GPU.

Rank 0 reads the weights, the others build on `meta` and receive their shards, so host memory holds the model once a
machine. Parameters and optimizer state stay in float32; `dtype` is what blocks compute in. With `learner.offload=all` the
shards, their gradients and the optimizer live in host memory, the step runs there, and a block comes to the device when
it is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rl.config import LearnerConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.engines.process_group import DTYPES, Reductions, blocks, free_cache, join
from rl.policy import Policy, build_model
from rl.quantization import full_precision
from rl.trace import spanned

HOST = torch.device("cpu")


def _own_parameters(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a sharded module that no sharded module inside it holds: they are gathered together."""
    for name, parameter in module.named_parameters(prefix, recurse=False):
        yield name, parameter
    for name, child in module.named_children():
        if not isinstance(child, FSDPModule):
            yield from _own_parameters(child, f"{prefix}.{name}".lstrip("."))


def _read(state: dict[str, Any], directory: Path) -> None:
    """Fill `state` from shards. Raises ValueError where they are not those of this policy, or not whole."""
    if not (directory / ".metadata").exists():
        raise ValueError(
            f"{directory} holds no shards of FSDP2; another engine's are read by that engine (learner.engine=deepspeed), or "
            "give the run's export as model.path"
        )
    try:
        dcp.load(state, checkpoint_id=directory)
    except CheckpointException as error:  # no Exception, and its text is every rank's traceback
        _, (cause, _) = next(iter(error.failures.items()))
        raise ValueError(
            f"{directory} does not hold this policy ({type(cause).__name__}: {cause}); model.path and model.lora "
            "must be those it was saved with"
        ) from None


class FsdpEngine(Reductions):
    """See `rl.engines.base.Engine`. Without an `optimizer` config the policy is frozen (a reference)."""

    def __init__(
        self,
        model: ModelConfig,
        learner: LearnerConfig,
        optimizer: OptimizerConfig | None,
        banned: tuple[int, ...],
        where: Rendezvous,
    ) -> None:
        self.where = where
        self.device, self._owns_group = join(where)
        dtype = DTYPES[learner.dtype]
        self.home, self._offload_policy = self.device, OffloadPolicy()  # `home`: where shards and optimizer live
        if learner.offload:
            self.home, self._offload_policy = HOST, CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        self._lora = model.lora.rank > 0
        built = build_model(model, torch.float32, dtype, self.device, with_weights=where.rank == 0)
        policy = Policy(built, banned)
        if optimizer is None:
            policy.requires_grad_(False)
        elif learner.activation_checkpointing:
            policy.base.gradient_checkpointing_enable({"use_reentrant": False})
        if model.quantization:
            self.policy = self._shard_adapter(policy, dtype)
        else:
            weights = policy.state_dict() if where.rank == 0 else {}
            self.policy = self._shard(policy, dtype)
            self._receive(weights, dict(policy.named_buffers()))
        self.max_grad_norm = optimizer.max_grad_norm if optimizer else 0.0
        self.optimizer = self._build_optimizer(optimizer) if optimizer else None

    def _shard(self, policy: Policy, dtype: torch.dtype, whole: set[nn.Parameter] | None = None) -> Policy:
        """Shard block by block; parameters in `whole` stay as they are on every rank, and blocks of nothing else too."""
        mesh = init_device_mesh(self.device.type, (self.where.world_size,))
        options = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
            "offload_policy": self._offload_policy,
            "ignored_params": whole,
        }
        for block in blocks(policy.base):
            if whole is None or any(parameter not in whole for parameter in block.parameters()):
                fully_shard(block, **options)
        fully_shard(policy, reshard_after_forward=False, **options)
        return policy

    def _shard_adapter(self, policy: Policy, dtype: torch.dtype) -> Policy:
        """Shard the LoRA matrices alone: packed weights cannot be cut, so every rank holds the whole base, in 4 bits."""
        base = set()
        for name, parameter in policy.named_parameters():
            if ".lora_" not in name:
                base.add(parameter)
            elif not self.where.alone:
                dist.broadcast(parameter.data, src=0)
        return self._shard(policy, dtype, whole=base)

    def _receive(self, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        """Give every rank its shard of rank 0's weights, and rank 0's non-persistent buffers (rotary frequencies)."""
        kept = {name: buffer.clone() for name, buffer in buffers.items()} if self.where.rank == 0 else {}
        self.policy.to_empty(device=self.home)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=not self.where.alone)
        set_model_state_dict(self.policy, weights, options=options)
        for name, buffer in self.policy.named_buffers():
            if self.where.rank == 0:
                buffer.copy_(kept[name])
            if not self.where.alone:
                dist.broadcast(buffer, src=0)
        self._bring_buffers()

    def _bring_buffers(self) -> None:
        """Buffers are computed with as they are: on the device, wherever the shards live."""
        for module in self.policy.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.device))

    def _build_optimizer(self, config: OptimizerConfig) -> torch.optim.AdamW:
        """One kernel for all shards: no temporary as large as they are, and no dispatch of a DTensor an operation."""
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        betas = (config.betas[0], config.betas[1])
        return torch.optim.AdamW(
            trained, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )

    @spanned("backward")
    def backward(self, loss: Tensor) -> None:
        loss.backward()  # reduced at every micro-batch: unreduced gradients would be a full copy of the model a rank

    @spanned("optimizer")
    def step(self, lr: float) -> float:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm, foreach=True)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm.item()}; lower the learning rate or compute in float32")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def named_tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.policy.named_modules():
            if not isinstance(module, FSDPModule):
                continue
            if not any(wanted(name) for name, _ in _own_parameters(module, prefix)):
                continue
            module.unshard()
            # By identity: a tied weight has two names and one parameter.
            own = {id(parameter): (name, parameter) for name, parameter in reversed(list(_own_parameters(module, prefix)))}
            for name, parameter in reversed(own.values()):
                # The gathered storage is freed below, while a consumer may still be filling its bucket.
                if wanted(name):
                    yield name, full_precision(parameter)
            module.reshard()

    def save(self, directory: Path) -> None:
        assert self.optimizer is not None
        model_state, optimizer_state = get_state_dict(self.policy, self.optimizer)
        try:
            dcp.save({"model": self._changing(model_state), "optimizer": optimizer_state}, checkpoint_id=directory)
        except CheckpointException as error:  # no Exception, and its text is every rank's traceback
            rank, (cause, _) = next(iter(error.failures.items()))
            raise OSError(f"rank {rank} could not write its shards: {type(cause).__name__}: {cause}") from None

    def load(self, directory: Path) -> None:
        assert self.optimizer is not None
        model_state, optimizer_state = get_state_dict(self.policy, self.optimizer)
        state = {"model": self._changing(model_state), "optimizer": optimizer_state}
        _read(state, directory)
        set_state_dict(
            self.policy,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=not self._lora),
        )
        for group in self.optimizer.param_groups:  # which kernel computes is no part of where a run stood
            group["fused"], group["foreach"] = True, None

    def load_policy(self, directory: Path) -> None:
        state = {"model": self._changing(get_model_state_dict(self.policy))}
        _read(state, directory)
        set_model_state_dict(self.policy, state["model"], options=StateDictOptions(strict=not self._lora))

    def _changing(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds: under LoRA the adapter alone, because the base is in the model's folder."""
        return {name: value for name, value in state.items() if ".lora_" in name} if self._lora else state

    def trained_pieces(self) -> list[Tensor]:
        self.refresh()  # while a block is gathered, its parameters are other tensors than its shards
        trained = [parameter.detach() for parameter in self.policy.parameters() if parameter.requires_grad]
        return [piece.to_local() if isinstance(piece, DTensor) else piece for piece in trained]

    def refresh(self) -> None:
        """What is gathered is let go of."""
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def offload(self) -> None:
        self._move(HOST)
        free_cache()

    def onload(self) -> None:
        self._move(self.home)
        self._bring_buffers()

    def _move(self, device: torch.device) -> None:
        """Shards, buffers and optimizer state. Copies to the host wait for the shards: FSDP2 pads and copies uneven ones
        there at once, whatever has arrived. The optimizer's need not wait, `offload` synchronises before they are read."""
        self.policy.to(device, non_blocking=device.type == "cuda")
        for state in self.optimizer.state.values() if self.optimizer else ():
            for name, value in state.items():
                if value.dim():  # the step count stays where AdamW reads it
                    state[name] = value.to(device, non_blocking=True)

    def close(self) -> None:
        if self._owns_group:
            dist.destroy_process_group()
