"""FOCUS samples of synthetic videos, and a reader of a tiny random model: what the analysis tests share."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from data.box import Box
from data.prompts import focus_prompt
from data.sample import EncodedImage, Sample
from data.synthetic import SceneSpec
from data.synthetic_video import VideoSpec, render_video
from rl.analysis.answers import Reader
from rl.config import ModelConfig
from rl.hf_rollouts import HfRollouts
from rl.prompting import EncodedPrompt


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


def build_reader(folder: Path, sharpen: float = 40.0) -> Reader:
    """Reads the model of `folder`; its queries are multiplied, so that attention is far from a random model's uniform."""
    rollouts = HfRollouts(ModelConfig(path=str(folder)), "float32", max_model_len=1024)
    with torch.no_grad():
        for layer in rollouts.model.get_decoder().layers:
            layer.self_attn.q_proj.weight *= sharpen
            layer.self_attn.q_proj.bias *= sharpen
    return Reader(rollouts, max_tokens=8)


def stock_inputs(encoded: EncodedPrompt, answer: list[int]) -> dict[str, torch.Tensor]:
    """What transformers' own forward takes, written here a second time."""
    ids = torch.cat([encoded.input_ids, torch.tensor(answer, dtype=torch.long)])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **encoded.vision}
    if "image_grid_thw" in encoded.vision:
        inputs["mm_token_type_ids"] = torch.zeros_like(ids)
        inputs["mm_token_type_ids"][0, : len(encoded.input_ids)] = encoded.mm_token_type_ids
    return inputs
