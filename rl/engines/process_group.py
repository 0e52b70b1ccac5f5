"""What every engine has in common: its process group, its device, sums over ranks, and the blocks of a model."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rl.engines.base import Rendezvous
from rl.trace import WAIT, spanned

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def join(where: Rendezvous) -> tuple[torch.device, bool]:
    """Enter the process group of `where`: this rank's device, and whether the group was made here.

    A group that exists (torchrun's, vLLM's in the same process) is used if it has the right size.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", where.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        if dist.get_world_size() != where.world_size:
            raise ValueError(
                f"this process is in a group of {dist.get_world_size()} ranks, the engine needs {where.world_size}"
            )
        return device, False
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if where.alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if where.master_address.startswith("127.") else "")
        if not os.environ["GLOO_SOCKET_IFNAME"]:
            del os.environ["GLOO_SOCKET_IFNAME"]
        dist.init_process_group(
            backend,
            init_method=f"tcp://{where.master_address}:{where.master_port}",
            rank=where.rank,
            world_size=where.world_size,
        )
    return device, True


class Reductions:
    """`total` and `largest` of `rl.engines.base.Engine`, on the host."""

    def total(self, values: Tensor) -> Tensor:
        return _reduce(values, dist.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        return _reduce(values, dist.ReduceOp.MAX)


@spanned("sum over ranks", WAIT)
def _reduce(values: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
    reduced = values.detach().cpu().clone()
    dist.all_reduce(reduced, op=op)
    return reduced


def free_cache() -> None:
    """Give the memory that nobody holds any more back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # before anybody reads, or uses the memory that was left
        torch.cuda.ipc_collect()  # slots that were sent over cuda_ipc, and that their receivers have let go of
        torch.cuda.empty_cache()


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks that are sharded and checkpointed one by one, in order."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in names:
            yield module
