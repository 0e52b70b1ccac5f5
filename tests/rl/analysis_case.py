"""FOCUS samples of synthetic videos and tiny random models of three architectures: what the analysis tests share."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from data.box import Box
from data.prompts import focus_prompt
from data.sample import EncodedImage, Sample
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec, render_video
from rl.prompting import EncodedPrompt

TEXT = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # large, so that attention is far from uniform
}


def focus_samples(count: int, shots: int = 2) -> list[Sample]:
    """Supports and query of 112 × 84 pixels (48 patches in 12 merged cells), with the shape as category."""
    spec = VideoSpec(frames=shots + 1, scene=SceneSpec(width=112, height=84))
    samples = []
    for number in range(count):
        frames = list(render_video(spec, 5, "val", number))
        images = []
        for frame in frames:
            buffer = io.BytesIO()
            frame.image.save(buffer, "PNG")
            images.append(EncodedImage(*frame.image.size, encoded=buffer.getvalue()))
        boxes = [Box(*frame.objects[0].box.corners, image.frame) for frame, image in zip(frames, images, strict=True)]
        others = tuple(Box(*painted.box.corners, images[-1].frame) for painted in frames[-1].objects[1:])
        metadata = {"category": frames[0].objects[0].shape}
        prompt = focus_prompt(tuple(boxes[:-1]))
        samples.append(Sample(f"video/{number}", "test", tuple(images), prompt, boxes[-1], shots, others, metadata))
    return samples


def qwen2_5_vl(folder: Path) -> PreTrainedModel:
    """The tiny backbone, its attention made far from uniform."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return _sharpen(model)


def qwen2_vl(folder: Path) -> PreTrainedModel:
    """A random Qwen2-VL that reads the tiny backbone's tokens and pixels; 6 heads on 2 key heads."""
    tokens = AutoModelForImageTextToText.from_pretrained(folder).config
    torch.manual_seed(1)
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": tokens.text_config.vocab_size,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 96, "num_heads": 2, "patch_size": 14},
        image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
        vision_start_token_id=tokens.vision_start_token_id,
        vision_end_token_id=tokens.vision_end_token_id,
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def llava_onevision() -> PreTrainedModel:
    """A random LLaVA-OneVision; plain rotary positions."""
    torch.manual_seed(2)
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": 64},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_id=60,
        video_token_id=61,
    )
    return LlavaOnevisionForConditionalGeneration(config).eval()


def _sharpen(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight *= 4
    return model.eval()


def stock_inputs(encoded: EncodedPrompt, answer: list[int]) -> dict[str, torch.Tensor]:
    """What transformers' own forward takes, written here a second time."""
    ids = torch.cat([encoded.input_ids, torch.tensor(answer, dtype=torch.long)])[None]
    types = torch.zeros_like(ids)
    types[0, : len(encoded.input_ids)] = encoded.mm_token_type_ids
    assert encoded.pixel_values is not None and encoded.image_grid_thw is not None
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": types,
        "pixel_values": encoded.pixel_values,
        "image_grid_thw": encoded.image_grid_thw,
    }
