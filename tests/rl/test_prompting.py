"""Prompt encoding: ids without pixels equal the processor's, frames equal its resize, limits and placeholders are known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.box import Frame
from data.families import FAMILIES, PixelLimits
from data.sample import EncodedImage, Sample, TextPart
from rl.config import ModelConfig
from rl.prompting import PromptEncoder

UNIT = 28 * 28
LIMITS = [(None, None), (4 * UNIT, 9 * UNIT), (1 * UNIT, 100 * UNIT), (64 * UNIT, 64 * UNIT)]


@pytest.mark.parametrize(("min_pixels", "max_pixels"), LIMITS)
def test_lengths_and_frames_equal_the_processors(
    tiny_model_dir: Path, tiny_samples: list[Sample], min_pixels: int | None, max_pixels: int | None
) -> None:
    encoder = PromptEncoder(str(tiny_model_dir), min_pixels=min_pixels, max_pixels=max_pixels)
    for sample in tiny_samples:
        encoded = encoder.encode(sample)
        assert encoded.input_ids.tolist() == encoder.input_ids(sample)
        assert encoder.prompt_length(sample) == len(encoded.input_ids)
        assert torch.equal(encoded.mm_token_type_ids == 1, encoded.input_ids == encoder.image_token_id)
        assert encoded.pixel_values is not None
        sizes = encoded.resized_sizes(encoder.family.patch)
        assert len(encoded.pixel_values) == sum(width * height for width, height in sizes) // encoder.family.patch**2
        assert encoder.answer_frame(sample) == Frame.resized(*sizes[sample.target_image])


def test_limits_are_the_runs_or_the_processors_own(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    own = PromptEncoder.of(ModelConfig(path=str(tiny_model_dir)))
    narrow = PromptEncoder.of(ModelConfig(path=str(tiny_model_dir), max_pixels=5 * UNIT))
    assert own.limits is not None and narrow.limits == PixelLimits(own.limits.min_pixels, 5 * UNIT)
    assert narrow.mm_processor_kwargs == {"min_pixels": own.limits.min_pixels, "max_pixels": 5 * UNIT}
    assert narrow.prompt_length(tiny_samples[3]) < own.prompt_length(tiny_samples[3])


def test_a_family_of_thousandths_answers_in_thousandths(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    encoder = PromptEncoder(str(tiny_model_dir), family=FAMILIES["qwen2_vl"])
    assert encoder.answer_frame(tiny_samples[0]) == Frame.thousandths()


def test_placeholders_are_banned_and_words_are_not(tiny_model_dir: Path) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    banned = {encoder.tokenizer.convert_ids_to_tokens(token) for token in encoder.banned_token_ids}
    assert banned == {"<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"}
    assert {encoder.tokenizer.convert_ids_to_tokens(token) for token in encoder.eos_token_ids} == {
        "<|im_end|>",
        "<|endoftext|>",
    }


def test_an_answer_survives_tokens_and_back(tiny_model_dir: Path) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    answer = "<think> The cue is red. </think><answer>[12, 30, 44, 60]</answer>"
    tokens = encoder.answer_tokens(answer)
    assert tokens[-1] in encoder.eos_token_ids
    assert encoder.decode(tokens) == encoder.decode(tokens[:-1]) == answer
    start = encoder.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encoder.decode([start, *tokens]) == "<|im_start|>" + answer


def test_a_placeholder_in_the_question_is_refused(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    sample = replace(tiny_samples[0], prompt=(*tiny_samples[0].prompt, TextPart("<|image_pad|>")))
    with pytest.raises(ValueError, match=r"tiny-0.* 3 image placeholders for 2 images"):
        encoder.input_ids(sample)


def test_a_broken_image_is_a_value_error(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    whole = tiny_samples[0].images[1]
    assert whole.encoded is not None
    broken = EncodedImage(whole.width, whole.height, encoded=whole.encoded[:-200])
    with pytest.raises(ValueError, match="cannot be decoded"):
        encoder.encode(replace(tiny_samples[0], images=(tiny_samples[0].images[0], broken)))


def test_encodings_are_kept_within_their_bytes_and_never_mixed_up(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    first, second, third = tiny_samples[:3]
    encoder = PromptEncoder(str(tiny_model_dir))
    kept = encoder.encode(first)
    assert encoder.encode(first) is kept
    same_id = replace(second, id=first.id)
    assert encoder.encode(same_id).input_ids.tolist() == encoder.input_ids(second)
    room_for_two = max(encoder.encode(a).nbytes + encoder.encode(b).nbytes for a, b in [(first, second), (second, third)])
    bounded = PromptEncoder(str(tiny_model_dir), cache_bytes=room_for_two)
    oldest = bounded.encode(first)
    recent = bounded.encode(second)
    bounded.encode(third)
    assert bounded.encode(second) is recent
    assert bounded.encode(first) is not oldest


def test_a_thought_that_the_template_opens_is_part_of_the_turn(
    tiny_model_dir: Path, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    """Qwen3-VL-Thinking's template ends in `<think>`; a reward has to see the tag that the model continues."""
    thinking = tmp_path / "thinking"
    shutil.copytree(tiny_model_dir, thinking)
    template = thinking / "chat_template.jinja"
    start = "<|im_start|>assistant\n"
    assert start in template.read_text()
    template.write_text(template.read_text().replace(start, f"{start}<think>\n"))
    sample = tiny_samples[0]
    answer = "left</think><answer>[1, 2, 3, 4]</answer>"
    assert PromptEncoder(str(thinking)).completion(sample, answer).text == f"<think>{answer}"
    plain = PromptEncoder(str(tiny_model_dir))
    assert plain.completion(sample, answer).text == answer
    assert plain.completion(sample, answer).frame == plain.answer_frame(sample)
