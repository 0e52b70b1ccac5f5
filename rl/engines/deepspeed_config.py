"""What DeepSpeed is told: its configuration, and a process in which it starts without launcher, compiler or chatter."""

from __future__ import annotations

import os
import warnings
from typing import Any

import deepspeed
import torch
from deepspeed.comm import comm
from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as ZeroInit
from deepspeed.utils import groups

from rl.config import LearnerConfig
from rl.engines.base import Rendezvous

# Elements of a buffer in which gradients are reduced: 0.4 GB in float32. DeepSpeed's own default is five times that.
REDUCE_BUCKET = 100_000_000
# Elements up to which ZeRO-3 leaves a parameter whole from its first use to the next step: norms, biases, small adapters.
LEFT_WHOLE = 100_000


def enter(where: Rendezvous, new_group: bool) -> None:
    """Prepare this process for an engine of `where`, whose process group exists."""
    warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    # Its operators are compiled when they are first used, one of them when a group is joined; a build that was killed leaves
    # a lock that others wait at for ever. No engine here needs any.
    deepspeed.ops.__compatible_ops__ = {}
    os.environ |= {
        "RANK": str(where.rank),
        "WORLD_SIZE": str(where.world_size),
        "LOCAL_RANK": str(where.local_rank),
        "MASTER_ADDR": where.master_address,
        "MASTER_PORT": str(where.master_port),
    }
    if new_group:
        _forget_groups()
    deepspeed.init_distributed(verbose=False)


def leave(destroy_group: bool) -> None:
    """Undo what an engine changed in this process, so that another of any kind can follow."""
    if torch.nn.functional.linear is not getattr(ZeroInit, "linear_bk", torch.nn.functional.linear):
        torch.nn.functional.linear = ZeroInit.linear_bk  # ZeRO-3's, which frees weights between forward and backward
    if destroy_group:
        torch.distributed.destroy_process_group()
        _forget_groups()


def _forget_groups() -> None:
    """DeepSpeed keeps groups in its modules; those of an engine that ended are gone."""
    groups._release_process_group_references()
    comm.cdb = None


def zero_config(learner: LearnerConfig, max_grad_norm: float, trained: int, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration for `learner`, of whose model `trained` elements have a gradient.

    Losses come scaled by the world size and normalised over the update, so that the mean over ranks is all that DeepSpeed
    does to gradients. It accumulates them until `step` is called: there is no number of micro-batches to agree on.
    """
    zero: dict[str, Any] = {
        "stage": learner.zero_stage,
        "reduce_bucket_size": max(1, min(REDUCE_BUCKET, trained)),
        "stage3_param_persistence_threshold": LEFT_WHOLE,
    }
    host = {"device": "cpu", "pin_memory": device.type == "cuda"}
    if learner.offload:
        zero["offload_optimizer"] = host
    if learner.offload == "all":
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": learner.dtype == "bfloat16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
