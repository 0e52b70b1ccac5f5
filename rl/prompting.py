"""Prompt encoding, one for sampler and learner: a sample's chat text, its token ids, its pixels, and its answer's frame.

    Sample ──chat template──► text ─┬─► vLLM renders text + images itself ──► prompt_token_ids ─┐ must be equal:
                                    └─► encode: tokenizer, image processor ─► input_ids ────────┘ the sampler checks

What the Hugging Face processor does in one call is done here in its two halves: the text's half once for a text, the images'
half as its image processor would. That the halves make the whole processor's ids, its first prompt shows every encoder.
The pixel limits are read once, from the run or from the processor's own file, and given to both sides explicitly, so that
an image is the same number of tokens everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from data.box import Frame
from data.families import ModelFamily, PixelLimits, family_for
from data.sample import Sample
from rewards.score import Completion
from rl.prompt_cache import KeptPrompts
from rl.prompt_images import IMAGE_TOKENS
from rl.prompt_parts import box_parts, image_part
from rl.prompt_pixels import vision_way
from rl.prompt_templates import ORDERED_TEMPLATES
from rl.prompt_text import ChatText, PromptTexts

if TYPE_CHECKING:
    from rl.config import ModelConfig

# Bytes a rank. An image token of Qwen2.5-VL is 18.8 kB of pixels: of three images of 640 × 480 (391 tokens each) 24 prompts
# fit, of five images of 1,280 tokens four.
CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model's forward takes it. P tokens after image expansion; images in prompt order.

    `vision` are the forward's image arguments by name, empty for a prompt without images:

        Qwen-VL            pixel_values [patches, channels × temporal × patch²] fp32, image_grid_thw [images, 3] in patches
        LLaVA-OneVision    pixel_values [images, tiles, 3, H, W] fp32, image_sizes [images, 2], batch_num_images [1]

    `mm_token_type_ids` is 1 at image tokens, 0 elsewhere. `part_P` (int16) is the index into `sample.prompt` of the part
    that a token renders, −1 for the chat template's own tokens, the marks around an image among them.
    """

    input_ids: Tensor
    part_P: Tensor
    mm_token_type_ids: Tensor
    vision: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.vision.values())

    @property
    def pixel_values(self) -> Tensor | None:
        return self.vision.get("pixel_values")

    @property
    def image_grid_thw(self) -> Tensor | None:
        """None for a prompt without images, and for a family that cuts tiles."""
        return self.vision.get("image_grid_thw")

    def box_mask(self, sample: Sample) -> Tensor:
        """Bool [P]: the tokens of the support boxes' text."""
        return torch.isin(self.part_P, torch.tensor(box_parts(sample), dtype=self.part_P.dtype))

    def image_mask(self, sample: Sample, image: int) -> Tensor:
        """Bool [P]: the image tokens of `sample.images[image]`."""
        return self.part_P == image_part(sample, image)

    def query_image_mask(self, sample: Sample) -> Tensor:
        """Bool [P]: the image tokens of the image that the answer is about."""
        return self.image_mask(sample, sample.target_image)

    def resized_sizes(self, patch: int) -> tuple[tuple[int, int], ...]:
        """(width, height) in pixels of every image after the processor's resize; empty for a family that cuts tiles."""
        if self.image_grid_thw is None:
            return ()
        return tuple((int(width) * patch, int(height) * patch) for _, height, width in self.image_grid_thw.tolist())


class PromptEncoder:
    """The processor of a model folder, with the run's pixel limits; `family` defaults to that of the model's own type.

    `banned_token_ids` are ids that must not appear in an answer, because a forward would look for an image behind them;
    `eos_token_ids` end an answer.
    """

    def __init__(
        self,
        model_path: str,
        family: ModelFamily | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        config = AutoConfig.from_pretrained(model_path)
        self.family = family or family_for(config.model_type)
        self.processor: Any = AutoProcessor.from_pretrained(model_path)
        self.tokenizer: Any = self.processor.tokenizer
        self.processor.chat_template = ORDERED_TEMPLATES.get(self.family.name, self.processor.chat_template)
        self.limits = self._set_limits(min_pixels, max_pixels)
        self.opening = _opening(self.processor)
        self.image_token_id: int = config.image_token_id
        self.eos_token_ids = _eos_token_ids(model_path, self.tokenizer)
        self.banned_token_ids = _vision_token_ids(config, self.tokenizer)
        self.texts = PromptTexts(self.processor, self.family, self.limits, self.image_token_id)
        self._kept: KeptPrompts[EncodedPrompt] = KeptPrompts(cache_bytes)
        self._vision_of = vision_way(self.processor.image_processor)
        self._compared = False

    @classmethod
    def of(cls, model: ModelConfig) -> PromptEncoder:
        return cls(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)

    def _set_limits(self, min_pixels: int | None, max_pixels: int | None) -> PixelLimits | None:
        """The limits in force: the run's where it sets them, the processor's own elsewhere. None for tiling families."""
        if self.family.size_rule != "smart_resize":
            if min_pixels or max_pixels:
                raise ValueError(
                    f"{self.family.name} cuts images into tiles and takes no min_pixels or max_pixels; leave them out"
                )
            return None
        image_processor = self.processor.image_processor
        own = image_processor.size
        limits = PixelLimits(min_pixels or own["shortest_edge"], max_pixels or own["longest_edge"])
        image_processor.size = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
        return limits

    @property
    def mm_processor_kwargs(self) -> dict[str, int]:
        """The same limits in the words of vLLM's `mm_processor_kwargs`."""
        return {} if self.limits is None else {"min_pixels": self.limits.min_pixels, "max_pixels": self.limits.max_pixels}

    def text(self, sample: Sample) -> str:
        """The chat text up to where the answer begins; one placeholder an image."""
        return self.texts.of(sample).text

    def input_ids(self, sample: Sample) -> list[int]:
        """The prompt's ids after image expansion, without touching a pixel: what `encode` would give.

        Raises ValueError when the text holds another number of image placeholders than the sample has images (a
        placeholder typed into a question, say), and where the processor refuses an image's shape.
        """
        chat = self.texts.of(sample)
        ids: list[int] = chat.ids_T.repeat_interleave(self._repeats(sample, chat)).tolist()
        return ids

    def prompt_length(self, sample: Sample) -> int:
        """Tokens of the prompt after image expansion. Raises as `input_ids` does."""
        return int(self._repeats(sample, self.texts.of(sample)).sum())

    def _repeats(self, sample: Sample, chat: ChatText) -> Tensor:
        """How often each id of the chat text stands in the prompt: an image's number of tokens, 1 for any other."""
        placeholders = len(chat.images)
        if placeholders != len(sample.images):
            raise ValueError(
                f"sample {sample.id}: the prompt text has {placeholders} image placeholders for {len(sample.images)} images"
            )
        repeats = torch.ones_like(chat.ids_T)
        if sample.images:
            sizes = [(image.height, image.width) for image in sample.images]
            repeats[chat.images] = torch.tensor(IMAGE_TOKENS[self.family.size_rule](self.processor, sizes))
        return repeats

    def answer_tokens(self, text: str) -> list[int]:
        """A given answer's ids, with the token that ends the turn: what a sampler that wrote it would have returned."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def decode(self, tokens: Sequence[int]) -> str:
        """An answer's text without the token that ends it. Special tokens inside it show, so no reward overlooks them."""
        ended = bool(tokens) and tokens[-1] in self.eos_token_ids
        text: str = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False)
        return text

    def completion(self, sample: Sample, text: str) -> Completion:
        """What a reward sees of an answer: the assistant's whole turn, and the frame to read its box in."""
        return Completion(self.opening + text, self.answer_frame(sample))

    def answer_frame(self, sample: Sample) -> Frame:
        """The frame in which this model writes a box of the sample's target image."""
        return self.family.answer_frame(sample.images[sample.target_image], self.limits)

    def encode(self, sample: Sample, keep: bool = True) -> EncodedPrompt:
        """The prompt with its images decoded and processed; kept for a next call if there is room, or let go if it was kept.

        Raises ValueError if an image does not decode, or where the chat template hides a part.
        """
        key = (sample.id, sample.images, sample.prompt)
        encoded = self._kept.take(key) or self._encode(sample)
        if keep:
            self._kept.put(key, encoded)
        return encoded

    def forget(self) -> None:
        """Let go all that is kept."""
        self._kept.clear()

    def _encode(self, sample: Sample) -> EncodedPrompt:
        chat = self.texts.of(sample)
        repeats = self._repeats(sample, chat)
        input_ids = chat.ids_T.repeat_interleave(repeats)
        part_P = self.texts.parts_of(sample).repeat_interleave(repeats)
        images = [image.open() for image in sample.images]
        if not self._compared:
            self._compare(sample, images, input_ids)
        mm_token_type_ids = (input_ids == self.image_token_id).long()
        vision = self._vision_of(self.processor.image_processor, images) if images else {}
        return EncodedPrompt(input_ids, part_P, mm_token_type_ids, vision)

    def _compare(self, sample: Sample, images: list[Image], input_ids: Tensor) -> None:
        """Raises ValueError when the whole processor makes other ids of a prompt than its tokenizer and arithmetic."""
        inputs = self.processor(text=[self.text(sample)], images=[images] if images else None, return_tensors="pt")
        if not torch.equal(inputs["input_ids"][0], input_ids):
            raise ValueError(f"sample {sample.id}: the processor's ids are not the tokenizer's with the images expanded")
        self._compared = True


def _opening(processor: Any) -> str:
    """What the chat template writes into the assistant's turn before the model does, without the blanks after it."""
    turn = [{"role": "user", "content": [{"type": "text", "text": "."}]}]
    asked, ready = (
        processor.apply_chat_template(turn, add_generation_prompt=ready, tokenize=False) for ready in (False, True)
    )
    found = re.search("<think>", ready.removeprefix(asked))
    return "" if found is None else ready.removeprefix(asked)[found.start() :].rstrip()


def _eos_token_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a turn: generation_config.json's where the folder has one, and the tokenizer's own."""
    try:
        stated = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the folder has no generation_config.json
        stated = None
    ids = stated if isinstance(stated, list) else [stated]
    return tuple(sorted({id for id in (*ids, tokenizer.eos_token_id) if id is not None}))


def _vision_token_ids(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Placeholders and marks of images, videos and audio: those the config names, and those the tokenizer adds."""
    media = ("image", "video", "vision", "audio")
    named = {
        value
        for key, value in config.to_dict().items()
        if isinstance(value, int)
        and key.startswith(media)
        and key.endswith(("_token_id", "_token_index", "start_id", "end_id"))
    }
    # Only marks like <|image_pad|> or <image>: an ordinary added word may well speak of an image.
    marks = {
        id: token.content for id, token in tokenizer.added_tokens_decoder.items() if re.fullmatch("<.+>", token.content)
    }
    added = {id for id, mark in marks.items() if any(word in mark for word in media)}
    return tuple(sorted(named | added))
