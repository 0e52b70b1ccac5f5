"""Which part of its sample every prompt token renders: found in the chat text, carried over to the tokens by their offsets.

    chat text   <|im_start|>user\n │ Locate the … │ <|vision_start|> │ <|image_pad|> │ <|vision_end|> │ [1, 2, 3, 4] │ …
    part                 −1        │      0       │        −1        │       1       │       −1       │      2       │ …

The template's own text is known from rendering it once around marks that stand for the parts' texts, so that a part is
found where it is, however often its words occur elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.prompts import ChatMessage, ContentItem
from data.sample import ImagePart, Sample, SupportBoxPart

NO_PART = -1
Render = Callable[[list[ChatMessage]], str]
Span = tuple[int, int]


def part_spans(text: str, messages: list[ChatMessage], render: Render, placeholder: str) -> list[Span]:
    """(start, end) of every part in the chat text `render(messages)`; an image's is that of its `placeholder`.

    Raises ValueError when the template does not write the parts in their order, or alters one.
    """
    (message,) = messages
    gaps = _template_text(message, render, placeholder)
    spans, at = [], 0
    for index, (gap, item) in enumerate(zip(gaps, message["content"], strict=True)):
        start = at + len(gap)
        rendered = item.get("text", placeholder)
        at = start + len(rendered)
        if text[start - len(gap) : at] != gap + rendered:
            raise ValueError(
                f"the chat template alters part {index} of the prompt: expected {rendered[:60]!r} at character {start}, "
                f"found {text[start:at][:60]!r}"
            )
        spans.append((start, at))
    return spans


def _template_text(message: ChatMessage, render: Render, placeholder: str) -> list[str]:
    """What the template writes before each part."""
    # Characters of Unicode's private use area: no template strips them, and no template holds them.
    marks = [None if item["type"] == "image" else f"\ue000{index}\ue001" for index, item in enumerate(message["content"])]
    content: list[ContentItem] = [{"type": "image"} if mark is None else {"type": "text", "text": mark} for mark in marks]
    marked = render([{"role": message["role"], "content": content}])
    gaps, at = [], 0
    for index, mark in enumerate(mark or placeholder for mark in marks):
        found = marked.find(mark, at)
        if found < 0:
            raise ValueError(
                f"the chat template does not keep the order of the prompt's parts: part {index} of {len(marks)} "
                f"({message['content'][index]['type']}) does not follow the one before it"
            )
        gaps.append(marked[at:found])
        at = found + len(mark)
    return gaps


def token_parts(offsets: Sequence[Span] | Tensor, spans: Sequence[Span], sample: Sample) -> Tensor:
    """The part of every token, int16 [tokens]: an index into `sample.prompt`, or `NO_PART` for the template's own.

    A token with characters of several parts belongs to the support box if it has any of one, else to the first part.
    """
    starts, ends = torch.as_tensor(offsets, dtype=torch.long).reshape(-1, 2).unbind(-1)
    ends = torch.maximum(ends, starts + 1)
    parts = torch.full(starts.shape, NO_PART, dtype=torch.int16)
    boxes = box_parts(sample)
    # The last to write wins: boxes after the others, earlier parts after later ones.
    for index in sorted(range(len(spans)), key=lambda index: (index in boxes, -index)):
        start, end = spans[index]
        parts[(starts < end) & (ends > start)] = index
    return parts


def box_parts(sample: Sample) -> list[int]:
    """Indices into `sample.prompt` of the support boxes."""
    return [index for index, part in enumerate(sample.prompt) if isinstance(part, SupportBoxPart)]


def image_part(sample: Sample, image: int) -> int:
    """The index into `sample.prompt` of the part that shows `sample.images[image]`."""
    return next(i for i, part in enumerate(sample.prompt) if isinstance(part, ImagePart) and part.index == image)
