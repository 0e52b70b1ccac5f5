"""What every token of a FOCUS sequence is: query image, support image, box, category name, or other; and the two prompts.

    category=out    <instruction> <image 1>                [12, 30, 44, 60] … <query image>
    category=in     <instruction> <image 1> <ref>mug</ref> [12, 30, 44, 60] … <query image> <ref>mug</ref>

The second is how IPLoc names the object, after every image (github.com/SivanDoveh/IPLoc, `<ref>{element}</ref>`), inside
FOCUS's own prompt, so that the two differ in the name alone. Category tokens are those of the name, not of the mark around
it. "Other" is the rest: instruction, chat template, the marks around images, and the answer's own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.sample import ImagePart, PromptPart, Sample, SupportBoxPart, TextPart
from rl.prompting import EncodedPrompt

QUERY, SUPPORT, BOX, CATEGORY, OTHER = range(5)
# Names as analysis.json writes them, in the order of the numbers above.
CLASSES = ("query_image", "support_images", "box_tokens", "category_tokens", "other")
LABELS = ("query image", "support images", "box tokens", "category tokens", "other")

_BEFORE, _AFTER = "<ref>", "</ref>"


@dataclass(frozen=True)
class NamedPrompt:
    """A sample as it is asked; `name_parts` are the indices into its prompt of the parts that hold the category's name."""

    sample: Sample
    name_parts: tuple[int, ...] = ()


def without_category(sample: Sample) -> NamedPrompt:
    return NamedPrompt(sample)


def with_category(sample: Sample) -> NamedPrompt:
    """The sample with its category's name after every image. Raises ValueError for a sample without a category."""
    category = sample.metadata.get("category")
    if not isinstance(category, str) or not category.strip():
        raise ValueError(
            f"sample {sample.id} has no category in its metadata (found {category!r}); use category=out for this dataset"
        )
    parts: list[PromptPart] = []
    places: list[int] = []
    for part in sample.prompt:
        parts.append(part)
        if isinstance(part, ImagePart):
            places.append(len(parts))
            parts.append(TextPart(f"{_BEFORE}{category.strip()}{_AFTER}"))
    return NamedPrompt(replace(sample, prompt=tuple(parts)), tuple(places))


# The prompts that each value of the option `category` compares, by the name they have in analysis.json.
PROMPTS = {
    "out": {"out": without_category},
    "in": {"in": with_category},
    "both": {"out": without_category, "in": with_category},
}


def token_classes(asked: NamedPrompt, encoded: EncodedPrompt, answer_tokens: int, tokenizer: Any) -> Tensor:
    """The class of every token of prompt and answer, int64 [P + answer tokens]."""
    sample = asked.sample
    class_of_part = torch.tensor([_class(part, sample) for part in sample.prompt] + [OTHER])  # the last: no part
    class_P = class_of_part[encoded.part_P.long()]
    for part in asked.name_parts:
        class_P[_name_tokens(part, asked, encoded, tokenizer)] = CATEGORY
    return torch.cat([class_P, torch.full((answer_tokens,), OTHER)])


def _class(part: PromptPart, sample: Sample) -> int:
    match part:
        case ImagePart(index):
            return QUERY if index == sample.target_image else SUPPORT
        case SupportBoxPart():
            return BOX
        case TextPart():
            return OTHER


def _name_tokens(part: int, asked: NamedPrompt, encoded: EncodedPrompt, tokenizer: Any) -> Tensor:
    """Positions of the tokens of `part` that hold a character of the name: a token may hold `>m` of `<ref>mug`."""
    written = asked.sample.prompt[part]
    assert isinstance(written, TextPart)
    alone = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    named = [
        place
        for place, (start, end) in enumerate(alone["offset_mapping"])
        if end > len(_BEFORE) and start < len(written.text) - len(_AFTER)
    ]
    # An image's mark stands before the part, so it is cut into tokens as it is alone, but for its very end.
    positions = (encoded.part_P == part).nonzero()[:, 0][named]
    assert encoded.input_ids[positions].tolist() == [alone["input_ids"][place] for place in named]
    return positions
