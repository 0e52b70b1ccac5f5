"""The attention stream: equal to eager's maps on three architectures, and no map of tokens × tokens is ever made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from rl.analysis.answers import Reader
from rl.analysis.stream import ROWS_AT_ONCE, answer_attention, row_attention
from rl.prompting import PromptEncoder
from tests.rl.analysis_case import focus_samples, llava_onevision, qwen2_5_vl, qwen2_vl, stock_inputs


def eager_maps(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """[layers, L, L], mean over heads, as transformers gives them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    return torch.stack([layer[0].mean(0) for layer in maps])


@pytest.mark.parametrize("build", [qwen2_vl, qwen2_5_vl])
def test_rows_equal_eager_maps(build: Callable[[Path], PreTrainedModel], tiny_model_dir: Path) -> None:
    encoder, model = PromptEncoder(str(tiny_model_dir)), build(tiny_model_dir)
    sample = focus_samples(1)[0]
    encoded = encoder.encode(sample)
    answer = encoder.answer_tokens("<answer>[12, 30, 44, 60]</answer>")[:-1]
    read = Reader(model, encoder, max_tokens=8).attention(sample, answer)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    maps = eager_maps(model, stock_inputs(encoded, answer))
    first = len(encoded.input_ids) - 1
    assert read.rows_R.tolist() == list(range(first, first + len(answer)))
    rows = maps[:, first : first + len(answer)]
    assert float(rows.max()) > 5 / maps.shape[-1]  # far from uniform, or equality would mean little
    assert torch.allclose(read.mean_ML, rows.mean(1), atol=1e-5)
    assert torch.allclose(read.first_ML, rows[:, 0], atol=1e-5)
    assert torch.allclose(read.mean_ML.sum(-1), torch.ones(len(maps)), atol=1e-5)


def test_rows_equal_eager_maps_for_llava_onevision() -> None:
    model = llava_onevision()
    inputs = {"input_ids": torch.arange(3, 40)[None], "attention_mask": torch.ones(1, 37, dtype=torch.long)}
    read = answer_attention(model, torch.arange(30, 37), lambda: model.model(**inputs))
    maps = eager_maps(model, inputs)
    assert torch.allclose(read.mean_ML, maps[:, 30:].mean(1), atol=1e-5)


def test_more_rows_than_exist_at_once_and_a_failed_forward(tiny_model_dir: Path) -> None:
    model = llava_onevision()
    length = 3 * ROWS_AT_ONCE + 5
    ids = (torch.arange(length) % 50)[None]
    read = answer_attention(model, torch.arange(2, length), lambda: model.model(input_ids=ids))
    maps = eager_maps(model, {"input_ids": ids})
    assert torch.allclose(read.mean_ML, maps[:, 2:].mean(1), atol=1e-5)
    model.set_attn_implementation("sdpa")
    with pytest.raises(IndexError):
        answer_attention(model, torch.tensor([length]), lambda: model.model(input_ids=ids))
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_given_masks_are_respected() -> None:
    """A bool mask, its additive form, and the row softmax by hand over what may be seen; 4 heads on 2 key heads."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    seen = torch.rand(1, 1, 6, 6) < 0.5
    seen |= torch.eye(6, dtype=torch.bool)
    rows = torch.tensor([1, 4, 5])
    found = row_attention(query, key, rows, 0.5, seen)
    added = torch.zeros(1, 1, 6, 6).masked_fill(~seen, torch.finfo(torch.float32).min)
    assert torch.allclose(row_attention(query, key, rows, 0.5, added), found, atol=1e-6)
    for head in range(4):
        for place, row in enumerate(rows.tolist()):
            visible = seen[0, 0, row]
            scores = torch.stack([query[0, head, row] @ key[0, head // 2, at] * 0.5 for at in range(6)])
            expected = torch.zeros(6)
            expected[visible] = scores[visible].exp() / scores[visible].exp().sum()
            assert torch.allclose(found[head, place], expected, atol=1e-5)


class _Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_no_operation_makes_a_tensor_of_tokens_times_tokens() -> None:
    """At 2,000 tokens the largest result is a layer's activations, not the 4 M of one map, nor the 24 M of six heads."""
    model, length = llava_onevision(), 2000
    ids = (torch.arange(length) % 50)[None]
    with _Sizes() as sizes:
        answer_attention(model, torch.arange(length - 8, length), lambda: model.model(input_ids=ids, use_cache=False))
    assert sizes.largest <= length * 128
    with _Sizes() as eager_sizes, torch.no_grad():
        model.set_attn_implementation("eager")
        model.model(input_ids=ids, use_cache=False)
    assert eager_sizes.largest == 6 * length * length
