"""Prompt encoding: ids without pixels equal the processor's, frames equal its resize, limits and placeholders are known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.box import Box, Frame
from data.families import FAMILIES, PixelLimits
from data.prompts import focus_prompt, render_text
from data.sample import EncodedImage, ImagePart, PromptPart, Sample, SupportBoxPart, TextPart
from rl.config import ModelConfig
from rl.prompt_images import IMAGE_TOKENS
from rl.prompt_parts import token_parts
from rl.prompt_pixels import qwen_vision
from rl.prompt_text import Recent
from rl.prompting import EncodedPrompt, PromptEncoder
from rl.tiny_backbone import write
from tests.rl.families_case import ARCHITECTURES, family_samples
from tests.rl.pictures import png

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


def test_what_is_encoded_for_the_last_time_is_let_go(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    kept = encoder.encode(tiny_samples[0])
    assert encoder.encode(tiny_samples[0], keep=False) is kept
    again = encoder.encode(tiny_samples[0], keep=False)
    assert again is not kept and encoder.encode(tiny_samples[0], keep=False) is not again


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_two_halves_make_what_the_whole_processor_makes(architecture: str, tmp_path: Path) -> None:
    """Every id and every pixel, for one image, two and five, also where the image's size is not the model's."""
    write(tmp_path, architecture=architecture)
    limits = (None, None) if architecture == "llava_onevision" else (9 * UNIT, 30 * UNIT)
    for min_pixels, max_pixels in {limits, (None, None)}:
        encoder = PromptEncoder(str(tmp_path), min_pixels=min_pixels, max_pixels=max_pixels)
        assert (encoder._vision_of is qwen_vision) == (architecture != "llava_onevision")
        for sample in family_samples():
            images = [image.open() for image in sample.images]
            whole = encoder.processor(text=[encoder.text(sample)], images=[images], return_tensors="pt")
            encoded = encoder.encode(sample)
            assert encoded.input_ids.tolist() == whole["input_ids"][0].tolist()
            assert {name: whole[name].tolist() for name in encoded.vision} == {
                name: tensor.tolist() for name, tensor in encoded.vision.items()
            }
            assert {"pixel_values"} < encoded.vision.keys() and encoded.vision["pixel_values"].dtype == torch.float32


def test_a_processor_that_makes_other_ids_than_its_arithmetic_is_refused(
    tiny_model_dir: Path, tiny_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    counts = IMAGE_TOKENS["smart_resize"]
    one_more = {"smart_resize": lambda processor, sizes: [count + 1 for count in counts(processor, sizes)]}
    monkeypatch.setattr("rl.prompting.IMAGE_TOKENS", one_more)
    with pytest.raises(ValueError, match=r"sample tiny-0: the processor's ids are not the tokenizer's"):
        encoder.encode(tiny_samples[0])


def test_a_text_is_tokenized_once_however_many_samples_have_it(
    tiny_model_dir: Path, tiny_samples: list[Sample], focus_sample: Sample
) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    first = encoder.texts.of(tiny_samples[0])
    assert all(encoder.texts.of(sample) is first for sample in tiny_samples)
    assert len({encoder.prompt_length(sample) for sample in tiny_samples}) > 1
    moved = replace(focus_sample, prompt=focus_prompt(tuple(Box(9, 9, 20, 20, i.frame) for i in focus_sample.images[:4])))
    assert encoder.texts.of(moved).text != encoder.texts.of(focus_sample).text


def test_a_box_and_the_same_words_are_not_taken_for_each_other(tiny_model_dir: Path, focus_sample: Sample) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    box = next(part for part in focus_sample.prompt if isinstance(part, SupportBoxPart))
    spelled = TextPart(render_text(box, encoder.family, encoder.limits, focus_sample))
    images = [ImagePart(number) for number in range(5)]
    as_box, as_words = (replace(focus_sample, prompt=(part, *images)) for part in (box, spelled))
    assert encoder.text(as_box) == encoder.text(as_words)
    assert encoder.encode(as_box).box_mask(as_box).any()
    assert not encoder.encode(as_words).box_mask(as_words).any()


def test_texts_are_kept_as_long_as_they_are_asked_for() -> None:
    recent, made = Recent[str](2), []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    for key in "abacab":
        assert recent.of(key, lambda key=key: make(key)) == key.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]


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


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def focus_sample() -> Sample:
    """Four supports with their boxes and a query, all of different sizes."""
    rng = np.random.default_rng(5)
    images = tuple(png(rng, 84 + 21 * number, 112 - 9 * number) for number in range(5))
    boxes = tuple(Box(3 + number, 4, 50 + number, 60, images[number].frame) for number in range(4))
    return Sample("focus", "test", images, focus_prompt(boxes), Box(1, 2, 30, 40, images[4].frame), target_image=4)


def with_parts(sample: Sample, *parts: PromptPart) -> Sample:
    """The same images with other words between them."""
    return replace(sample, prompt=parts)


def awkward(sample: Sample) -> Sample:
    """Parts whose words the template has too, or another part, or the text of a box; blanks at their ends; other scripts."""
    first, second = (part for part in sample.prompt if isinstance(part, SupportBoxPart) and part.index < 2)
    words = ("user", "a", " le", "ft. ", "日本 − cafe\u0301 🙂\n", "[3, 4, 56, 56]", "")
    images = [ImagePart(number) for number in range(1, 5)]
    return with_parts(
        sample, *map(TextPart, words), ImagePart(0), first, TextPart(","), second, *images, TextPart("assistant")
    )


def text_under(encoder: PromptEncoder, encoded: EncodedPrompt, mask: torch.Tensor) -> str:
    decoded: str = encoder.tokenizer.decode(encoded.input_ids[mask], skip_special_tokens=False)
    return decoded


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("words", ["paper", "awkward"])
def test_every_token_knows_the_part_that_it_renders(
    tiny_model_dir: Path, focus_sample: Sample, family: str, words: str
) -> None:
    encoder = PromptEncoder(str(tiny_model_dir), family=FAMILIES[family])
    sample = focus_sample if words == "paper" else awkward(focus_sample)
    encoded = encoder.encode(sample)
    assert encoded.part_P.dtype == torch.int16 and encoded.part_P.shape == encoded.input_ids.shape
    straddled = {" le": " left", "ft. ": ". "}  # one token, and so the first part's
    for index, part in enumerate(sample.prompt):
        mask = encoded.part_P == index
        if isinstance(part, ImagePart):
            assert set(encoded.input_ids[mask].tolist()) == {encoder.image_token_id}
        else:
            text = render_text(part, encoder.family, encoder.limits, sample)
            composed = encoder.tokenizer.backend_tokenizer.normalizer.normalize_str(straddled.get(text, text))
            assert text_under(encoder, encoded, mask) == composed
    template = text_under(encoder, encoded, encoded.part_P == -1)
    marks = "<|vision_start|><|vision_end|>" * len(sample.images)
    start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    assert template == f"{start}{marks}<|im_end|>\n<|im_start|>assistant\n"


def test_masks_of_support_boxes_and_of_the_query(tiny_model_dir: Path, focus_sample: Sample) -> None:
    encoder = PromptEncoder(str(tiny_model_dir))
    encoded = encoder.encode(focus_sample)
    # The supports' 84 × 112, 105 × 103, 126 × 94 and 147 × 85 become 84 × 112, 112 × 112, 112 × 84 and 140 × 84, and the
    # boxes, by hand:
    assert text_under(encoder, encoded, encoded.box_mask(focus_sample)) == (
        "[3, 4, 50, 60][4, 4, 54, 65][4, 4, 46, 54][6, 4, 50, 59]"
    )
    query = encoded.query_image_mask(focus_sample)
    width, height = encoded.resized_sizes(encoder.family.patch)[4]
    assert int(query.sum()) == width * height // UNIT
    assert query.nonzero()[0] > encoded.box_mask(focus_sample).nonzero()[-1]


def test_a_prompt_without_boxes_has_an_empty_mask(tiny_model_dir: Path, tiny_samples: list[Sample]) -> None:
    encoded = PromptEncoder(str(tiny_model_dir)).encode(tiny_samples[0])
    assert not encoded.box_mask(tiny_samples[0]).any()
    # The scene, the first image, is the one that a LOCUS answer is about.
    assert encoded.query_image_mask(tiny_samples[0]).nonzero()[0] < encoded.image_mask(tiny_samples[0], 1).nonzero()[0]


def test_a_token_of_two_parts_is_the_boxs_if_it_has_any_of_it(focus_sample: Sample) -> None:
    text, _, box = focus_sample.prompt[:3]
    sample = with_parts(focus_sample, text, box, text, *(ImagePart(number) for number in range(5)))
    #          0123456789…      template 0–2, text 2–5, box 5–9, text 9–12
    spans = [(2, 5), (5, 9), (9, 12)]
    offsets = [(0, 1), (1, 3), (3, 5), (4, 6), (6, 8), (8, 12), (10, 10), (11, 14), (12, 14)]
    assert token_parts(offsets, spans, sample).tolist() == [-1, 0, 0, 1, 1, 1, 2, 2, -1]


def test_a_template_that_moves_or_alters_a_part_is_refused(
    tiny_model_dir: Path, focus_sample: Sample, tmp_path: Path
) -> None:
    moved, altered = tmp_path / "moved", tmp_path / "altered"
    item = "{{ content['text'] }}"
    for folder, change in (
        (moved, ("content in message['content']", "content in message['content'] | sort(attribute='type')")),
        (altered, (item, "{{ content['text'] | upper }}")),
    ):
        shutil.copytree(tiny_model_dir, folder)
        template = folder / "chat_template.jinja"
        assert change[0] in template.read_text()
        template.write_text(template.read_text().replace(*change))
    with pytest.raises(ValueError, match="does not keep the order of the prompt's parts: part 1 of 10"):
        PromptEncoder(str(moved)).encode(focus_sample)
    with pytest.raises(ValueError, match="alters part 0 of the prompt: expected 'Locate"):
        PromptEncoder(str(altered)).encode(focus_sample)


# ── LLaVA-OneVision ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    folder = tmp_path_factory.mktemp("llava")
    write(folder, architecture="llava_onevision")
    return PromptEncoder(str(folder))


def test_llava_keeps_the_order_of_the_parts_and_answers_in_thousandths(llava: PromptEncoder, focus_sample: Sample) -> None:
    assert [part.index for part in focus_sample.prompt if isinstance(part, ImagePart)] == [0, 1, 2, 3, 4]
    text = llava.text(focus_sample)
    # Boxes (3 + i, 4, 50 + i, 60) in images of (84 + 21 i) × (112 − 9 i), times 1000, by hand.
    boxes = ["[36, 36, 595, 536]", "[38, 39, 486, 583]", "[40, 43, 413, 638]", "[41, 47, 361, 706]"]
    assert text.endswith("".join(f"<image>\n{box}" for box in boxes) + "<image><|im_end|><|im_start|>assistant\n")
    encoded = llava.encode(focus_sample)
    assert text_under(llava, encoded, encoded.box_mask(focus_sample)) == "".join(boxes)
    assert llava.answer_frame(focus_sample) == Frame.thousandths()


def test_llava_writes_a_prompt_whose_images_come_first_as_the_published_template_does(
    llava: PromptEncoder, tiny_samples: list[Sample]
) -> None:
    words = tiny_samples[0].prompt[2]
    assert isinstance(words, TextPart)
    published = f"<|im_start|>user <image><image>\n{words.text}<|im_end|><|im_start|>assistant\n"
    assert llava.text(tiny_samples[0]) == published


def test_llavas_ids_without_pixels_are_those_of_encode(llava: PromptEncoder) -> None:
    one, two, five = family_samples()
    for sample in (one, two, five):
        encoded = llava.encode(sample)
        assert encoded.input_ids.tolist() == llava.input_ids(sample)
        assert torch.equal(encoded.mm_token_type_ids == 1, encoded.input_ids == llava.image_token_id)
        # 100 × 90 alone: 4 × 4 and, in 2 × 2 tiles, 8 rows (of 7.2 needed; the padding is less than two) of 8 and an end.
        assert int(encoded.image_mask(sample, 0).sum()) == (16 + 8 * 9 if sample is one else 16 + 1)
    assert llava.encode(five).vision["image_sizes"].tolist() == [[90, 100 + 20 * number] for number in range(5)]
    assert llava.encode(one).resized_sizes(llava.family.patch) == ()


def test_llava_takes_no_pixel_limits_and_bans_its_own_placeholders(llava: PromptEncoder) -> None:
    banned = {llava.tokenizer.convert_ids_to_tokens(token) for token in llava.banned_token_ids}
    assert banned == {"<image>", "<video>"}
    assert llava.mm_processor_kwargs == {}
    with pytest.raises(ValueError, match="takes no min_pixels or max_pixels"):
        PromptEncoder(llava.tokenizer.name_or_path, max_pixels=4 * UNIT)
