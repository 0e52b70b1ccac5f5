"""Lays prompts and their answers out as model inputs: all groups in one row, or one row an answer.

    shared   [ prompt and images | answer 1 | … | answer G ][ prompt and images | answer 1 | … ] …      one row, no padding
    plain    [ prompt and images | answer 1 ]  [ prompt and images | answer 2 ]  …           one row an answer, padded

In the shared row every answer sees its prompt and itself (rl/group_attention.py), and its positions count on from the
prompt's largest position plus one on every rotary axis, as if it stood alone; so the logprobs and gradients equal the plain
rows', while a prompt and its images are computed once. The plain layout stays as what the shared one is tested against.

Shape suffixes: N groups, G answers a group, R answer tokens (padded), B rows, L tokens a row, K answer tokens in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rl.group_attention import Groups, GroupSpan

if TYPE_CHECKING:
    from rl.prompting import EncodedPrompt

RopeIndex = Callable[..., tuple[Tensor, Tensor]]
Answers = list[tuple[int, Tensor]]  # (index of an answer in [N·G], its tokens)


@dataclass(frozen=True)
class ModelInputs:
    """What a forward needs, and where in its output each answer token is predicted.

    `groups` say who sees whom in a shared row; None where every row is one prompt and one answer: order alone then says it,
    and padding comes last. `starts` are (row, first token) of every prompt laid out. `predictor_K` indexes the flattened
    [B·L] hidden states: the position whose output predicts answer token k. `place_K` indexes the flattened [N·G·R] answer
    tensors, so that results scatter back. `vision` are the forward's image arguments of all rows.
    """

    input_ids: Tensor
    mm_token_type_ids: Tensor
    position_ids: Tensor
    groups: Groups | None
    starts: tuple[tuple[int, int], ...]
    vision: Mapping[str, Tensor]
    predictor_K: Tensor
    target_K: Tensor
    place_K: Tensor

    def to(self, device: torch.device) -> ModelInputs:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        vision = {name: tensor.to(device, non_blocking=True) for name, tensor in self.vision.items()}
        return replace(self, **moved, vision=vision)


@dataclass(frozen=True)
class _Part:
    """A prompt and the answers that share it."""

    prompt: EncodedPrompt
    prompt_positions: Tensor  # [A, P], A rotary axes
    answers: Answers

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each answer."""
        return tuple(len(tokens) for _, tokens in self.answers)

    @property
    def length(self) -> int:
        return len(self.prompt.input_ids) + sum(self.lengths)


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


Rows = tuple[list[_Part], list[tuple[int, int]], "Groups | None"]  # parts, where each begins, who sees whom


def _one_shared_row(prompts: Sequence[EncodedPrompt], positions: list[Tensor], answers: list[Answers]) -> Rows:
    parts = [_Part(*each) for each in zip(prompts, positions, answers, strict=True) if each[2]]
    firsts = [0, *accumulate(part.length for part in parts)]
    spans = [GroupSpan(first, len(part.prompt.input_ids), part.lengths) for part, first in zip(parts, firsts, strict=False)]
    return parts, [(0, span.first) for span in spans], Groups(tuple(spans))


def _a_row_an_answer(prompts: Sequence[EncodedPrompt], positions: list[Tensor], answers: list[Answers]) -> Rows:
    groups = zip(prompts, positions, answers, strict=True)
    parts = [_Part(prompt, where, [answer]) for prompt, where, group in groups for answer in group]
    return parts, [(row, 0) for row in range(len(parts))], None


LAYOUTS = {"shared": _one_shared_row, "plain": _a_row_an_answer}


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
    parts, starts, groups = LAYOUTS[layout](prompts, positions, answers)
    if not parts:
        raise ValueError("a micro-batch needs at least one answer token")
    return _fill(parts, starts, groups, responses_NGR.shape[-1], multiple)


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


def _fill(
    parts: list[_Part], starts: list[tuple[int, int]], groups: Groups | None, max_response: int, multiple: int
) -> ModelInputs:
    longest = max(first + part.length for part, (_, first) in zip(parts, starts, strict=True))
    length = -(-longest // multiple) * multiple
    axes, num_rows = parts[0].prompt_positions.shape[0], starts[-1][0] + 1
    input_ids = torch.zeros(num_rows, length, dtype=torch.long)
    mm_token_type_ids = torch.zeros(num_rows, length, dtype=torch.long)
    position_ids = torch.zeros(axes, num_rows, length, dtype=torch.long)
    predictors, targets, places = [], [], []
    for part, (b, first) in zip(parts, starts, strict=True):
        at = first + len(part.prompt.input_ids)
        input_ids[b, first:at] = part.prompt.input_ids
        mm_token_type_ids[b, first:at] = part.prompt.mm_token_type_ids
        position_ids[:, b, first:at] = part.prompt_positions
        last_prompt, next_position = at - 1, int(part.prompt_positions.max()) + 1
        for index, tokens in part.answers:
            end = at + len(tokens)
            input_ids[b, at:end] = tokens
            position_ids[:, b, at:end] = torch.arange(next_position, next_position + len(tokens))
            predictors.append(b * length + torch.tensor([last_prompt, *range(at, end - 1)]))
            targets.append(tokens)
            places.append(index * max_response + torch.arange(len(tokens)))
            at = end
    return ModelInputs(
        input_ids=input_ids,
        mm_token_type_ids=mm_token_type_ids,
        position_ids=position_ids if axes > 1 else position_ids[0],
        groups=groups,
        starts=tuple(starts),
        vision=stack_vision([part.prompt for part in parts]),
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
