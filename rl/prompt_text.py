"""A prompt's chat text as token ids, and the part of its sample that each token renders: worked out once for a text.

    sample ─► content: kind and text of its parts ─┬─► chat text ─► ids, one placeholder an image
                                                   └─► part of every id

All prompts of LOCUS have one content; those of FOCUS have one each, which learner or sampler need several times a step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from data.families import ModelFamily, PixelLimits
from data.prompts import ChatMessage, chat_messages
from data.sample import Sample
from rl.prompt_parts import part_spans, token_parts

KEPT_TEXTS = 1024

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values of the last `size` keys that were asked for. One is made at a time: a tokenizer serves one thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._changing = threading.RLock()

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._changing:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > self.size:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]


@dataclass(frozen=True)
class ChatText:
    """`ids_T` (int64) of `text`, the characters of each [T, 2], and at which of them the images' placeholders are."""

    text: str
    ids_T: Tensor
    offsets_T2: Tensor
    images: Tensor


class PromptTexts:
    """Of one processor's chat template and tokenizer; support boxes are written as `family` writes them."""

    def __init__(self, processor: Any, family: ModelFamily, limits: PixelLimits | None, image_token_id: int) -> None:
        self.processor, self.family, self.limits, self.image_token_id = processor, family, limits, image_token_id
        self._texts: Recent[ChatText] = Recent(KEPT_TEXTS)
        self._parts: Recent[Tensor] = Recent(KEPT_TEXTS)
        self._marked: Recent[str] = Recent(KEPT_TEXTS)

    def of(self, sample: Sample) -> ChatText:
        """The chat text up to where the answer begins."""
        messages = chat_messages(sample, self.family, self.limits)
        return self._texts.of(_content(messages), lambda: self._tokenize(messages))

    def parts_of(self, sample: Sample) -> Tensor:
        """The part of every id, as `token_parts` says. Raises ValueError where the template hides a part."""
        messages = chat_messages(sample, self.family, self.limits)
        kinds = tuple(type(part) for part in sample.prompt)
        return self._parts.of((kinds, _content(messages)), lambda: self._find_parts(sample, messages))

    def _tokenize(self, messages: list[ChatMessage]) -> ChatText:
        text = self._render(messages)
        tokens = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids_T = torch.tensor(tokens["input_ids"], dtype=torch.long)
        offsets_T2 = torch.tensor(tokens["offset_mapping"], dtype=torch.long)
        return ChatText(text, ids_T, offsets_T2, (ids_T == self.image_token_id).nonzero()[:, 0])

    def _find_parts(self, sample: Sample, messages: list[ChatMessage]) -> Tensor:
        chat = self.of(sample)
        placeholder = self.processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return token_parts(chat.offsets_T2, part_spans(chat.text, messages, self._render_marked, placeholder), sample)

    def _render_marked(self, messages: list[ChatMessage]) -> str:
        """The template around marks, which is the same for all prompts of as many parts."""
        return self._marked.of(_content(messages), lambda: self._render(messages))

    def _render(self, messages: list[ChatMessage]) -> str:
        text: str = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text


def _content(messages: list[ChatMessage]) -> Hashable:
    (message,) = messages
    return tuple(item.get("text") for item in message["content"])
