"""Hostile completions: what models and their samplers really emit, and what a reward must survive. Used by rewards.check.

Each case is (kind, text). The kinds are the rows of the checker's table. Texts are deterministic: same seed, same cases.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

_BOX = "[10, 20, 110, 120]"
_ANSWER = f"<answer>{_BOX}</answer>"
_WHOLE = f"<think>It is on the left.</think>{_ANSWER}"
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Case(NamedTuple):
    kind: str
    text: str


def hostile_completions(seed: int = 0, fuzzed: int = 200) -> list[Case]:
    """Every case below, and `fuzzed` random mixtures of tags, numbers and noise."""
    cases = [*_well_formed(), *_structure(), *_numbers(), *_boxes(), *_characters(), *_size(), *_truncated()]
    return cases + list(_fuzz(random.Random(seed), fuzzed))


def _well_formed() -> Iterator[Case]:
    yield Case("well formed", _WHOLE)
    yield Case("well formed", f"  {_WHOLE}\n")
    yield Case("well formed", f"<think>\nLine one.\nLine two.\n</think>\n<answer>\n{_BOX}\n</answer>")
    yield Case("well formed", _ANSWER)
    yield Case("well formed", "<think></think><answer>[0.5,0.25,99.75,80]</answer>")


def _structure() -> Iterator[Case]:
    texts = [
        "",
        " ",
        "\n\n",
        "I cannot see it.",
        _BOX,
        f"The answer is {_BOX}.",
        f"{_ANSWER}{_ANSWER}",
        f"<answer>[1, 1, 2, 2]</answer>{_WHOLE}",
        f"<answer>{_ANSWER}</answer>",
        f"<think>{_ANSWER}</think>",
        f"<think>{_ANSWER}</think>{_ANSWER}",
        f"{_ANSWER}<think>late</think>",
        f"<think><think>twice</think></think>{_ANSWER}",
        f"{_WHOLE} I hope this helps!",
        f"Sure! {_WHOLE}",
        f"<think>a</think> so {_ANSWER}",
        f"<think>a{_ANSWER}",
        f"a</think>{_ANSWER}",
        f"</answer>{_BOX}<answer>",
        f"<ANSWER>{_BOX}</ANSWER>",
        f"<answer >{_BOX}</answer >",
        f"< answer>{_BOX}< /answer>",
        f"&lt;answer&gt;{_BOX}&lt;/answer&gt;",
        f"```<answer>{_BOX}</answer>```",
        f"<answer>```json\n{_BOX}\n```</answer>",
        f'<answer>{{"bbox_2d": {_BOX}}}</answer>',
        f"<answer>{_BOX}{_BOX}</answer>",
        f"<answer>[{_BOX}]</answer>",
        f"<answer>x = {_BOX}</answer>",
        f"<answer>{_BOX} pixels</answer>",
        "<answer></answer>",
        "<answer>|</answer>",
        "<|im_end|>",
        f"{_WHOLE}<|im_end|>",
        f"<|vision_start|><|image_pad|><|vision_end|>{_ANSWER}",
    ]
    return (Case("structure", text) for text in texts)


def _numbers() -> Iterator[Case]:
    words = "nan NaN inf -inf Infinity 1e3 1e400 1e-400 0x10 1_000 1. .5 1.2.3 --1 +-1 1/2 True None '10' 10px 10% 1,000"
    lengths = ["9" * 30, "9" * 400, "-" + "9" * 400, "0" * 500, "0." + "0" * 400 + "1"]
    for spelling in [*words.split(), "", "1 0", *lengths]:
        yield Case("numbers", f"<think>n</think><answer>[{spelling}, 20, 110, 120]</answer>")
        yield Case("numbers", f"<think>n</think><answer>[10, 20, {spelling}, 120]</answer>")
    for content in ("10, 20, 110", "10, 20, 110, 120, 130", "10 20 110 120", "10; 20; 110; 120", ""):
        yield Case("numbers", f"<think>n</think><answer>[{content}]</answer>")
    yield Case("numbers", "<think>n</think><answer>(10, 20, 110, 120)</answer>")


def _boxes() -> Iterator[Case]:
    boxes = [
        (110, 120, 10, 20),
        (10, 20, 10, 120),
        (10, 20, 110, 20),
        (0, 0, 0, 0),
        (-50, -50, -10, -10),
        (-50, -50, 50, 50),
        (0, 0, 10**9, 10**9),
        (10**9, 10**9, 10**9 + 1, 10**9 + 1),
        (-(10**300), -(10**300), 10**300, 10**300),
        (0, 0, 1, 1),
    ]
    return (Case("boxes", f"<think>b</think><answer>{list(box)}</answer>") for box in boxes)


def _characters() -> Iterator[Case]:
    texts = [
        "<answer>[١٠, ٢٠, ١١٠, ١٢٠]</answer>",
        "<answer>[１０, ２０, １１０, １２０]</answer>",
        "<answer>[²0, 20, 110, 120]</answer>",
        "<answer>［10, 20, 110, 120］</answer>",
        "<answer>[10， 20， 110， 120]</answer>",
        "\N{RIGHT-TO-LEFT OVERRIDE}" + _WHOLE,
        f"<answer>\N{ZERO WIDTH SPACE}{_BOX}</answer>",
        f"<ans\N{SOFT HYPHEN}wer>{_BOX}</answer>",
        "\N{ZERO WIDTH NO-BREAK SPACE}" + _WHOLE,
        f"<answer>{_BOX}\0</answer>",
        f"\0{_WHOLE}",
        f"<think>\ud800</think>{_ANSWER}",
        f"<think>{chr(0x10FFFF)}</think>{_ANSWER}",
        f"<think>\r\n\v\f\x85\u2028\u2029</think>{_ANSWER}",
        f"<think>{'e' + chr(0x301) * 1000}</think>{_ANSWER}",
        f"<think>%s %d {{}} {{0}} \\1 \\g<0> $(id) `id`</think>{_ANSWER}",
    ]
    return (Case("characters", text) for text in texts)


def _size() -> Iterator[Case]:
    """A megabyte each, most of them shaped to make a backtracking regular expression run for ever."""
    million = 1_000_000
    texts = [
        "a" * million,
        " " * million,
        "<think>" + "a" * million,
        f"<think>{'a ' * (million // 2)}</think>{_ANSWER}",
        "<answer>" * (million // 8),
        "<think></think>" * (million // 15),
        "<" * million,
        "<answer>[" + " " * million,
        "<answer>[" + "1" * million,
        "<answer>[" + "1," * (million // 2),
        "<answer>[" + "1" * million + ", 2, 3, 4]</answer>",
        "<answer>[" + "[" * million,
        _WHOLE + "\n" * million,
        _WHOLE + "\n" * million + "x",
        "<think>" * 1000 + "</think>" * 1000 + _ANSWER,
    ]
    return (Case("size", text) for text in texts)


def _truncated() -> Iterator[Case]:
    """An answer cut at every character, as max_tokens does."""
    return (Case("truncated", _WHOLE[:end]) for end in range(1, len(_WHOLE)))


def _fuzz(draw: random.Random, count: int) -> Iterator[Case]:
    pieces = (*_TAGS, _BOX, "[", "]", ", ", "12", "-3.5", " ", "\n", "word", "é", "\0", "nan")
    for _ in range(count):
        yield Case("fuzzed", "".join(draw.choices(pieces, k=draw.randint(1, 25))))
