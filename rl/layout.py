"""Lays prompts and their answers out as model inputs: a group as one sequence, or one row an answer.

    shared   [ prompt and images | answer 1 | answer 2 | … | answer G ]      one row a group
    plain    [ prompt and images | answer 1 ]  [ prompt and images | answer 2 ]  …   one row an answer

In a shared row every answer sees the prompt and itself, and its positions count on from the prompt's largest position
plus one on every rotary axis, as if it stood alone; so the logprobs and gradients equal the plain rows', while the
prompt and its images are computed once. The plain layout stays as the reference the shared one is tested against.

Shape suffixes: N groups, G answers a group, R answer tokens (padded), B rows, L tokens a row, K answer tokens in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rl.prompting import EncodedPrompt

RopeIndex = Callable[..., tuple[Tensor, Tensor]]
Answers = list[tuple[int, Tensor]]  # (index of an answer in [N·G], its tokens)


@dataclass(frozen=True)
class ModelInputs:
    """What a forward needs, and where in its output each answer token is predicted.

    `attention_mask` is [B, 1, L, L] bool, True where a query (row) sees a key (column); None where every row is one prompt
    and one answer: order alone then says it, padding comes last, and a kernel without a mask can run. `predictor_K` indexes
    the flattened [B·L] hidden states: the position whose output predicts answer token k. `place_K` indexes the flattened
    [N·G·R] answer tensors, so that results scatter back. `vision` are the forward's image arguments of all rows.
    """

    input_ids: Tensor
    mm_token_type_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    vision: Mapping[str, Tensor]
    predictor_K: Tensor
    target_K: Tensor
    place_K: Tensor

    def to(self, device: torch.device) -> ModelInputs:
        moved = {
            name: None if value is None else value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if name != "vision"
        }
        vision = {name: tensor.to(device, non_blocking=True) for name, tensor in self.vision.items()}
        return ModelInputs(**moved, vision=vision)


@dataclass(frozen=True)
class _Row:
    """One sequence: a prompt and the answers that share it."""

    prompt: EncodedPrompt
    prompt_positions: Tensor  # [A, P], A rotary axes
    answers: Answers

    @property
    def length(self) -> int:
        return len(self.prompt.input_ids) + sum(len(tokens) for _, tokens in self.answers)


def prompt_positions(prompt: EncodedPrompt, rope_index: RopeIndex | None) -> Tensor:
    """Rotary positions of a prompt, [A, P]: three axes for the Qwen-VL families, one for others."""
    if rope_index is None:
        return torch.arange(len(prompt.input_ids))[None]
    positions, _ = rope_index(
        prompt.input_ids[None],
        mm_token_type_ids=prompt.mm_token_type_ids[None],
        image_grid_thw=prompt.vision.get("image_grid_thw"),
    )
    return positions[:, 0]


def _shared_rows(prompts: Sequence[EncodedPrompt], positions: list[Tensor], answers: list[Answers]) -> list[_Row]:
    return [_Row(*parts) for parts in zip(prompts, positions, answers, strict=True) if parts[2]]


def _plain_rows(prompts: Sequence[EncodedPrompt], positions: list[Tensor], answers: list[Answers]) -> list[_Row]:
    return [
        _Row(prompt, where, [answer])
        for prompt, where, group in zip(prompts, positions, answers, strict=True)
        for answer in group
    ]


LAYOUTS = {"shared": _shared_rows, "plain": _plain_rows}


def lay_out(
    prompts: Sequence[EncodedPrompt],
    responses_NGR: Tensor,
    response_mask_NGR: Tensor,
    rope_index: RopeIndex | None,
    layout: str = "shared",
    multiple: int = 1,
) -> ModelInputs:
    """Model inputs of N groups, rows padded to a `multiple`. Answers with an all-zero mask (failed rollouts) take no place.

    Raises ValueError when no answer has a token, because a forward of nothing has no shape.
    """
    answers = _answers(responses_NGR, response_mask_NGR)
    positions = [prompt_positions(prompt, rope_index) for prompt in prompts]
    rows = LAYOUTS[layout](prompts, positions, answers)
    if not rows:
        raise ValueError("a micro-batch needs at least one answer token")
    return _stack(rows, responses_NGR.shape[-1], multiple)


def _answers(responses_NGR: Tensor, response_mask_NGR: Tensor) -> list[Answers]:
    num_groups, num_answers, _ = responses_NGR.shape
    lengths = response_mask_NGR.sum(-1).long().tolist()
    return [
        [
            (group * num_answers + answer, responses_NGR[group, answer, : lengths[group][answer]])
            for answer in range(num_answers)
            if lengths[group][answer]
        ]
        for group in range(num_groups)
    ]


def _stack(rows: list[_Row], max_response: int, multiple: int) -> ModelInputs:
    longest = -(-max(row.length for row in rows) // multiple) * multiple
    axes = rows[0].prompt_positions.shape[0]
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mm_token_type_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    position_ids = torch.zeros(axes, len(rows), longest, dtype=torch.long)
    segment = torch.full((len(rows), longest), -1, dtype=torch.long)  # 0 the prompt, 1… the answers, −1 padding
    predictors, targets, places = [], [], []
    for b, row in enumerate(rows):
        at = len(row.prompt.input_ids)
        input_ids[b, :at] = row.prompt.input_ids
        mm_token_type_ids[b, :at] = row.prompt.mm_token_type_ids
        position_ids[:, b, :at] = row.prompt_positions
        segment[b, :at] = 0
        last_prompt, next_position = at - 1, int(row.prompt_positions.max()) + 1
        for number, (index, tokens) in enumerate(row.answers, start=1):
            end = at + len(tokens)
            input_ids[b, at:end] = tokens
            position_ids[:, b, at:end] = torch.arange(next_position, next_position + len(tokens))
            segment[b, at:end] = number
            predictors.append(b * longest + torch.tensor([last_prompt, *range(at, end - 1)]))
            targets.append(tokens)
            places.append(index * max_response + torch.arange(len(tokens)))
            at = end
    return ModelInputs(
        input_ids=input_ids,
        mm_token_type_ids=mm_token_type_ids,
        position_ids=position_ids if axes > 1 else position_ids[0],
        attention_mask=_visible(segment) if any(len(row.answers) > 1 for row in rows) else None,
        vision=stack_vision([row.prompt for row in rows]),
        predictor_K=torch.cat(predictors),
        target_K=torch.cat(targets),
        place_K=torch.cat(places),
    )


def stack_vision(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The forward's image arguments of several prompts, one after another along the first axis.

    Other axes are padded with zeros at their end to the largest: images that were cut into different numbers of tiles.
    """
    names = {name for prompt in prompts for name in prompt.vision}
    return {
        name: _padded_cat([prompt.vision[name] for prompt in prompts if name in prompt.vision]) for name in sorted(names)
    }


def _padded_cat(tensors: list[Tensor]) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [new - old for new, old in zip(largest, tensor.shape[1:], strict=True)]
        ends = [width for lack in reversed(missing) for width in (0, lack)]
        padded.append(nn.functional.pad(tensor, ends) if any(missing) else tensor)
    return torch.cat(padded)


def _visible(segment_BL: Tensor) -> Tensor:
    """[B, 1, L, L] bool: a token sees earlier tokens of the prompt and of its own answer. Padding sees itself alone."""
    length = segment_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = segment_BL[:, :, None], segment_BL[:, None, :]
    seen = causal & ((key == 0) | (key == query)) & (key >= 0)
    return (seen | torch.eye(length, dtype=torch.bool))[:, None]
