"""Weights as they leave the learner: checksum, dtype, published names, LoRA merged in.

    learner's tensors ──► Checksummed ──► rl/sync ══════════════════════════► Checksummed ──► the sampler's loader
                              │ digest                                            │ digest
                              └───────────── equal, or the sync failed ───────────┘

Both digests are taken over the very tensors that pass, so neither side has to hold the model twice. They are computed on
the host: from a GPU, every tensor is copied there once on either side, whatever the transport.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
import xxhash

NamedTensors = Iterable[tuple[str, torch.Tensor]]
PEFT_PREFIX = "base_model.model."

# By `model_type`: beginnings of transformers' names, and what published checkpoints and vLLM have in their place.
# transformers dropped a level of SigLIP's modules; it still reads names with that level, but does not write them.
PUBLISHED_PREFIXES = {"llava_onevision": {"model.vision_tower.": "model.vision_tower.vision_model."}}


def _raw_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The tensor's bytes in row-major order; a view where it already is contiguous on the CPU. numpy knows no bfloat16."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class Checksummed:
    """Iterates over named tensors and sums up what passed: names, dtypes, shapes and bytes, in any order.

        passing = Checksummed(model.state_dict().items())
        load(passing)
        passing.checksum            # 32 hex digits over what was really consumed

    XXH3-128 of each tensor, added modulo 2^128: ranks may stream in different orders, and a tensor sent twice shows.
    It guards against mistakes, not attackers; it runs at memory speed (30 GB/s a core), where BLAKE2 does 1 GB/s.
    """

    def __init__(self, tensors: NamedTensors) -> None:
        self._tensors = tensors
        self._sum = 0
        self.count = 0
        self.bytes = 0
        self.last: str | None = None

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors:
            self.last = name
            raw = _raw_bytes(tensor)
            digest = xxhash.xxh3_128(f"{name}|{dtype_name(tensor)}|{tuple(tensor.shape)}|".encode())
            digest.update(raw.data)
            self._sum = (self._sum + digest.intdigest()) % (1 << 128)
            self.count += 1
            self.bytes += raw.nbytes
            yield name, tensor

    @property
    def checksum(self) -> str:
        return f"{self._sum:032x}"


def checksum(tensors: NamedTensors) -> str:
    """The digest `Checksummed` would end with; the empty iterator's is all zeros."""
    passing = Checksummed(tensors)
    for _ in passing:
        pass
    return passing.checksum


def added(checksums: Iterable[str]) -> str:
    """The checksum of several streams, as if they had been one."""
    return f"{sum(int(checksum, 16) for checksum in checksums) % (1 << 128):032x}"


def published_names(tensors: NamedTensors, model_type: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors under the names of the family's published checkpoints; names that already are those stay."""
    prefixes = PUBLISHED_PREFIXES.get(model_type, {})
    for name, tensor in tensors:
        for ours, theirs in prefixes.items():
            if name.startswith(ours) and not name.startswith(theirs):
                name = theirs + name.removeprefix(ours)
        yield name, tensor


def merge_adapter(
    base: NamedTensors, adapter: Mapping[str, torch.Tensor], scale: float
) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensors with LoRA merged in: W + scale · B A, computed in fp32, in W's dtype, under W's name.

    `adapter` has PEFT's names (`base_model.model.<module>.lora_A.weight`), `base` the Hugging Face ones (`<module>.weight`);
    `scale` is alpha / r (alpha / sqrt(r) for rsLoRA). Raises ValueError if an adapter module matches no base weight: a merge
    that changes nothing is the classic way to export the base by mistake.
    """
    unused = {name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight") for name in adapter if ".lora_A." in name}
    prefix = PEFT_PREFIX if any(name.startswith(PEFT_PREFIX) for name in adapter) else ""
    for name, weight in base:
        module = name.removesuffix(".weight")
        if module in unused and name.endswith(".weight"):
            unused.discard(module)
            a, b = (adapter[f"{prefix}{module}.lora_{letter}.weight"] for letter in "AB")
            delta = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
            weight = (weight.float() + scale * delta).to(weight.dtype)
        yield name, weight
    if unused:
        raise ValueError(
            f"{len(unused)} LoRA modules match no base weight, first {min(unused)!r}: "
            "the base must have Hugging Face names and the adapter PEFT's"
        )
