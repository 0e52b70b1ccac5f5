"""The tiny backbone: a vision-language model under 2 M parameters in a Hugging Face folder, from random numbers.

    python -m rl.tiny_backbone --out DIR [--seed 0] [--architecture qwen2_5_vl]

It has its own tokenizer, chat template and processor and loads through the very classes that load its 7B sister, in
transformers and in vLLM. It differs from her in size, and in three choices that let so small a model see:

    small rope_theta         at 1e4 RoPE turns by too little for the few patches of a small image to differ
    full vision attention    in every layer (Qwen2.5-VL), since an image is smaller than one attention window
    tied embeddings          as the 3B: a quarter of the parameters would otherwise be the output table

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen2Tokenizer

from rl import tiny_backbone_vocabulary as vocabulary
from rl.tiny_backbone_language import Architecture, TinyShape, build_tokenizer
from rl.tiny_backbone_llava import LLAVA_ONEVISION
from rl.tiny_backbone_qwen import QWEN2_5_VL, QWEN2_VL
from rl.weights import published_names

ARCHITECTURES = {"qwen2_5_vl": QWEN2_5_VL, "qwen2_vl": QWEN2_VL, "llava_onevision": LLAVA_ONEVISION}


def build_model(architecture: Architecture, shape: TinyShape, tokenizer: Qwen2Tokenizer, seed: int) -> PreTrainedModel:
    """Random weights in fp32. The caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.model_class(architecture.build_config(shape, tokenizer))
    token_id = tokenizer.convert_tokens_to_ids
    model.generation_config = GenerationConfig(
        eos_token_id=[token_id(vocabulary.TURN_END), token_id(vocabulary.END_OF_TEXT)],
        pad_token_id=token_id(vocabulary.END_OF_TEXT),
    )
    return model


def write(out: Path, seed: int = 0, shape: TinyShape | None = None, architecture: str = "qwen2_5_vl") -> int:
    """Write the Hugging Face folder; returns the number of parameters. Raises ValueError for an unknown architecture."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"no tiny backbone has the architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}")
    chosen = ARCHITECTURES[architecture]
    shape = shape or chosen.shape
    tokenizer = build_tokenizer(chosen.special_tokens, chosen.chat_template)
    model = build_model(chosen, shape, tokenizer, seed)
    model.save_pretrained(out, state_dict=dict(published_names(model.state_dict().items(), architecture)))
    chosen.build_processor(shape, tokenizer).save_pretrained(out)
    return int(model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description="write a tiny backbone: a small vision-language model of random weights")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in Hugging Face format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="qwen2_5_vl")
    arguments = parser.parse_args()
    parameters = write(arguments.out, arguments.seed, architecture=arguments.architecture)
    print(f"{arguments.out}: {parameters:,} parameters")


if __name__ == "__main__":
    main()
