"""The attention stream: equal to eager's maps on three architectures, and no map of tokens × tokens is ever made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from rl.analysis.stream import ROWS_AT_ONCE, answer_attention, row_attention
from rl.analysis.study import Asked, study
from rl.analysis.token_classes import with_category
from rl.attention_hook import text_config
from rl.tiny_backbone import ARCHITECTURES, write
from tests.rl.analysis_case import build_reader, focus_samples, stock_inputs


def eager_maps(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """[layers, L, L], mean over heads, as transformers gives them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    return torch.stack([layer[0].mean(0) for layer in maps])


ANSWER = "<answer>[12, 30, 44, 60]</answer>"


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write(folder, architecture=request.param)
    return folder


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> PreTrainedModel:
    return build_reader(tiny_model_dir).rollouts.model


def test_rows_equal_eager_maps_of_every_family(folder: Path) -> None:
    reader = build_reader(folder)
    encoded = reader.encoder.encode(focus_samples(1)[0])
    answer = reader.encoder.answer_tokens(ANSWER)[:-1]
    read = reader.attention(encoded, answer)
    assert text_config(reader.rollouts.model)._attn_implementation == "sdpa"
    maps = eager_maps(reader.rollouts.model, stock_inputs(encoded, answer))
    first = len(encoded.input_ids) - 1
    assert read.rows_R.tolist() == list(range(first, first + len(answer)))
    rows = maps[:, first : first + len(answer)]
    assert float(rows.max()) > 5 / maps.shape[-1]  # far from uniform, or equality would mean little
    assert torch.allclose(read.mean_ML, rows.mean(1), atol=1e-5)
    assert torch.allclose(read.first_ML, rows[:, 0], atol=1e-5)
    assert torch.allclose(read.mean_ML.sum(-1), torch.ones(len(maps)), atol=1e-5)


def test_a_sample_of_every_family_is_read_to_its_end(folder: Path) -> None:
    """Answer of its own, shares that sum to 1, cells over every image."""
    samples = focus_samples(2)
    for name in ("own", "truth"):
        found = study(build_reader(folder), samples, Asked(with_category, name, drawn=1, all_images=True))
        assert not found.unanswered
        assert torch.allclose(found.split.shares_MC.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-5)
        assert all(float(share) > 0 for share in found.split.shares_MC.mean(0))
        assert [len(finding.images) for finding in found.findings] == [3, 0]
        for seen in found.findings[0].images:
            assert seen.attention_MN.shape == (3, seen.grid.cells)
            width = seen.grid.region[2] - seen.grid.region[0]
            height = seen.grid.region[3] - seen.grid.region[1]
            assert (seen.grid.rows, seen.grid.columns, width, height) in ((3, 4, 112, 84), (4, 4, 112, 112))


def test_more_rows_than_exist_at_once_and_a_failed_forward(model: PreTrainedModel) -> None:
    length = 3 * ROWS_AT_ONCE + 5
    ids = (300 + torch.arange(length) % 50)[None]
    read = answer_attention(model, torch.arange(2, length), lambda: model.model(input_ids=ids))
    maps = eager_maps(model, {"input_ids": ids})
    model.set_attn_implementation("sdpa")
    assert torch.allclose(read.mean_ML, maps[:, 2:].mean(1), atol=1e-5)
    with pytest.raises(IndexError):
        answer_attention(model, torch.tensor([length]), lambda: model.model(input_ids=ids))
    assert text_config(model)._attn_implementation == "sdpa"


def test_a_read_forward_gives_the_same_output(model: PreTrainedModel) -> None:
    ids = (300 + torch.arange(40) % 50)[None]
    outputs = []
    answer_attention(model, torch.tensor([39]), lambda: outputs.append(model.model(input_ids=ids).last_hidden_state))
    with torch.no_grad():
        assert torch.equal(outputs[0], model.model(input_ids=ids).last_hidden_state)


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


def test_no_operation_makes_a_tensor_of_tokens_times_tokens(model: PreTrainedModel) -> None:
    """At 3,000 tokens the largest result is a layer's activations (256 a token), not the 3 × 9 M of its attention map."""
    length = 3000
    ids = (300 + torch.arange(length) % 50)[None]
    with _Sizes() as sizes:
        answer_attention(model, torch.arange(length - 8, length), lambda: model.model(input_ids=ids, use_cache=False))
    assert sizes.largest <= length * 256
    with _Sizes() as eager_sizes, torch.no_grad():
        model.set_attn_implementation("eager")
        model.model(input_ids=ids, use_cache=False)
    model.set_attn_implementation("sdpa")
    assert eager_sizes.largest == 3 * length * length
