"""The attention loss inside models of every family against the loss of their whole attention maps."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from rl import attention_hook, group_attention
from rl.attention_hook import BoxRecord, install, text_config
from rl.attention_loss import BoxTargets, box_loss, chosen_layers
from rl.layout import lay_out
from rl.prompting import EncodedPrompt
from tests.rl.attention_case import FAMILIES, Case, make_case, naive_loss, on_two_ranks, one_process

MARGIN, BETA = 0.5, 3.0  # every hinge open; the attention loss weighs as much as the other
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


def flash_like(module, query, key, value, mask, scaling, position_ids=None, **_):  # type: ignore[no-untyped-def]
    """As flash attention: takes a mask of padding or positions that begin anew, and reads its own name in the config."""
    assert module.config._attn_implementation == "toy_flash"
    whole = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
    if mask is not None:
        assert mask.dim() == 2
        whole = whole & mask[:, None, None, :].bool() | torch.eye(len(whole), dtype=torch.bool)
    elif position_ids is not None:
        sample = (position_ids[0] == 0).cumsum(0)
        whole = whole & (sample == sample[:, None])
    return sdpa_attention_forward(module, query, key, value, whole, scaling=scaling)


AttentionInterface.register("toy_flash", flash_like)
AttentionMaskInterface.register("toy_flash", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])


def build(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[family]().to(dtype)


def with_maps(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """A copy whose language model computes whole maps."""
    twin = copy.deepcopy(model)
    text_config(twin)._attn_implementation = attention
    return twin


def other_loss(hidden: Tensor, case: Case) -> Tensor:
    """Stands for the language-model loss: something that depends on every layer."""
    return hidden[case.tokens_BL].sin().mean()


def recorded_loss(model: PreTrainedModel, case: Case, layers: tuple[int, ...], **options: str) -> tuple[Tensor, Tensor]:
    """(box loss [B], whole loss) with SDPA and a record."""
    record = BoxRecord(case.targets, layers)
    hidden = model.model(**case.arguments, use_cache=False, box_record=record).last_hidden_state
    losses = box_loss(record.mass(), case.targets, MARGIN, **options)
    return losses, other_loss(hidden, case) + BETA * losses.mean()


def mapped_loss(model: PreTrainedModel, case: Case, layers: tuple[int, ...], **options: str) -> tuple[Tensor, Tensor]:
    """The same from the whole maps."""
    output = model.model(**case.arguments, use_cache=False, output_attentions=True)
    losses = naive_loss(tuple(output.attentions[layer] for layer in layers), case, MARGIN, **options)
    return losses, other_loss(output.last_hidden_state, case) + BETA * losses.mean()


def assert_same_gradients(ours: torch.nn.Module, theirs: torch.nn.Module, tolerance: float) -> None:
    pairs = [(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True) if q.grad is not None]
    assert max(float(q.abs().max()) for _, q in pairs) > 0.01
    for p, q in pairs:
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance)


def compare(model: PreTrainedModel, case: Case, layers: tuple[int, ...], attention: str, **options: str) -> None:
    tolerance = TOLERANCE[model.dtype]
    twin = with_maps(model, attention)
    install(model)
    ours, total = recorded_loss(model, case, layers, **options)
    theirs, expected = mapped_loss(twin, case, layers, **options)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    total.backward()
    expected.backward()
    assert_same_gradients(model, twin, tolerance)


# "eager" is transformers' own, whose softmax is float32 inside; "whole_map" is ours and stays in float64.
@pytest.mark.parametrize(("dtype", "attention"), [(torch.float64, "whole_map"), (torch.float32, "eager")])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_all_gradients_equal_those_of_whole_maps(family: str, dtype: torch.dtype, attention: str) -> None:
    model = build(family, dtype)
    compare(model, make_case(family, model), (0, 1, 2), attention)


@pytest.mark.parametrize("layers", ["first1", "last2", "all", "0,3"])
@pytest.mark.parametrize("options", [("mean", "visible"), ("sum", "all")])
def test_any_layers_and_choices(layers: str, options: tuple[str, str]) -> None:
    model = build("qwen2_vl")
    chosen = chosen_layers(layers, 4)
    case = make_case("qwen2_vl", model, side="left")
    compare(model, case, chosen, "whole_map", reduction=options[0], denominator=options[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_reaches_queries_and_keys_of_the_chosen_layers_and_what_is_below(family: str) -> None:
    """Without the other loss: nothing above the last chosen layer, nor its own values and MLP, gets a gradient."""
    model = build(family)
    install(model)
    losses, _ = recorded_loss(model, make_case(family, model), (1,))
    losses.mean().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    layer = "model.language_model.layers."
    below = {"1.self_attn.q_proj.weight", "1.self_attn.k_proj.weight", "0.mlp.up_proj.weight"}
    above = ("1.self_attn.v_proj", "1.self_attn.o_proj", "1.mlp", "2.", "3.")
    assert {layer + name for name in below} <= moved
    assert not [name for name in moved if name.removeprefix(layer).startswith(above)]
    assert [name for name in moved if "visual." in name or "vision_tower." in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_is_bit_for_bit_what_it_was(family: str) -> None:
    model = build(family, torch.float32)
    case = make_case(family, model)
    before = model.model(**case.arguments, use_cache=False).last_hidden_state
    install(model)
    assert torch.equal(model.model(**case.arguments, use_cache=False).last_hidden_state, before)
    record = BoxRecord(case.targets, (0, 1, 2, 3))
    assert torch.equal(model.model(**case.arguments, use_cache=False, box_record=record).last_hidden_state, before)


def test_only_the_language_model_is_hooked_and_nothing_is_computed_without_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = build("qwen2_5_vl")
    case = make_case("qwen2_5_vl", model)
    install(model)
    install(model)
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert text_config(model)._attn_implementation == "box_mass_sdpa"
    measured: list[int] = []
    monkeypatch.setattr(BoxRecord, "add", lambda _, layer, *rest: measured.append(layer))
    model.model(**case.arguments)
    assert measured == []
    model.model(**case.arguments, use_cache=False, box_record=BoxRecord(case.targets, (0, 2)))
    assert measured == [0, 2]
    model.config.save_pretrained(tmp_path)
    assert "box_mass" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_generation_with_a_cache_is_unchanged() -> None:
    model = build("qwen2_vl", torch.float32).eval()
    case = make_case("qwen2_vl", model, side="left")
    arguments = case.arguments | {"max_new_tokens": 5, "do_sample": False}
    before = model.generate(**arguments)
    install(model)
    assert torch.equal(model.generate(**arguments), before)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_a_padded_batch_equals_each_row_alone(family: str, side: str) -> None:
    model = build(family)
    install(model)
    case = make_case(family, model, side)
    batch, _ = recorded_loss(model, case, (0, 1))
    alone = torch.cat([recorded_loss(model, case.row(number), (0, 1))[0] for number in range(2)])
    # LLaVA's positions count padding on the left, and rotary angles are float32 in transformers.
    shifted = family == "llava_onevision" and side == "left"
    torch.testing.assert_close(batch, alone, rtol=0, atol=1e-7 if shifted else 1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "toy_flash"])
def test_packed_rows_equal_each_sample_alone(attention: str) -> None:
    """Two samples in one row, told apart by positions that begin anew: by transformers' mask, or by flash without one."""
    model = with_maps(build("llava_onevision"), attention)
    install(model)
    case = make_case("llava_onevision", model)
    alone = [case.row(number) for number in range(2)]
    own = case.tokens_BL
    packed = {name: case.arguments[name] for name in ("pixel_values", "image_sizes")}
    packed["input_ids"] = case.arguments["input_ids"][own][None]
    packed["position_ids"] = torch.cat([torch.arange(int(tokens.sum())) for tokens in own])[None]
    sample = torch.arange(2)[:, None].expand(own.shape)[own][None]
    targets = BoxTargets(case.targets.rows_BL[own][None], case.targets.columns_BL[own][None], sample)
    losses, _ = recorded_loss(model, Case(packed, targets, sample >= 0), (0, 1, 2))
    expected = torch.cat([recorded_loss(model, row, (0, 1, 2))[0] for row in alone])
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-12)


def test_a_packed_row_that_attention_does_not_split_is_refused() -> None:
    model = build("llava_onevision")
    install(model)
    ids = torch.randint(10, 60, (1, 12))
    marks = torch.arange(12)[None] % 6
    targets = BoxTargets(marks == 4, marks == 1, torch.arange(12)[None] // 6)
    with pytest.raises(ValueError, match="needs its attention mask"):
        model.model(input_ids=ids, use_cache=False, box_record=BoxRecord(targets, (0,)))


def test_a_group_in_one_row_gives_the_mass_of_separate_rows() -> None:
    """Three answers behind one prompt: its query-image rows see the prompt alone, whatever follows."""
    model = build("qwen2_5_vl")
    group_attention.install(model)
    install(model)
    torch.manual_seed(1)
    tokens = torch.randint(10, 60, (20,))
    prompt = EncodedPrompt(tokens, torch.zeros(20, dtype=torch.int16), torch.zeros(20, dtype=torch.long), vision={})
    answers, mask = torch.randint(10, 60, (1, 3, 6)), torch.ones(1, 3, 6)
    mask[0, 1, 4:] = 0
    masses = {}
    for layout in ("shared", "plain"):
        inputs = lay_out([prompt], answers, mask, model.model.get_rope_index, layout)
        rows, columns = (torch.zeros_like(inputs.input_ids, dtype=torch.bool) for _ in range(2))
        rows[:, 12:18], columns[:, 3:7] = True, True
        targets = BoxTargets.padded(rows, columns, torch.ones_like(rows))
        record = BoxRecord(targets, (0, 1))
        names = ("input_ids", "groups", "position_ids", "mm_token_type_ids")
        model.model(**{name: getattr(inputs, name) for name in names}, use_cache=False, box_record=record)
        masses[layout] = record.mass().view(-1, 6)
    assert masses["plain"].shape == (3, 6)
    torch.testing.assert_close(masses["shared"].expand(3, 6), masses["plain"], rtol=0, atol=1e-12)


def checkpointed(model: PreTrainedModel) -> PreTrainedModel:
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_equal_gradients_and_scores_no_row_twice_forward(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(family).train()
    case = make_case(family, model)
    install(model)
    twin = checkpointed(copy.deepcopy(model))
    measured = []
    measure = attention_hook.measure
    monkeypatch.setattr(attention_hook, "measure", lambda *arguments: measured.append(1) or measure(*arguments))
    recorded_loss(model, case, (0, 1, 3))[1].backward()
    recorded_loss(twin, case, (0, 1, 3))[1].backward()
    assert len(measured) == 6
    assert_same_gradients(twin, model, 0.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_gets_the_gradient_of_whole_maps(checkpointing: bool) -> None:
    model = build("qwen2_vl")
    case = make_case("qwen2_vl", model)
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|up_proj)"
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=targets), autocast_adapter_dtype=False)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    base = lora.get_base_model()
    twin = with_maps(base, "whole_map")
    install(base)
    mapped_loss(twin, case, (0, 1))[1].backward()
    recorded_loss(checkpointed(base) if checkpointing else base, case, (0, 1))[1].backward()
    assert_same_gradients(base, twin, 1e-10)
    assert all(p.grad is None for name, p in base.named_parameters() if "lora_" not in name)


def test_two_fsdp_ranks_equal_one_process(tmp_path: Path) -> None:
    """Sharded blocks, checkpointed, a sample on each rank; gradients are the mean of the ranks'."""
    expected = one_process()
    seen = on_two_ranks(tmp_path / "gradients.pt")
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_flash_attention_keeps_its_name_and_its_mask_of_padding() -> None:
    model = build("qwen2_vl")
    case = make_case("qwen2_vl", model)
    flash = with_maps(model, "toy_flash")
    install(model)
    install(flash)
    assert text_config(flash)._attn_implementation == "box_mass_toy_flash"
    torch.testing.assert_close(recorded_loss(flash, case, (0, 2))[0], recorded_loss(model, case, (0, 2))[0])
    row = case.row(0)  # no padding, no mask at all
    torch.testing.assert_close(recorded_loss(flash, row, (0, 2))[0], recorded_loss(model, row, (0, 2))[0])


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_that_cannot_be_shared_is_refused_by_name(attention: str) -> None:
    model = build("qwen2_vl")
    text_config(model)._attn_implementation = attention
    with pytest.raises(ValueError, match=f"the model has '{attention}'"):
        install(model)


def test_validation_takes_the_mass_without_a_graph() -> None:
    model = build("qwen2_vl")
    install(model)
    case = make_case("qwen2_vl", model)
    with torch.no_grad():
        losses, _ = recorded_loss(model, case, (0,))
    assert not losses.requires_grad
    assert torch.equal(losses, recorded_loss(model, case, (0,))[0])


def test_a_record_serves_one_forward() -> None:
    model = build("qwen2_vl")
    install(model)
    case = make_case("qwen2_vl", model)
    record = BoxRecord(case.targets, (0,))
    model.model(**case.arguments, use_cache=False, box_record=record)
    with pytest.raises(ValueError, match="belongs to one forward"):
        model.model(**case.arguments, use_cache=False, box_record=record)


def test_layers_that_recorded_nothing_are_named() -> None:
    model = build("qwen2_vl")
    case = make_case("qwen2_vl", model)
    record = BoxRecord(case.targets, (0, 1))
    model.model(**case.arguments, use_cache=False, box_record=record)
    with pytest.raises(ValueError, match=r"layers \[0, 1\] recorded nothing: call install"):
        record.mass()


def test_targets_of_another_batch_are_refused() -> None:
    model = build("qwen2_vl")
    install(model)
    case = make_case("qwen2_vl", model)
    with pytest.raises(ValueError, match=r"targets are for \[1, 30\]"):
        model.model(**case.arguments, use_cache=False, box_record=BoxRecord(case.row(1).targets, (0,)))


def test_reentrant_checkpointing_is_refused() -> None:
    model = build("qwen2_vl").train()
    install(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=False"):
        recorded_loss(model, make_case("qwen2_vl", model), (0,))


def test_a_step_leaves_no_record_behind() -> None:
    """With checkpointing the graph holds the record; the record must not hold the graph too."""
    model = checkpointed(build("qwen2_vl"))
    install(model)
    case = make_case("qwen2_vl", model)
    record = BoxRecord(case.targets, (0, 1))
    model.model(**case.arguments, use_cache=False, box_record=record)
    mass, gone = record.mass(), weakref.ref(record)
    del record, mass
    gc.collect()
    assert gone() is None
