"""The papers' prompts, and how a sample becomes the chat messages and the answer text of a model family.

    chat_messages(sample, family, limits)  →  [{"role": "user", "content": [{"type": "image"}, {"type": "image"},
                                                {"type": "text", "text": "Image 1 is a full scene image. …"}]}]
    answer_text(sample, family, limits)    →  "[12, 30, 44, 60]"      in the frame that the family writes

Content items stand in the order of the sample's prompt parts, one item a part, so that a support box keeps its own item.
"""

from __future__ import annotations

import math
from typing import NotRequired, TypedDict

from data.box import Box
from data.families import ModelFamily, PixelLimits
from data.sample import ImagePart, PromptPart, Sample, SupportBoxPart, TextPart

LOCUS_QUESTION = (
    "Image 1 is a full scene image. Image 2 is a cropped region from Image 1. Please find where Image 2 is located in "
    "Image 1, and output the bounding box as [x1, y1, x2, y2] in pixel coordinates."
)
THINK_ANSWER_INSTRUCTION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think><answer> answer here </answer>."
)
LOCUS_PROMPT = f"{LOCUS_QUESTION}\n{THINK_ANSWER_INSTRUCTION}"

FOCUS_PROMPT = (
    "Locate the same object across the sequence of frames shown below. Your goal is to identify the target object "
    "consistently using the visual context provided. For the first T−1 frames, the bounding box of the object is already "
    "provided. Use this information and the visual context to predict where the same object appears in the final frame. "
    "Output the predicted bounding box for the last frame in the following format: "
    "<answer>[x_min, y_min, x_max, y_max]</answer>"
)

# What a warm start thinks when a sample brings no rationale of its own.
NEUTRAL_RATIONALE = "Image 2 matches one region of Image 1."


class ContentItem(TypedDict):
    """One item of a Hugging Face chat message."""

    type: str
    text: NotRequired[str]


class ChatMessage(TypedDict):
    role: str
    content: list[ContentItem]


def locus_prompt() -> tuple[PromptPart, ...]:
    """Scene, cue, question."""
    return (ImagePart(0), ImagePart(1), TextPart(LOCUS_PROMPT))


def focus_prompt(support_boxes: tuple[Box, ...]) -> tuple[PromptPart, ...]:
    """Instruction, then every support image with its box, then the query image (the last)."""
    parts: list[PromptPart] = [TextPart(FOCUS_PROMPT)]
    for index, box in enumerate(support_boxes):
        parts += [ImagePart(index), SupportBoxPart(index, box)]
    return (*parts, ImagePart(len(support_boxes)))


def box_text(box: Box) -> str:
    """`[x_min, y_min, x_max, y_max]` in integers of the box's frame; one thinner than a unit becomes a unit wide."""
    x1, y1, x2, y2 = box.rounded()
    if x2 <= x1:
        x1, x2 = math.floor(box.x1), math.ceil(box.x2)
    if y2 <= y1:
        y1, y2 = math.floor(box.y1), math.ceil(box.y2)
    return f"[{x1}, {y1}, {x2}, {y2}]"


def render_text(part: TextPart | SupportBoxPart, family: ModelFamily, limits: PixelLimits | None, sample: Sample) -> str:
    """The text of a prompt part: a support box is written in the frame of `family` for its own image."""
    if isinstance(part, TextPart):
        return part.text
    return box_text(part.box.to(family.answer_frame(sample.images[part.index], limits)))


def chat_messages(sample: Sample, family: ModelFamily, limits: PixelLimits | None = None) -> list[ChatMessage]:
    """One user message for a processor's `apply_chat_template`; the images themselves are passed beside it, in order."""
    content: list[ContentItem] = [
        {"type": "image"}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": render_text(part, family, limits, sample)}
        for part in sample.prompt
    ]
    return [{"role": "user", "content": content}]


def answer_text(sample: Sample, family: ModelFamily, limits: PixelLimits | None = None) -> str:
    """The target box as the family writes it, e.g. `[12, 30, 44, 60]`."""
    return box_text(sample.target.to(family.answer_frame(sample.images[sample.target_image], limits)))


def locus_response(sample: Sample, family: ModelFamily, limits: PixelLimits | None = None) -> str:
    """What a perfect LOCUS answer looks like; the thought is the sample's `rationale` if its metadata has one."""
    rationale = sample.metadata.get("rationale", NEUTRAL_RATIONALE)
    return f"<think> {rationale} </think>{focus_response(sample, family, limits)}"


def focus_response(sample: Sample, family: ModelFamily, limits: PixelLimits | None = None) -> str:
    """`<answer>[x_min, y_min, x_max, y_max]</answer>`, without a thought."""
    return f"<answer>{answer_text(sample, family, limits)}</answer>"
