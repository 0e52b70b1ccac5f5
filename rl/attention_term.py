"""The attention loss as a term of an SFT step: what a forward records, and β·L_bbox of a micro-batch (FOCUS, eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from verl.protocol import DataProto

from rl.attention_hook import BoxRecord, install, text_config
from rl.attention_loss import BoxTargets, box_loss, chosen_layers
from rl.batch import BatchTotals
from rl.config import AttentionLossConfig
from rl.layout import ModelInputs
from rl.meter import Meter
from rl.policy import Policy

if TYPE_CHECKING:
    from rl.prompting import EncodedPrompt


class AttentionTerm:
    """Of one policy. SFT batches have one answer a prompt, so that start s of the inputs is sample s of the micro-batch."""

    def __init__(self, config: AttentionLossConfig, policy: Policy) -> None:
        self.config, self.policy = config, policy
        install(policy.base)
        self.layers = chosen_layers(config.layers, text_config(policy.base).num_hidden_layers)

    def record(self, micro: DataProto, prompts: Sequence[EncodedPrompt], inputs: ModelInputs) -> BoxRecord:
        """A fresh record for the forward of `inputs`. Raises ValueError for a sample without supports or query image."""
        answers_S = micro.batch["response_mask"].sum((-1, -2)).long().tolist()
        shape = inputs.input_ids.shape
        rows, columns = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))
        number = torch.full(shape, -1)
        samples = zip(micro.non_tensor_batch["sample"], prompts, inputs.starts, strict=True)
        for s, (sample, prompt, (b, first)) in enumerate(samples):
            own = slice(first, first + len(prompt.input_ids))
            rows[b, own] = prompt.query_image_mask(sample)
            columns[b, own] = prompt.box_mask(sample)
            number[b, first : own.stop + answers_S[s]] = s
        return BoxRecord(BoxTargets(rows, columns, number), self.layers)

    def loss(self, record: BoxRecord, micro: DataProto, totals: BatchTotals, meter: Meter) -> Tensor:
        """β times the mean of L_bbox over the samples of the whole update, of which this is a micro-batch's part."""
        taught_S = micro.batch["loss_mask"].sum((-1, -2)) > 0  # a silent copy only keeps its rank in step
        mass_N = record.mass()
        if self.policy.sequence is not None:  # this rank recorded its own heads
            mass_N = self.policy.sequence.mean(mass_N)
        config = self.config
        each_S = box_loss(mass_N, record.targets, config.margin, config.reduction, config.denominator)
        part = (each_S * taught_S.to(each_S.device)).sum() / max(totals.answers, 1)
        meter.add("loss/attention", part.detach())
        meter.mean("attention/box_mass", mass_N.detach().mean(), taught_S.sum())
        loss: Tensor = self.config.weight * part * totals.world_size
        return loss
