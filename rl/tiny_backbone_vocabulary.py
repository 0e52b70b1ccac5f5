"""The tiny backbone's language: its special tokens, numbers, sentences and words, and its chat template.

A 1 M-parameter model on a CPU pays for every prompt token, so the sentences of the two papers' prompts, which never vary,
are one token each. Where a prompt is worded otherwise it falls back to whole words, then to bytes: every text round-trips.
"""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

# LLaVA-OneVision has marks of its own, and none around an image.
LLAVA_IMAGE = "<image>"
LLAVA_VIDEO = "<video>"
LLAVA_SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, LLAVA_IMAGE, LLAVA_VIDEO)

# Plain tokens, not special ones: decoding with skip_special_tokens must keep them, since the rewards read them.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# One token for every integer that a box can hold, in pixels or thousandths: four decisions a box, not twelve digits.
LARGEST_INTEGER = 1000
COORDINATE_SEPARATOR = ", "

SENTENCES = (
    "You are a helpful assistant.",
    # LOCUS
    "Image 1 is a full scene image.",
    " Image 2 is a cropped region from Image 1.",
    " Please find where Image 2 is located in Image 1, and output the bounding box as [x1, y1, x2, y2]"
    " in pixel coordinates.",
    "A conversation between User and Assistant.",
    " The user asks a question, and the Assistant solves it.",
    " The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.",
    " The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively,"
    " i.e., <think> reasoning process here </think><answer> answer here </answer>.",
    # FOCUS
    "Locate the same object across the sequence of frames shown below.",
    " Your goal is to identify the target object consistently using the visual context provided.",
    " For the first T−1 frames, the bounding box of the object is already provided.",
    " Use this information and the visual context to predict where the same object appears in the final frame.",
    " Output the predicted bounding box for the last frame in the following format:",
    "<answer>[x_min, y_min, x_max, y_max]</answer>",
)

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink", "white", "black", "brown", "gray")
PATTERNS = ("plain", "striped", "dotted", "checkered", "shaded")
SHAPES = ("disc", "square", "triangle", "diamond", "cross", "star", "ring", "hexagon", "heart", "pentagon")
OTHER_WORDS = (
    "system",
    "user",
    "assistant",
    "Picture",
    "Video",
    "the",
    "is",
    "a",
    "it",
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "center",
)

# Qwen2.5-VL-Instruct's template, video parts included.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# LLaVA-OneVision's template: all images first, then all texts, whatever their order in the message.
LLAVA_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for content in message['content'] if content['type'] == 'image' %}<image>{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'video' %}<video>{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ '\\n' + content['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words() -> list[str]:
    """Every word that must be one token, sorted."""
    spoken = {word.strip(".,:()[]<>/") for sentence in SENTENCES for word in sentence.replace("><", "> <").split()}
    letters = {word for word in spoken if word.isalpha()}
    return sorted(letters.union(COLORS, PATTERNS, SHAPES, OTHER_WORDS))
