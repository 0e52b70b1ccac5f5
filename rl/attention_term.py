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
    """Of one policy. SFT batches have one answer a prompt, so that row b of the inputs is sample b of the micro-batch."""

    def __init__(self, config: AttentionLossConfig, policy: Policy) -> None:
        self.config, self.policy = config, policy
        install(policy.base)
        self.layers = chosen_layers(config.layers, text_config(policy.base).num_hidden_layers)

    def record(self, micro: DataProto, prompts: Sequence[EncodedPrompt], inputs: ModelInputs) -> BoxRecord:
        """A fresh record for the forward of `inputs`. Raises ValueError for a sample without supports or query image."""
        answers_B = micro.batch["response_mask"].sum((-1, -2)).long().tolist()
        shape = inputs.input_ids.shape
        rows, columns, tokens = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        for b, (sample, prompt) in enumerate(zip(micro.non_tensor_batch["sample"], prompts, strict=True)):
            length = len(prompt.input_ids)
            rows[b, :length] = prompt.query_image_mask(sample)
            columns[b, :length] = prompt.box_mask(sample)
            tokens[b, : length + answers_B[b]] = True
        return BoxRecord(BoxTargets.padded(rows, columns, tokens), self.layers)

    def loss(self, record: BoxRecord, micro: DataProto, totals: BatchTotals, meter: Meter) -> Tensor:
        """β times the mean of L_bbox over the samples of the whole update, of which this is a micro-batch's part."""
        taught_B = micro.batch["loss_mask"].sum((-1, -2)) > 0  # a silent copy only keeps its rank in step
        mass_N = record.mass()
        if self.policy.sequence is not None:  # this rank recorded its own heads
            mass_N = self.policy.sequence.mean(mass_N)
        config = self.config
        each_B = box_loss(mass_N, record.targets, config.margin, config.reduction, config.denominator)
        part = (each_B * taught_B.to(each_B.device)).sum() / max(totals.answers, 1)
        meter.add("loss/attention", part.detach())
        meter.mean("attention/box_mass", mass_N.detach().mean(), taught_B.sum())
        loss: Tensor = self.config.weight * part * totals.world_size
        return loss
