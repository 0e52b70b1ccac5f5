"""The tiny backbones: small, loadable by the 7B's classes, the same bytes for the same seed, and a lossless tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

from data.prompts import FOCUS_PROMPT, LOCUS_PROMPT
from rl import tiny_backbone_vocabulary as vocabulary
from rl.tiny_backbone import ARCHITECTURES, TinyShape, build_tokenizer, write

CLASSES = {
    "qwen2_vl": (Qwen2VLForConditionalGeneration, Qwen2VLProcessor),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
    "llava_onevision": (LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("backbones")
    for architecture in ARCHITECTURES:
        write(out / architecture, seed=0, architecture=architecture)
    return {architecture: out / architecture for architecture in ARCHITECTURES}


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["qwen2_5_vl"]


@cache
def shared_tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer()


@pytest.fixture
def tokenizer() -> Qwen2Tokenizer:
    return shared_tokenizer()


@pytest.mark.parametrize(("architecture", "classes"), CLASSES.items())
def test_fewer_than_two_million_parameters_in_the_7b_s_classes(
    folders: dict[str, Path], architecture: str, classes: tuple[type[Any], type[Any]]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folders[architecture])
    assert type(model) is classes[0]
    assert model.config.model_type == architecture
    assert model.dtype == torch.float32
    assert model.num_parameters() < 2_000_000
    assert type(AutoProcessor.from_pretrained(folders[architecture])) is classes[1]


def test_every_architecture_is_tested() -> None:
    assert CLASSES.keys() == ARCHITECTURES.keys()


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'qwen9'; known are qwen2_5_vl, qwen2_vl, llava_onevision"):
        write(tmp_path, architecture="qwen9")


def test_the_tokenizer_loads_as_the_7b_s_class(folder: Path, tokenizer: Qwen2Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    assert isinstance(loaded, Qwen2Tokenizer)
    text = "<think> red disc </think><answer>[0, 34, 56, 112]</answer><|im_end|>"
    assert loaded(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_seed_same_bytes_another_seed_other_weights(
    folders: dict[str, Path], tmp_path: Path, architecture: str
) -> None:
    folder = folders[architecture]
    write(tmp_path / "again", seed=0, architecture=architecture)
    write(tmp_path / "other", seed=1, architecture=architecture)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_writing_leaves_the_caller_s_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    write(tmp_path)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("integer", [0, 7, 10, 99, 112, 999, 1000])
def test_integers_are_one_token(tokenizer: Qwen2Tokenizer, integer: int) -> None:
    box = tokenizer(f"[{integer}, 3]").input_ids
    assert tokenizer.convert_ids_to_tokens(box) == ["[", str(integer), ", ", "3", "]"]


def test_words_are_one_token_with_and_without_space(tokenizer: Qwen2Tokenizer) -> None:
    for word in vocabulary.words():
        assert len(tokenizer(word).input_ids) == 1, word
        assert len(tokenizer(f" {word}").input_ids) == 1, word


@pytest.mark.parametrize(("prompt", "most"), [(LOCUS_PROMPT, 8), (FOCUS_PROMPT, 8)])
def test_the_papers_prompts_are_short(tokenizer: Qwen2Tokenizer, prompt: str, most: int) -> None:
    ids = tokenizer(prompt).input_ids
    assert len(ids) <= most
    assert tokenizer.decode(ids) == prompt


def test_tags_and_numbers_survive_skip_special_tokens(tokenizer: Qwen2Tokenizer) -> None:
    answer = "<think> red disc </think><answer>[12, 34, 56, 112]</answer>"
    ids = tokenizer(answer + vocabulary.TURN_END).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_every_text_round_trips(text: str) -> None:
    # The Qwen2 tokenizer composes characters (NFC) first, as the 7B's does.
    tokenizer = shared_tokenizer()
    composed = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=False) == composed


@pytest.mark.parametrize(
    "text",
    ["", "007 and 2024", "x1=1001", "héllo 日本語 🙂\n\n\ttab", "a, b,c , d", "the theory of redness", "<answer>[1.5, 2]"],
)
def test_awkward_texts_round_trip(tokenizer: Qwen2Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_two_image_prompt_runs_and_has_the_tokens_of_its_grids(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": LOCUS_PROMPT}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [Image.new("RGB", (112, 112), "red"), Image.new("RGB", (30, 30), "blue")]
    inputs = processor(text=[prompt], images=images, return_tensors="pt")
    # 112 × 112 is kept (8 × 8 patches); 30 × 30 is under min_pixels and becomes 56 × 56 (4 × 4 patches).
    assert inputs.image_grid_thw.tolist() == [[1, 8, 8], [1, 4, 4]]
    assert (inputs.input_ids == model.config.image_token_id).sum().item() == 16 + 4
    assert inputs.input_ids.shape[1] <= 48
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, inputs.input_ids.shape[1], len(processor.tokenizer))
    assert torch.isfinite(logits).all()


def test_mrope_sections_fill_half_a_head() -> None:
    shape = TinyShape()
    assert 2 * sum(shape.mrope_section) == shape.hidden_size // shape.heads


@pytest.mark.parametrize("images", [1, 2])
def test_llava_cuts_a_single_image_into_tiles_and_gives_several_one_tile_each(folders: dict[str, Path], images: int) -> None:
    processor = AutoProcessor.from_pretrained(folders["llava_onevision"])
    model = AutoModelForImageTextToText.from_pretrained(folders["llava_onevision"])
    pictures = [[Image.new("RGB", (112, 84), "red")] * images]
    inputs = processor(text=["<image>" * images + "Image 1"], images=pictures, return_tensors="pt")
    # One image: a 4 × 4 overview and 2 × 2 tiles, of whose 8 × 8 tokens the padding's two rows are cut, with an end mark a
    # row. Two images: an overview and an end mark each.
    assert (inputs.input_ids == model.config.image_token_id).sum().item() == {1: 16 + 6 * 8 + 6, 2: 2 * (16 + 1)}[images]
    assert inputs.pixel_values.shape == (images, {1: 5, 2: 1}[images], 3, 56, 56)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
