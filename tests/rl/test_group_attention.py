"""Attention in two parts: what a whole mask over the row gives, in values and gradients, however answers are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rl import attention_hook as measuring
from rl import group_attention
from rl.attention_hook import text_config
from rl.group_attention import Groups, GroupSpan, attend
from rl.policy import Policy
from tests.rl.attention_case import FAMILIES

# Answers of one token and of many, a group of one answer, three tokens of padding at the end.
GROUPS = Groups((GroupSpan(0, 7, (3, 1, 4)), GroupSpan(15, 5, (6,)), GroupSpan(26, 9, (2, 2))))
LENGTH, PADDING = 42, 3


def visible(groups: Groups) -> Tensor:
    """[L, L], token by token: earlier tokens of the own prompt and of the own answer. Padding sees itself."""
    owner = [(-1, -1)] * LENGTH
    for number, span in enumerate(groups.spans):
        tokens = [(number, 0)] * span.prompt
        tokens += [(number, 1 + answer) for answer, length in enumerate(span.answers) for _ in range(length)]
        owner[span.first : span.end] = tokens
    seen = torch.eye(LENGTH, dtype=torch.bool)
    for row, (group, answer) in enumerate(owner):
        for column in range(row):
            seen[row, column] = group >= 0 and owner[column] in {(group, 0), (group, answer)}
    return seen


def inputs(query_heads: int, key_heads: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((1, heads, LENGTH, 8) for heads in (query_heads, key_heads, key_heads))
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("elements", [1 << 24, 20], ids=["together", "one by one"])
def test_both_parts_are_attention_under_the_whole_mask(
    heads: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_attention, "BIAS_ELEMENTS", elements)
    groups = Groups(GROUPS.spans)
    query, key, value = inputs(*heads)
    keys, values = (tensor.repeat_interleave(heads[0] // heads[1], 1) for tensor in (key, value))
    whole = scaled_dot_product_attention(query, keys, values, attn_mask=visible(groups)).transpose(1, 2)
    parts = attend(query, key, value, groups)
    assert not parts[:, -PADDING:].any()
    torch.testing.assert_close(parts[:, :-PADDING], whole[:, :-PADDING], atol=1e-12, rtol=0)
    weight = torch.randn_like(whole)
    weight[:, -PADDING:] = 0
    found, expected = (torch.autograd.grad((each * weight).sum(), (query, key, value)) for each in (parts, whole))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_key_heads_are_shared_where_no_prompt_branches() -> None:
    groups = Groups((GroupSpan(0, 12, (8,)), GroupSpan(20, 10, (9,))))
    query, key, value = inputs(4, 2)
    keys, values = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
    whole = scaled_dot_product_attention(query, keys, values, attn_mask=visible(groups)).transpose(1, 2)
    torch.testing.assert_close(attend(query, key, value, groups)[:, :-PADDING], whole[:, :-PADDING], atol=1e-12, rtol=0)


def test_answers_are_cut_where_their_bias_would_outgrow_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind 10 tokens: 4 × 14 and 6 × 16 numbers fit into 100, 9 × 19 do not; an answer too long goes alone."""
    monkeypatch.setattr(group_attention, "BIAS_ELEMENTS", 100)
    span = GroupSpan(5, 10, (4, 2, 3, 12, 1))
    assert list(span.blocks()) == [(15, (4, 2)), (21, (3,)), (24, (12,)), (36, (1,))]


def test_layers_share_a_bias() -> None:
    query, key, value = inputs(4, 4)
    groups = Groups(GROUPS.spans)
    attend(query, key, value, groups)
    first = groups.bias(7, (3, 1, 4), query)
    attend(query, key, value, groups)
    assert groups.bias(7, (3, 1, 4), query) is first
    assert first.shape == (8, 15)
    assert first.stride() == (16, 1)  # kernels copy a bias whose rows begin elsewhere


def test_a_model_with_sliding_windows_is_refused() -> None:
    model = FAMILIES["llava_onevision"]()
    text_config(model).layer_types = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(ValueError, match="use_sliding_window"):
        Policy(model, ())


def test_the_attention_loss_refuses_what_it_cannot_measure_in_groups_too() -> None:
    model = FAMILIES["qwen2_5_vl"]()
    text_config(model)._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention"):
        measuring.install(Policy(model, ()).base)
