"""Groups packed into one row equal the plain padded forward in double precision: four families, the attention loss on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.attention_hook import BoxRecord, install
from rl.attention_loss import BoxTargets, box_loss
from rl.layout import ModelInputs, lay_out
from rl.policy import Policy
from rl.prompting import EncodedPrompt
from tests.rl.attention_case import FAMILIES, IMAGE, START, pixels_of

EXACT = {"atol": 1e-10, "rtol": 0}


class Case:
    """A tiny model in double precision, checkpointed; prompts of one, five and two images."""

    def __init__(self, family: str) -> None:
        torch.manual_seed(0)
        model = FAMILIES[family]().double().train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        self.policy = Policy(model, banned=(IMAGE,))
        install(model)
        self.prompts = [self._prompt(family, images) for images in (1, 5, 2)]

    @staticmethod
    def _prompt(family: str, images: int) -> EncodedPrompt:
        """Every image behind three words, then two words."""
        pixels, tokens = pixels_of(family, images, torch.float64)
        image = [START, *[IMAGE] * tokens]
        words = torch.randint(10, 60, (images, 3)).tolist()
        ids = torch.tensor([each for three in words for each in (*three, *image)] + [11, 12])
        return EncodedPrompt(ids, torch.zeros(len(ids), dtype=torch.int16), (ids == IMAGE).long(), pixels)

    def inputs(self, layout: str, mask_NGR: Tensor) -> ModelInputs:
        responses = torch.randint(10, 60, mask_NGR.shape, generator=torch.Generator().manual_seed(3))
        return lay_out(self.prompts, responses, mask_NGR, self.policy.rope_index, layout)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.policy.zero_grad()
        loss.backward()
        return {name: each.grad.clone() for name, each in self.policy.named_parameters() if each.grad is not None}


@pytest.fixture(autouse=True)
def double_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes norms and rotations to float32; here that is double, too."""
    to = Tensor.to

    def stays(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wanted = [torch.float64 if each is torch.float32 else each for each in args]
        named = {name: torch.float64 if each is torch.float32 else each for name, each in kwargs.items()}
        return to(tensor, *wanted, **named)

    monkeypatch.setattr(Tensor, "to", stays)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def masks(lengths: list[list[int]]) -> Tensor:
    return (torch.arange(7) < torch.tensor(lengths)[..., None]).double()


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **EXACT)


def test_logprobs_entropies_and_gradients_of_ragged_answers(case: Case) -> None:
    mask = masks([[7, 1, 4, 3], [2, 6, 0, 5], [1, 3, 6, 2]])
    found = []
    for layout in ("shared", "plain"):
        inputs = case.inputs(layout, mask)
        logprobs_K, entropy_K = case.policy(inputs, temperature=0.7)
        order = inputs.place_K.argsort()
        weights = torch.linspace(-1, 1, len(order), dtype=torch.float64)
        loss = (weights * logprobs_K[order]).sum() + (weights.flip(0) * entropy_K[order]).sum()
        found.append((logprobs_K[order].detach(), entropy_K[order].detach(), case.gradients(loss)))
    (logprobs, entropies, gradients), plain = found
    assert logprobs.dtype == torch.float64 and float(logprobs.abs().max()) > 1
    torch.testing.assert_close(logprobs, plain[0], **EXACT)
    torch.testing.assert_close(entropies, plain[1], **EXACT)
    close(gradients, plain[2])


def box_record(case: Case, inputs: ModelInputs, answers: list[int]) -> BoxRecord:
    """The last image's tokens look at the three words before the prompt's last ones."""
    rows, columns = (torch.zeros(inputs.input_ids.shape, dtype=torch.bool) for _ in range(2))
    number = torch.full(inputs.input_ids.shape, -1)
    for sample, (prompt, (b, first), answer) in enumerate(zip(case.prompts, inputs.starts, answers, strict=True)):
        length = len(prompt.input_ids)
        rows[b, first + length - 4 : first + length - 2] = True
        columns[b, first : first + 3] = True
        number[b, first : first + length + answer] = sample
    return BoxRecord(BoxTargets(rows, columns, number), (0, 2))


def test_the_attention_loss_of_packed_samples(case: Case) -> None:
    """SFT's batches: an answer a prompt."""
    answers = [7, 2, 5]
    mask = masks([[length] for length in answers])
    found = []
    for layout in ("shared", "plain"):
        inputs = case.inputs(layout, mask)
        record = box_record(case, inputs, answers)
        logprobs_K, _ = case.policy(inputs, 1.0, record)
        each_S = box_loss(record.mass(), record.targets, margin=0.5)
        found.append((each_S.detach(), case.gradients(each_S.sum() - logprobs_K.sum())))
    assert float(found[0][0].min()) > 0
    torch.testing.assert_close(found[0][0], found[1][0], **EXACT)
    close(found[0][1], found[1][1])


def test_a_frozen_policy_scores_the_same(case: Case) -> None:
    mask = masks([[7, 1], [2, 6], [1, 3]])
    with torch.no_grad():
        scored = [case.policy(case.inputs(layout, mask), 1.0)[0] for layout in ("shared", "plain")]
    torch.testing.assert_close(*scored, **EXACT)


def test_padding_of_a_row_changes_nothing(case: Case) -> None:
    inputs = case.inputs("shared", masks([[7, 1], [2, 6], [1, 3]]))
    extra = torch.zeros(1, 5, dtype=torch.long)
    longer = {name: torch.cat([getattr(inputs, name), extra], 1) for name in ("input_ids", "mm_token_type_ids")}
    positions = torch.cat([inputs.position_ids, inputs.position_ids[..., :5] * 0], -1)
    with torch.no_grad():
        (scored, _), (expected, _) = (
            case.policy(each, 1.0) for each in (replace(inputs, position_ids=positions, **longer), inputs)
        )
    torch.testing.assert_close(scored, expected, **EXACT)
