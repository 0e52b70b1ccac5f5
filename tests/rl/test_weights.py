"""Checksums, names and merged LoRA: what leaves the learner is what arrives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText

from rl.weights import Checksummed, added, checksum, merge_adapter, published_names


def named(dtype: torch.dtype = torch.float32) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [("a", (3, 5)), ("b", (7,)), ("scalar", ()), ("empty", (0, 4)), ("c", (2, 3, 4))]
    return [(name, torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_checksum_does_not_depend_on_order_or_memory_layout(dtype: torch.dtype) -> None:
    tensors = named(dtype)
    transposed = [(name, tensor.t().contiguous().t() if tensor.dim() == 2 else tensor) for name, tensor in tensors]
    assert not transposed[0][1].is_contiguous()
    assert checksum(tensors) == checksum(reversed(tensors)) == checksum(transposed)


def test_checksum_sees_every_change() -> None:
    tensors = named(torch.bfloat16)
    flipped = tensors[0][1].clone()
    flipped.view(torch.int16)[1, 2] ^= 1
    changed = {
        "one bit": [("a", flipped), *tensors[1:]],
        "a name": [("A", tensors[0][1]), *tensors[1:]],
        "two names exchanged": [("c", tensors[0][1]), *tensors[1:4], ("a", tensors[4][1])],
        "a shape": [("a", tensors[0][1].reshape(5, 3)), *tensors[1:]],
        "a dtype over the same bytes": [("a", tensors[0][1].view(torch.float16)), *tensors[1:]],
        "one missing": tensors[1:],
        "an empty one missing": [pair for pair in tensors if pair[0] != "empty"],
        "one twice": [*tensors, tensors[0]],
        "nothing": [],
    }
    digests = {checksum(tensors): "unchanged"}
    for what, altered in changed.items():
        digest = checksum(altered)
        assert digest not in digests, f"{what} looks like {digests[digest]}"
        digests[digest] = what


def test_checksummed_covers_what_was_consumed_and_passes_it_on() -> None:
    tensors = named()
    passing = Checksummed(iter(tensors))
    for (_, passed), (_, tensor) in zip(passing, tensors[:2], strict=False):
        assert passed is tensor
    assert passing.checksum != checksum(tensors)
    whole = Checksummed(tensors)
    assert [name for name, _ in whole] == ["a", "b", "scalar", "empty", "c"]
    assert (whole.count, whole.bytes, whole.checksum) == (5, 4 * (15 + 7 + 1 + 0 + 24), checksum(tensors))


def test_the_checksums_of_two_streams_add_up_to_that_of_both() -> None:
    tensors = named()
    assert added([checksum(tensors[:2]), checksum(tensors[2:])]) == checksum(tensors)


def test_merged_weights_equal_pefts_own_merge(tiny_model_dir: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=r".*language_model.*\.(q_proj|down_proj)", init_lora_weights=False)
    model = get_peft_model(base, lora)
    adapter = {name.replace(".default.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    merged = dict(merge_adapter(before.items(), adapter, scale=12 / 4))
    expected = model.merge_and_unload().state_dict()
    assert list(merged) == list(before)
    changed = [name for name in before if not torch.equal(merged[name], before[name])]
    assert len(changed) == len(adapter) // 2
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


def test_an_adapter_that_fits_nothing_is_an_error() -> None:
    adapter = {f"base_model.model.elsewhere.lora_{letter}.weight": torch.ones(1, 1) for letter in "AB"}
    with pytest.raises(ValueError, match="'elsewhere'"):
        list(merge_adapter([("here.weight", torch.ones(1, 1))], adapter, scale=1.0))


def test_llavas_tower_travels_under_the_name_that_published_checkpoints_have() -> None:
    names = [
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.vision_tower.vision_model.post_layernorm.bias",  # published already
        "model.multi_modal_projector.linear_1.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
    ]
    renamed = [name for name, _ in published_names(((name, torch.ones(1)) for name in names), "llava_onevision")]
    assert renamed == ["model.vision_tower.vision_model.embeddings.patch_embedding.weight", *names[1:]]
    assert [name for name, _ in published_names(((name, torch.ones(1)) for name in names), "qwen2_vl")] == names
