"""The layout: a group as one sequence computes what single answers do, on every family; image inputs of several prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.config import ModelConfig
from rl.group_attention import GroupSpan
from rl.layout import ModelInputs, lay_out, prompt_positions, stack_vision
from rl.policy import Policy, build_model
from rl.prompting import EncodedPrompt, PromptEncoder
from rl.tiny_backbone import write
from tests.rl.families_case import ARCHITECTURES, family_samples
from tests.rl.stock_forward import answer_logits

WORDS = (300, 700)  # ids of words: no image placeholder, which a forward would look for an image behind


class Case:
    """A tiny model of one family; three prompts of one, two and five images; ragged answers of which one failed."""

    def __init__(self, folder: Path) -> None:
        config = ModelConfig(path=str(folder))
        self.encoder = PromptEncoder.of(config)
        model = build_model(config, torch.float32, torch.float32, torch.device("cpu"))
        self.policy = Policy(model, tuple(self.encoder.banned_token_ids))
        self.samples = family_samples()
        self.prompts = [self.encoder.encode(sample) for sample in self.samples]
        generator = torch.Generator().manual_seed(2)
        self.responses_NGR = torch.randint(*WORDS, (3, 4, 6), generator=generator)
        lengths_NG1 = torch.tensor([[6, 1, 4, 3], [2, 6, 0, 5], [1, 3, 6, 2]])[..., None]
        self.mask_NGR = (torch.arange(6) < lengths_NG1).float()

    def inputs(self, layout: str) -> ModelInputs:
        return lay_out(self.prompts, self.responses_NGR, self.mask_NGR, self.policy.rope_index, layout)

    def forward(self, layout: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Logprobs [N, G, R], and the gradients of a sum in which every token has a weight of its own."""
        self.policy.zero_grad()
        inputs = self.inputs(layout)
        logprobs_K, _ = self.policy(inputs, temperature=1.0)
        weights = torch.linspace(-1.0, 1.0, self.mask_NGR.numel())
        (logprobs_K * weights[inputs.place_K]).sum().backward()
        gradients = {n: p.grad.clone() for n, p in self.policy.named_parameters() if p.grad is not None}
        whole = torch.zeros(self.mask_NGR.numel()).index_put((inputs.place_K,), logprobs_K.detach())
        return whole.reshape(self.mask_NGR.shape), gradients


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp(request.param)
    write(folder, seed=0, architecture=request.param)
    return Case(folder)


def test_a_group_as_one_sequence_equals_one_row_an_answer(case: Case) -> None:
    (shared, by_group), (plain, by_answer) = (case.forward(layout) for layout in ("shared", "plain"))
    assert float(shared.abs().max()) > 1.0
    assert float((shared - plain).abs().max()) <= 5e-6
    assert by_group.keys() == by_answer.keys()
    largest = max(float(gradient.abs().max()) for gradient in by_answer.values())
    for name, gradient in by_answer.items():
        assert float((by_group[name] - gradient).abs().max()) <= 5e-6 * largest, name


def test_the_forward_is_hugging_faces_own(case: Case) -> None:
    """A stock forward of one prompt and one answer: its own positions and mask, log-softmax by hand."""
    ours, _ = case.forward("shared")
    for n, sample in enumerate(case.samples):
        for g in range(4):
            tokens = case.responses_NGR[n, g, : int(case.mask_NGR[n, g].sum())]
            if len(tokens):
                logits = answer_logits(case.policy.model, case.encoder, sample, tokens.tolist())
                logits[:, list(case.encoder.banned_token_ids)] = -torch.inf
                expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
                torch.testing.assert_close(ours[n, g, : len(tokens)], expected, atol=1e-5, rtol=0)


def test_every_image_reaches_the_answers(case: Case) -> None:
    """A gradient of one answer's logprob in every image of its prompt, and in no other prompt's."""
    inputs = case.inputs("shared")
    pixels = inputs.vision["pixel_values"].requires_grad_()
    logprobs_K, _ = case.policy(inputs, temperature=1.0)
    group_K = inputs.place_K // case.mask_NGR[0].numel()
    logprobs_K[group_K == 1].sum().backward()
    assert pixels.grad is not None
    first, second, third = pixels.grad.split([len(p.vision["pixel_values"]) for p in case.prompts])
    assert not first.any() and not third.any()
    per_image = second.split(rows_per_image(case.prompts[1]))
    assert len(per_image) == 2 and all(bool(gradient.any()) for gradient in per_image)


def rows_per_image(prompt: EncodedPrompt) -> list[int]:
    """Rows of `pixel_values` an image: its patches, or one."""
    grids = prompt.image_grid_thw
    return [1] * len(prompt.vision["image_sizes"]) if grids is None else grids.prod(-1).tolist()


def test_positions_have_the_familys_axes(case: Case) -> None:
    positions = prompt_positions(case.prompts[2], case.policy.rope_index)
    plain = torch.arange(len(case.prompts[2].input_ids))
    if case.encoder.family.name == "LLaVA-OneVision":
        assert torch.equal(positions, plain[None])
        assert case.inputs("shared").position_ids.dim() == 2
    else:
        assert positions.shape == (3, len(plain))
        assert int(positions.max()) < len(plain) - 1  # an image's tokens share positions
        assert case.inputs("shared").position_ids.shape[0] == 3


def test_an_answer_counts_on_from_its_prompt_and_sees_itself_alone(case: Case) -> None:
    inputs = case.inputs("shared")
    rows = inputs.position_ids if inputs.position_ids.dim() == 2 else inputs.position_ids[0]
    prompt = case.prompts[0]
    length, largest = len(prompt.input_ids), int(prompt_positions(prompt, case.policy.rope_index).max())
    ragged = [1 + step for answer in (6, 1, 4, 3) for step in range(answer)]
    assert rows[0, length : length + len(ragged)].tolist() == [largest + step for step in ragged]
    assert inputs.groups is not None and inputs.groups.spans[0] == GroupSpan(0, length, (6, 1, 4, 3))
    seen = inputs.groups.bias(length, (6, 1, 4, 3), torch.zeros(1))[6 + 1 + 1] == 0  # of the third answer's second token
    third = length + 6 + 1  # where it begins
    assert seen.nonzero()[:, 0].tolist() == [*range(length), third, third + 1]


def test_groups_lie_one_after_another_without_padding(case: Case) -> None:
    inputs = case.inputs("shared")
    lengths = [len(prompt.input_ids) for prompt in case.prompts]
    assert inputs.input_ids.shape == (1, sum(lengths) + int(case.mask_NGR.sum()))
    assert inputs.starts == ((0, 0), (0, lengths[0] + 14), (0, lengths[0] + 14 + lengths[1] + 13))
    for prompt, (_, first) in zip(case.prompts, inputs.starts, strict=True):
        assert torch.equal(inputs.input_ids[0, first : first + len(prompt.input_ids)], prompt.input_ids)
    padded = lay_out(case.prompts, case.responses_NGR, case.mask_NGR, case.policy.rope_index, "shared", multiple=64)
    assert padded.input_ids.shape[1] % 64 == 0


def test_a_failed_answer_takes_no_place_and_all_failed_is_refused(case: Case) -> None:
    places = set(case.inputs("shared").place_K.tolist())
    assert places == set(case.mask_NGR.flatten().nonzero()[:, 0].tolist())
    assert len(case.inputs("plain").input_ids) == 11  # of twelve
    with pytest.raises(ValueError, match="at least one answer token"):
        lay_out(case.prompts, case.responses_NGR, torch.zeros_like(case.mask_NGR), case.policy.rope_index)


def test_images_in_different_numbers_of_tiles_are_padded(case: Case) -> None:
    stacked = stack_vision(case.prompts)
    assert stacked.keys() == case.prompts[0].vision.keys()
    at = 0
    for prompt in case.prompts:
        rows = prompt.vision["pixel_values"]
        placed = stacked["pixel_values"][at : at + len(rows)]
        if rows.dim() == 5:
            assert torch.equal(placed[:, : rows.shape[1]], rows)
            assert not placed[:, rows.shape[1] :].any()
        else:
            assert torch.equal(placed, rows)
        at += len(rows)
    assert at == len(stacked["pixel_values"])
    assert stack_vision([]) == {}
