"""The DeepSpeed engine: ZeRO-2 (gradients and optimizer sharded) or ZeRO-3 (parameters too), gloo on CPU, NCCL on GPU.

    rank 0 reads the weights ─► parameter by parameter, broadcast ─► ZeRO-3 keeps a slice of it, ZeRO-2 all
    loss ─► backward: gradients reduced to their owners, accumulated in float32 ─► step: norm, clip, AdamW on the masters

The other ranks build on `meta`, so host memory holds the model once, in the compute dtype, on the machine of rank 0.
Masters, moments and gradients are float32 and sharded under both stages. A frozen policy (a reference) is sharded under
ZeRO-3 and whole on every rank under ZeRO-2, as plain PyTorch.

One thing differs from FSDP2: masters lie end to end, so AdamW's weight decay also shrinks a parameter that no loss reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import register_output_backward_hooks
from torch import Tensor, nn

from rl.config import LearnerConfig, ModelConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.engines.deepspeed_config import enter, leave, zero_config
from rl.engines.process_group import DTYPES, Reductions, blocks, free_cache, join
from rl.engines.shards import Shard, ShardReader, write_shards
from rl.engines.zero_pieces import MOMENTS, Piece, Zero, Zero2, Zero3
from rl.policy import Policy, build_model
from rl.quantization import full_precision
from rl.trace import spanned


class ZeroEngine(Reductions):
    """See `rl.engines.base.Engine`. Without an `optimizer` config the policy is frozen (a reference)."""

    def __init__(
        self,
        model: ModelConfig,
        learner: LearnerConfig,
        optimizer: OptimizerConfig | None,
        banned: tuple[int, ...],
        where: Rendezvous,
    ) -> None:
        self.where, self.stage = where, learner.zero_stage
        self.device, self._owns_group = join(where)
        enter(where, self._owns_group)
        dtype = DTYPES[learner.dtype]
        built = build_model(model, dtype, dtype, self.device, with_weights=where.rank == 0)
        self.policy = Policy(built, banned)
        if optimizer is None:
            self.policy.requires_grad_(False)
        elif learner.activation_checkpointing:
            self.policy.base.gradient_checkpointing_enable({"use_reentrant": False})
        trained = sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad)
        sizes = {name: parameter.numel() for name, parameter in self.policy.named_parameters()}
        config = zero_config(learner, optimizer.max_grad_norm if optimizer else 0.0, trained, self.device)
        self._receive(config)
        self._names = _by_block(self.policy)
        lora = model.lora.rank > 0
        held = {name: parameter for name, parameter in self.policy.named_parameters() if not lora or ".lora_" in name}
        self._sizes = {name: sizes[name] for name in held}
        self._engine: Any = None
        if optimizer is not None or self.stage == 3:
            self._engine = self._initialize(config, optimizer)
        self._zero: Zero
        if self.stage == 3:
            self._zero = Zero3(self.policy, held, self._engine, where, self.device, learner.offload)
        else:
            self._zero = Zero2(self.policy, held, self._engine, where, self.device)

    def _receive(self, config: Mapping[str, Any]) -> None:
        """Every rank gets rank 0's parameters, one module's at a time, and under ZeRO-3 keeps its slices of them."""
        made: dict[nn.Parameter, nn.Parameter] = {}  # a tied parameter stays one
        sharded: nn.Parameter | None = None
        for module in self.policy.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta and parameter not in made:
                    made[parameter] = nn.Parameter(torch.empty_like(parameter, device=self.device), parameter.requires_grad)
                setattr(module, name, made.get(parameter, parameter))
            own = nn.ParameterList(module.parameters(recurse=False))
            if self.stage == 3:
                if sharded is None and len(own):
                    deepspeed.zero.Init(module=own, config_dict_or_path=dict(config))
                    sharded = own[0]
                elif sharded is not None:
                    sharded.convert_to_zero_parameters(param_list=own)
            else:
                self._send(own)
            for name, buffer in list(module.named_buffers(recurse=False)):  # rotary frequencies are in no checkpoint
                here = torch.empty_like(buffer, device=self.device) if buffer.is_meta else buffer.to(self.device)
                dist.broadcast(here, src=0)
                setattr(module, name, here)

    def _send(self, parameters: nn.ParameterList) -> None:
        for parameter in parameters:
            parameter.data = parameter.data.to(self.device)
            dist.broadcast(parameter.data, src=0)

    def _initialize(self, config: dict[str, Any], optimizer: OptimizerConfig | None) -> Any:
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        adamw = optimizer and torch.optim.AdamW(
            trained,
            lr=optimizer.lr,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,  # PyTorch's own one kernel: DeepSpeed's must be compiled first
        )
        engine, *_ = deepspeed.initialize(model=self.policy, optimizer=adamw, config=config)
        if self.stage == 3:
            # The policy computes with the head's weight itself; it is gathered once for all chunks of answers.
            deepspeed.zero.register_external_parameter(self.policy, self.policy.base.lm_head.weight)
        return engine

    @spanned("backward")
    def backward(self, loss: Tensor) -> None:
        # What DeepSpeedEngine.forward does: the policy is called as itself, and some losses are no function of its outputs.
        self._engine.optimizer.clear_backward_seen_flag()
        register_output_backward_hooks(loss, preprocess_once_fn=self._engine._backward_prologue)
        self._engine.backward(loss, scale_wrt_gas=False)

    @spanned("optimizer")
    def step(self, lr: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        if self._engine.optimizer.overflow:  # nothing was updated
            raise FloatingPointError("the gradient norm is not finite; lower the learning rate or compute in float32")
        return float(self._engine.get_global_grad_norm())

    def named_tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, Tensor]]:
        for names in self._names:
            chosen = {name: self.policy.get_parameter(name) for name in names if wanted(name)}
            if not chosen:
                continue
            with deepspeed.zero.GatheredParameters(chosen.values()) if self.stage == 3 else nullcontext():
                for name, parameter in chosen.items():
                    yield name, full_precision(parameter)

    def save(self, directory: Path) -> None:
        assert self._zero.optimizer is not None
        counts = [float(state["step"]) for state in self._zero.optimizer.state.values() if state]
        shards = (Shard(piece.extent, self._kinds(piece)) for piece in self._zero.pieces())
        write_shards(directory, self.where.rank, self.where.world_size, shards, counts[0] if counts else None)

    def _kinds(self, piece: Piece) -> dict[str, Tensor]:
        """A piece's master, and its moments once there has been a step; views of them."""
        assert self._zero.optimizer is not None
        kinds = {"master": piece.values}
        state = {} if piece.flat is None else self._zero.optimizer.state[piece.flat]
        if state:
            kinds |= {kind: state[kind].narrow(0, piece.offset, piece.extent.length) for kind in MOMENTS}
        return kinds

    def load(self, directory: Path) -> None:
        assert self._zero.optimizer is not None
        reader = self._open(directory)
        for flat in {piece.flat for piece in self._zero.pieces() if piece.flat is not None}:
            state = self._zero.optimizer.state[flat]
            state.clear()
            if reader.steps is not None:
                state |= {"step": torch.tensor(reader.steps)} | {kind: torch.zeros_like(flat.data) for kind in MOMENTS}
        self._fill(reader, self._kinds)

    def load_policy(self, directory: Path) -> None:
        self._fill(self._open(directory), lambda piece: {"master": piece.values})

    def _open(self, directory: Path) -> ShardReader:
        reader = ShardReader(directory)
        for name, numel in self._sizes.items():
            if reader.sizes.get(name) != numel:
                raise ValueError(
                    f"{directory} does not hold this policy ({name} has {reader.sizes.get(name)} elements there, {numel} "
                    "here); model.path and model.lora must be those it was saved with"
                )
        return reader

    def _fill(self, reader: ShardReader, kinds: Callable[[Piece], dict[str, Tensor]]) -> None:
        for piece in self._zero.pieces():
            for kind, tensor in kinds(piece).items():
                tensor.copy_(reader.read(kind, piece.extent))
        self._zero.refresh()

    def trained_pieces(self) -> list[Tensor]:
        return [piece.values for piece in self._zero.pieces() if piece.flat is not None]

    def refresh(self) -> None:
        self._zero.refresh()

    def offload(self) -> None:
        self._zero.offload()
        free_cache()

    def onload(self) -> None:
        self._zero.onload()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.destroy()
        leave(self._owns_group)


def _by_block(policy: Policy) -> list[list[str]]:
    """Names of the parameters that are gathered together: a block's, or one that is in no block."""
    block_of = {id(parameter): id(block) for block in blocks(policy.base) for parameter in block.parameters()}
    named = policy.named_parameters()
    return [[name for name, _ in group] for _, group in groupby(named, lambda item: block_of.get(id(item[1]), id(item[1])))]
