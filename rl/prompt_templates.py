"""Chat templates for families whose published one does not keep the order of a prompt's parts.

LLaVA-OneVision's own writes all images before all texts, and so tears every support image from its box. The one here writes
a part where the prompt has it, and is the same text where the images come first anyway.
"""

from __future__ import annotations

# By the name of a `data.families.ModelFamily`.
ORDERED_TEMPLATES = {
    "LLaVA-OneVision": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }} "
        "{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}<image>{% else %}{{ '\\n' + content['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
