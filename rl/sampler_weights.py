"""What runs inside vLLM's worker when new weights arrive: load them, sum up what was consumed, tidy up on failure.

vLLM mixes this class into its worker (`worker_extension_cls`), because a multi-process engine's model lives there. For the
same reason importing this module tells vLLM of our own model classes: a worker imports it before it builds its model.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rl.weights import Bucket, Checksummed, NamedTensors, buckets, published_names

SPOOL_BYTES = 256 << 20

# By the architecture that a folder names: classes in the place of vLLM's own, imported when one is built.
MODEL_CLASSES = {"LlavaOnevisionForConditionalGeneration": "rl.sampler_llava:LlavaOnevision"}
for _architecture, _model_class in MODEL_CLASSES.items():
    ModelRegistry.register_model(_architecture, _model_class)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker's loader consumed, which of its own parameters were not among it, and what went wrong on the way."""

    checksum: str
    tensors: int
    missing: tuple[str, ...]
    error: str | None = None


class WeightReceiver:
    """Mixed into vLLM's worker: `model_runner` and `vllm_config` are the worker's."""

    model_runner: Any
    vllm_config: Any

    def receive_weights(self, tensors: NamedTensors) -> Loaded:
        """Replace all weights by `tensors`, which have Hugging Face names; they are consumed as they come.

        Raises RuntimeError, naming the last tensor, when the iterator or vLLM's loader raises; the model is then sound in
        shape but a mix of old and new weights, and must not be sampled from until a load succeeds.
        """
        runner = self.model_runner
        model = runner.get_model()
        passing = Checksummed(tensors)
        published = published_names(passing, self.vllm_config.model_config.hf_config.model_type)
        expected = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            try:
                loaded = model.load_weights(_with_tied_head(published, self._ties_embeddings()))
            except Exception as error:
                raise RuntimeError(f"{type(error).__name__} after tensor {passing.last!r}: {error}") from error
            finally:  # or layers stay without storage, and not even a later load finds its way
                finalize_layerwise_reload(model, runner.model_config)
        runner.reset_lora_state()
        runner.reset_encoder_cache()
        runner.reset_mm_cache()
        return Loaded(passing.checksum, passing.count, tuple(sorted(expected - loaded)))

    def receive_weight_files(self, folder: str) -> Loaded:
        """`receive_weights` of the buckets that `spool` wrote: every worker of a multi-process engine reads them itself.

        An error is part of the answer: of several workers that raise, vLLM collects one and leaves the others' exceptions to
        the next call.
        """
        try:
            return self.receive_weights(tensor for path in sorted(Path(folder).iterdir()) for tensor in _unpickled(path))
        except RuntimeError as error:
            return Loaded("", 0, (), str(error))

    def _ties_embeddings(self) -> bool:
        return bool(self.vllm_config.model_config.hf_text_config.tie_word_embeddings)


def spool(tensors: NamedTensors, folder: Path) -> None:
    """Write tensors to `folder`, bucket by bucket, in their order."""
    for number, bucket in enumerate(buckets(tensors, SPOOL_BYTES)):
        with (folder / f"{number:06d}").open("wb") as file:
            pickle.dump(bucket, file, protocol=5)


def _unpickled(path: Path) -> Bucket:
    with path.open("rb") as file:
        bucket = pickle.load(file)
    assert isinstance(bucket, Bucket)
    return bucket


def _with_tied_head(tensors: NamedTensors, tied: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """On CPU vLLM keeps a repacked copy of a tied lm_head, to be fed too, though the learner has no such parameter."""
    embedding: torch.Tensor | None = None
    has_head = False
    for name, tensor in tensors:
        has_head |= name == "lm_head.weight"
        if name.endswith("embed_tokens.weight"):
            embedding = tensor
        yield name, tensor
    if tied and not has_head and embedding is not None:
        yield "lm_head.weight", embedding
