"""What runs inside vLLM's worker when new weights arrive: load them, sum up what was consumed, tidy up on failure.

vLLM mixes this class into its worker (`worker_extension_cls`), because a multi-process engine's model lives there. For the
same reason importing this module tells vLLM of our own model classes: a worker imports it before it builds its model.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rl.sync.seats import Seat
from rl.weights import Checksummed, NamedTensors, published_names

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
    """Mixed into vLLM's worker: `model_runner`, `vllm_config` and `device` are the worker's."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    def receive_weights(self, tensors: NamedTensors) -> Loaded:
        """Replace all weights by `tensors`, which have Hugging Face names; they are consumed as they come.

        When the iterator or vLLM's loader raises, the answer has an `error`; the model is then sound in shape but a mix of
        old and new weights, and must not be sampled from until a load succeeds. It is part of the answer because of several
        workers that raise, vLLM collects one and leaves the others' exceptions to the next call.
        """
        stream = _relayed(tensors)
        passing = Checksummed(stream)
        try:
            missing = self._load(passing)
        except Exception as error:
            return Loaded("", 0, (), f"{type(error).__name__} after tensor {passing.last!r}: {error}")
        finally:
            stream.close()  # a sender waits until it is read, or hears that it will not be
        return Loaded(passing.checksum, passing.count, missing)

    def seat(self) -> Seat:
        """Where this worker is, for whoever wants to send it weights."""
        return Seat.here(self.device)

    def _load(self, tensors: NamedTensors) -> tuple[str, ...]:
        """Put `tensors` in the place of the model's weights; the names of those that were not among them."""
        runner = self.model_runner
        model = runner.get_model()
        published = published_names(tensors, self.vllm_config.model_config.hf_config.model_type)
        expected = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            try:
                loaded = model.load_weights(_with_tied_head(published, self._ties_embeddings()))
            finally:  # or layers stay without storage, and not even a later load finds its way
                finalize_layerwise_reload(model, runner.model_config)
        runner.reset_lora_state()
        runner.reset_encoder_cache()
        runner.reset_mm_cache()
        return tuple(sorted(expected - loaded))

    def _ties_embeddings(self) -> bool:
        return bool(self.vllm_config.model_config.hf_text_config.tie_word_embeddings)


def _relayed(tensors: NamedTensors) -> Generator[tuple[str, torch.Tensor]]:
    """The same tensors from an iterator that can be closed."""
    yield from tensors


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
