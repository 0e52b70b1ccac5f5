"""Writes a policy as a Hugging Face folder that `from_pretrained` and vLLM load, LoRA merged in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from rl.policy import peft_config
from rl.prompt_templates import ORDERED_TEMPLATES
from rl.weights import published_names

if TYPE_CHECKING:
    from rl.learner import Learner

_SIDE_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
# config.json is the model's own, because it names the dtype of the weights beside it.
_NOT_COPIED = ("config.json", "*.index.json", "adapter_config.json")


def export_policy(learner: Learner, directory: Path) -> None:
    """`directory` gets config, weights, tokenizer and processor; `directory/adapter` the LoRA matrices if there are any.

    Written beside its place and renamed, so that a half export is never found. Collective; rank 0 writes.
    """
    full = {name: tensor.cpu().clone() for name, tensor in learner.full_weights() if learner.rank == 0}
    lora = learner.adapter_weights() if learner.model.lora.rank else ()
    adapter = {name: tensor.cpu().clone() for name, tensor in lora if learner.rank == 0}
    if learner.rank:
        return
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        source = Path(learner.model.path)
        if not source.is_dir():
            source = Path(snapshot_download(learner.model.path, allow_patterns=list(_SIDE_FILES)))
        with torch.device("meta"):
            dtype = next(iter(full.values())).dtype
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source), dtype=dtype)
        model.save_pretrained(partial, state_dict=dict(published_names(full.items(), model.config.model_type)))
        _copy_side_files(source, partial)
        if learner.encoder.family.name in ORDERED_TEMPLATES:  # a prompt as it was trained on, for whoever loads this
            (partial / "chat_template.jinja").write_text(learner.encoder.processor.chat_template)
        if adapter:
            _save_adapter(learner, adapter, partial / "adapter")
        shutil.rmtree(directory, ignore_errors=True)
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_side_files(source: Path, target: Path) -> None:
    for pattern in _SIDE_FILES:
        for path in source.glob(pattern):
            if not any(path.match(name) for name in _NOT_COPIED):
                shutil.copy(path, target / path.name)


def _save_adapter(learner: Learner, adapter: dict[str, torch.Tensor], directory: Path) -> None:
    directory.mkdir()
    save_file(adapter, directory / "adapter_model.safetensors")
    config = peft_config(learner.model.lora)
    config.base_model_name_or_path = learner.model.path
    config.save_pretrained(str(directory))
