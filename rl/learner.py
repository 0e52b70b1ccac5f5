"""One rank of the policy learner: forwards and updates on its share of a batch, and hands its weights out.

Plain class, no Ray: an actor wraps it, a test or torchrun builds it directly.

    share ─► micro-batch, its images decoded and processed one ahead ─► lay out ─► logprobs, entropy ─► objective ─► backward
                                                                                       … all micro-batches ─► step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from verl.protocol import DataProto

from rl.attention_hook import BoxRecord
from rl.attention_term import AttentionTerm
from rl.batch import RankShare
from rl.config import AttentionLossConfig, LearnerConfig, ModelConfig, OptimizerConfig
from rl.engines import build_engine
from rl.engines.base import Engine, Rendezvous
from rl.kept_adapter import KeptAdapter
from rl.layout import ModelInputs, lay_out
from rl.meter import Meter
from rl.objectives import Objective
from rl.one_ahead import one_ahead
from rl.policy import hf_name
from rl.sequence_parallel import SequenceParallel
from rl.trace import spanned
from rl.weights import merge_adapter

if TYPE_CHECKING:
    from rl.prompting import EncodedPrompt, PromptEncoder


class Learner:
    """A rank of the policy. Without an `optimizer` it is a frozen policy that only computes logprobs (the reference)."""

    def __init__(
        self,
        model: ModelConfig,
        config: LearnerConfig,
        optimizer: OptimizerConfig | None,
        encoder: PromptEncoder,
        where: Rendezvous,
        temperature: float,
        attention_loss: AttentionLossConfig | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.model, self.config, self.encoder, self.temperature = model, config, encoder, temperature
        self.rank, self.trains = where.rank, optimizer is not None
        self.engine: Engine = build_engine(config.engine, model, config, optimizer, tuple(encoder.banned_token_ids), where)
        self.kept: KeptAdapter | None = None
        self.attention = AttentionTerm(attention_loss, self.engine.policy) if attention_loss else None
        if config.sequence_parallel > 1:  # after the attention loss, which measures between the exchanges
            self.engine.policy.sequence = SequenceParallel(self.engine.policy.base, config.sequence_parallel)

    def logprobs(self, share: RankShare) -> Tensor:
        """Logprobs [N, G, R] of the share's answers, zero where no token is; no gradients."""
        whole = torch.zeros(share.batch.batch["responses"].shape)
        with torch.no_grad():
            # An update needs the prompts again, but is balanced over the ranks by itself: of several ranks each finds those
            # again that come back to it, and `end_step` lets go the rest. A frozen policy sees its prompts once.
            for rows, micro, prompts in self._micro_batches(share, keep=self.trains):
                logprobs, _ = self._forward(micro, self._inputs(micro, prompts))
                whole[rows] = logprobs.cpu()
        return whole

    def keep_reference(self) -> None:
        """From now on `reference_logprobs` are those of the policy as it is now. Collective."""
        self.kept = KeptAdapter(self.engine)

    def reference_logprobs(self, share: RankShare) -> Tensor:
        """`logprobs` with the adapter that was kept. Collective."""
        assert self.kept is not None
        with self.kept.in_place():
            return self.logprobs(share)

    def update(
        self, share: RankShare, objective: Objective, lr: float, reference: Callable[[], Tensor] | None = None
    ) -> dict[str, float]:
        """One optimizer step over the update of which `share` is this rank's part; metrics over all ranks. Collective.

        `reference` waits for the share's reference logprobs [N, G, R]; it is called after the first forward.
        """
        meter = Meter()
        reference_logprobs: Tensor | None = None
        for rows, micro, prompts in self._micro_batches(share, keep=False):
            inputs = self._inputs(micro, prompts)
            record = self.attention.record(micro, prompts, inputs) if self.attention else None
            logprobs, entropy = self._forward(micro, inputs, record)
            if reference is not None:
                reference_logprobs = reference() if reference_logprobs is None else reference_logprobs
                micro.batch["reference_logprobs"] = reference_logprobs[rows]
            self._record_mismatch(logprobs, micro, meter)
            loss = objective(logprobs, entropy, micro.to(logprobs.device), share.totals, meter)
            if self.attention and record:
                loss = loss + self.attention.loss(record, micro, share.totals, meter)
            del entropy  # without an entropy term its graph would hold all logits that backward computes again
            self.engine.backward(loss)
        grad_norm = self.engine.step(lr)
        metrics = meter.reduce(self._total, self.engine.largest)
        return metrics | {"grad_norm": grad_norm, "lr": lr}

    def _total(self, values: Tensor) -> Tensor:
        """Sum over the shares of an update: ranks that compute one share together count once."""
        sequence = self.engine.policy.sequence
        return self.engine.total(values if sequence is None or sequence.rank == 0 else torch.zeros_like(values))

    def _record_mismatch(self, logprobs: Tensor, micro: DataProto, meter: Meter) -> None:
        """|learner − sampler| on the same tokens, while the learner still is the policy that sampled."""
        if not micro.meta_info.get("on_policy", False):
            return
        mask = micro.batch["current_mask" if "current_mask" in micro.batch.keys() else "response_mask"]
        gap = (logprobs.detach().cpu() - micro.batch["rollout_logprobs"]).abs() * mask
        meter.peak("mismatch/max", gap.max())
        meter.mean("mismatch/mean", gap.sum() / mask.sum().clamp(min=1), mask.sum())

    @spanned("forward")
    def _forward(self, micro: DataProto, inputs: ModelInputs, record: BoxRecord | None = None) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies [N, G, R] of a micro-batch."""
        logprobs_K, entropy_K = self.engine.policy(inputs, self.temperature, record)
        shape = micro.batch["responses"].shape
        return self._scatter(logprobs_K, inputs, shape), self._scatter(entropy_K, inputs, shape)

    def _micro_batches(self, share: RankShare, keep: bool) -> Iterator[tuple[list[int], DataProto, list[EncodedPrompt]]]:
        """Rows, batch and prompts of every micro-batch in turn; the next one's images are processed meanwhile."""

        def prepare(rows: tuple[int, ...]) -> tuple[list[int], DataProto, list[EncodedPrompt]]:
            micro = share.batch.select_idxs(list(rows))
            return list(rows), micro, self._prompts(micro, keep)

        return one_ahead(prepare, share.micro_batches)

    @spanned("process prompts")
    def _prompts(self, micro: DataProto, keep: bool = True) -> list[EncodedPrompt]:
        """The prompts with their images decoded and processed; `keep`: see `PromptEncoder.encode`."""
        prompts = [self.encoder.encode(sample, keep) for sample in micro.non_tensor_batch["sample"]]
        for prompt, tokens in zip(prompts, micro.batch["prompt_tokens"].tolist(), strict=True):
            if len(prompt.input_ids) != tokens:
                raise ValueError(
                    f"the sampler saw a prompt of {tokens} tokens, the learner's processor makes {len(prompt.input_ids)}: "
                    "model.min_pixels/max_pixels or the model folders differ between them"
                )
        return prompts

    @spanned("lay out")
    def _inputs(self, micro: DataProto, prompts: list[EncodedPrompt]) -> ModelInputs:
        rope_index = self.engine.policy.rope_index
        answers = micro.batch["responses"], micro.batch["response_mask"]
        inputs = lay_out(prompts, *answers, rope_index, self.config.layout, self.config.sequence_parallel)
        return inputs.to(self.engine.device)

    @staticmethod
    def _scatter(values_K: Tensor, inputs: ModelInputs, shape: torch.Size) -> Tensor:
        flat = values_K.new_zeros(shape.numel())
        return flat.index_put((inputs.place_K,), values_K).reshape(shape)

    def end_step(self) -> None:
        """Let go the prompts that no update of the step asked this rank for again."""
        self.encoder.forget()

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, tensor) of the whole policy, LoRA merged in, tied weights once. Collective."""
        lora = self.model.lora
        base = self.base_weights()
        if not lora.rank:
            yield from base
            return
        yield from merge_adapter(base, dict(self.adapter_weights()), scale=lora.alpha / lora.rank)

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, tensor) without the LoRA matrices. Collective."""
        for engine_name, tensor in self.engine.named_tensors(lambda name: hf_name(name) is not None):
            name = hf_name(engine_name)
            assert name is not None
            yield name, tensor

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(PEFT name, tensor) of the LoRA matrices alone. Collective."""
        for engine_name, tensor in self.engine.named_tensors(lambda name: hf_name(name) is None):
            yield engine_name.removeprefix("model.").replace(".default.", "."), tensor

    def save(self, directory: Path) -> None:
        """Shards of parameters, optimizer and RNG under `directory`. Collective."""
        self.engine.save(directory)
        torch.save(torch.get_rng_state(), directory / f"rng-{self.rank}.pt")
        if self.engine.device.type == "cuda":
            torch.save(torch.cuda.get_rng_state(self.engine.device), directory / f"rng-cuda-{self.rank}.pt")

    def load(self, directory: Path) -> None:
        """Continue exactly where `save` was called. Collective."""
        self.engine.load(directory)
        rng = directory / f"rng-{self.rank}.pt"
        if rng.exists():
            torch.set_rng_state(torch.load(rng))
        on_device = directory / f"rng-cuda-{self.rank}.pt"
        if self.engine.device.type == "cuda" and on_device.exists():
            torch.cuda.set_rng_state(torch.load(on_device), self.engine.device)

    def close(self) -> None:
        self.engine.close()
