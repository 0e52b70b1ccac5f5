"""The split: classes of a FOCUS prompt's tokens, and shares by hand for a model that attends to everything alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.sample import TextPart
from rl.analysis.split import mean_split, split_attention
from rl.analysis.stream import AnswerAttention
from rl.analysis.token_classes import BOX, CATEGORY, OTHER, QUERY, SUPPORT, token_classes, with_category, without_category
from rl.prompting import PromptEncoder
from tests.rl.analysis_case import build_reader, focus_samples

ANSWER = "<answer>[12, 30, 44, 60]</answer>"


def test_classes_of_a_prompt_without_and_with_the_category(tiny_model_dir: Path) -> None:
    """112 × 84 pixels are 4 × 3 merged cells; `[a, b, c, d]` is 9 tokens of the tiny vocabulary; a shape's name is one."""
    encoder, sample = PromptEncoder(str(tiny_model_dir)), focus_samples(1)[0]
    for prompt, names in ((without_category, 0), (with_category, 3)):
        named = prompt(sample)
        encoded = encoder.encode(named.sample)
        class_L = token_classes(named, encoded, 5, encoder.tokenizer)
        assert len(class_L) == len(encoded.input_ids) + 5
        assert [int((class_L == c).sum()) for c in (QUERY, SUPPORT, BOX, CATEGORY)] == [12, 24, 18, names]
        assert class_L[-5:].tolist() == [OTHER] * 5
        images = (encoded.input_ids == encoder.image_token_id).nonzero()[:, 0]
        assert class_L[images].tolist() == [SUPPORT] * 24 + [QUERY] * 12
        boxes = encoder.tokenizer.decode(encoded.input_ids[class_L[:-5] == BOX])
        assert boxes.count("[") == boxes.count("]") == 2
        name = encoder.tokenizer.decode(encoded.input_ids[class_L[:-5] == CATEGORY])
        assert name == sample.metadata["category"] * names


def test_the_name_stands_after_every_image_as_iploc_writes_it(tiny_model_dir: Path) -> None:
    encoder, sample = PromptEncoder(str(tiny_model_dir)), focus_samples(1)[0]
    named = with_category(sample)
    mark = f"<ref>{sample.metadata['category']}</ref>"
    assert encoder.text(named.sample).count(f"<|vision_end|>{mark}") == 3
    assert [part for part in named.sample.prompt if part != TextPart(mark)] == list(sample.prompt)
    assert with_category(replace(sample, metadata={"category": " two words "})).sample.prompt[2] == TextPart(
        "<ref>two words</ref>"
    )


@pytest.mark.parametrize("category", ["zebra", "two words", "x", "Ärmel", "t-shirt 2"])
def test_a_name_of_several_tokens_is_found_whole(tiny_model_dir: Path, category: str) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    named = with_category(replace(focus_samples(1)[0], id=category, metadata={"category": category}))
    encoded = encoder.encode(named.sample)
    class_L = token_classes(named, encoded, 0, encoder.tokenizer)
    assert encoder.tokenizer.decode(encoded.input_ids[class_L == CATEGORY]) == category * 3


@pytest.mark.parametrize("metadata", [{}, {"category": None}, {"category": " "}, {"category": 7}])
def test_a_sample_without_a_category_is_refused(metadata: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"video/0 has no category.*category=out"):
        with_category(replace(focus_samples(1)[0], metadata=metadata))


def test_uniform_attention_gives_the_counts(tiny_model_dir: Path) -> None:
    """q = 0: row i pays 1/(i+1) to each of its i+1 tokens, so a class of n tokens before the answer gets n/(i+1)."""
    reader = build_reader(tiny_model_dir, sharpen=0.0)
    encoder = reader.encoder
    sample = focus_samples(1)[0]
    answer = encoder.answer_tokens(ANSWER)[:-1]
    named = with_category(sample)
    encoded = encoder.encode(named.sample)
    attention = reader.attention(encoded, answer)
    split = split_attention(attention, token_classes(named, encoded, len(answer), encoder.tokenizer))
    prompt = len(encoded.input_ids)
    lengths = [prompt + row for row in range(len(answer))]  # what each row sees, itself included
    inverse = sum(1 / length for length in lengths) / len(lengths)
    for class_, tokens in ((QUERY, 12), (SUPPORT, 24), (BOX, 18), (CATEGORY, 3)):
        assert split.tokens_C[class_] == tokens
        for layer in range(3):
            assert float(split.shares_MC[layer, class_]) == pytest.approx(tokens * inverse, rel=1e-5)
            assert float(split.per_token_MC[layer, class_]) == pytest.approx(inverse, rel=1e-5)
    others = [length - 57 for length in lengths]
    assert float(split.tokens_C[OTHER]) == pytest.approx(sum(others) / len(others))
    expected = sum(n / length for n, length in zip(others, lengths, strict=True)) / len(lengths)
    assert split.shares_MC[:, OTHER].tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_shares_by_hand_sum_to_one_and_average_over_answers() -> None:
    """Two layers, five tokens, the last two predict the answer: numbers chosen, sums by hand."""
    mean = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25], [0.5, 0.0, 0.25, 0.25, 0.0]])
    attention = AnswerAttention(torch.tensor([3, 4]), mean, mean)
    split = split_attention(attention, torch.tensor([OTHER, QUERY, BOX, QUERY, OTHER]))
    assert split.shares_MC[0].tolist() == pytest.approx([0.35, 0.0, 0.3, 0.0, 0.35])
    assert split.shares_MC[1].tolist() == pytest.approx([0.25, 0.0, 0.25, 0.0, 0.5])
    assert split.shares_MC.sum(-1).tolist() == pytest.approx([1.0, 1.0])
    assert split.tokens_C.tolist() == [2.0, 0.0, 1.0, 0.0, 1.5]  # row 3 sees one "other", row 4 two
    assert split.per_token_MC[:, SUPPORT].isnan().all()
    other = split_attention(attention, torch.tensor([OTHER, BOX, BOX, BOX, OTHER]))
    both = mean_split([split, other])
    assert both.shares_MC[0].tolist() == pytest.approx([0.175, 0.0, 0.475, 0.0, 0.35])
    assert both.tokens_C.tolist() == [1.0, 0.0, 2.0, 0.0, 1.5]
