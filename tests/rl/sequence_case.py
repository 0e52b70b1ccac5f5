"""One computation by ranks that share every sequence, and the same by one rank: what the sequence tests compare."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch import multiprocessing as mp
from transformers import PreTrainedModel
from verl.protocol import DataProto

from rl.batch import answer_batch, balance
from rl.config import AlgorithmConfig, AttentionLossConfig, LearnerConfig, OptimizerConfig
from rl.engines.base import Rendezvous
from rl.learner import Learner
from rl.objectives import GrpoObjective, LanguageModelObjective, Objective
from rl.prompting import PromptEncoder
from rl.sequence_parallel import SequenceParallel
from tests.rl.analysis_case import focus_samples
from tests.rl.attention_case import FAMILIES, make_case
from tests.rl.learner_case import case_batch, model_config

LENGTHS = (38, 30)  # of two rows of a batch; together they hold eight images
ATTENTION_LOSS = AttentionLossConfig(weight=3.0, margin=0.5)


def hidden_and_gradients(family: str, masked: bool, together: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of the real tokens and gradients of a sum over them, in double precision, layers checkpointed."""
    torch.manual_seed(0)
    model = FAMILIES[family]().double().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    arguments, tokens_BL = _inputs(family, model, masked)
    if together > 1:
        SequenceParallel(model, together)
    hidden = model.model(**arguments, use_cache=False).last_hidden_state[tokens_BL]
    hidden.sin().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    if together > 1:  # what an engine does
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= together
    return hidden.detach(), gradients


def _inputs(family: str, model: PreTrainedModel, masked: bool) -> tuple[dict[str, Any], Tensor]:
    case = make_case(family, model, lengths=LENGTHS)
    length, tokens_BL = max(LENGTHS), case.tokens_BL
    causal = torch.ones(length, length, dtype=torch.bool).tril() & tokens_BL[:, None] | torch.eye(length, dtype=torch.bool)
    arguments: dict[str, Any] = case.arguments | {"attention_mask": causal[:, None] if masked else None}
    if family == "llava_onevision":
        arguments["position_ids"] = torch.arange(length) * tokens_BL
    else:
        known = {name: arguments[name] for name in ("mm_token_type_ids", "image_grid_thw")}
        arguments["position_ids"], _ = model.model.get_rope_index(arguments["input_ids"], **known)
    return arguments, tokens_BL


@dataclass(frozen=True)
class Scenario:
    """An update of the tiny model: the learner's settings and the batch."""

    batch: Callable[[PromptEncoder], DataProto] = case_batch
    objective: Callable[[], Objective] = lambda: GrpoObjective(AlgorithmConfig(entropy_coefficient=0.1))
    attention_loss: AttentionLossConfig | None = None
    lora_rank: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def _one_token(encoder: PromptEncoder) -> DataProto:
    """A batch with a single answer token, which only one rank can score."""
    batch = case_batch(encoder, groups=1, answers=2)
    for name in ("response_mask", "loss_mask"):
        batch.batch[name][:, 1:] = 0.0
        batch.batch[name][:, :, 1:] = 0.0
    return batch


def _focus(encoder: PromptEncoder) -> DataProto:
    samples = [focus_samples(1, shots=count)[0] for count in (1, 2, 4)]
    answers = [encoder.answer_tokens("<answer>[1, 2, 3, 4]</answer>" + " left" * n) for n in range(len(samples))]
    return answer_batch(samples, answers, [encoder.prompt_length(sample) for sample in samples])


SCENARIOS = {
    "shared": Scenario(settings={"tokens_per_micro_batch": 400}),
    "plain": Scenario(settings={"layout": "plain"}),
    "lora": Scenario(lora_rank=4),
    "host memory": Scenario(settings={"tokens_per_micro_batch": 400, "offload": "all"}),
    "one token": Scenario(batch=_one_token),
    "attention loss": Scenario(batch=_focus, objective=LanguageModelObjective, attention_loss=ATTENTION_LOSS),
}
ZERO = {
    "ZeRO-2": Scenario(settings={"engine": "deepspeed", "zero_stage": 2}),
    "ZeRO-3, attention loss": Scenario(
        batch=_focus,
        objective=LanguageModelObjective,
        attention_loss=ATTENTION_LOSS,
        settings={"engine": "deepspeed", "zero_stage": 3},
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a scenario left: logprobs of rank 0's share, metrics of two updates, the weights afterwards."""

    logprobs: Tensor
    metrics: list[dict[str, float]]
    weights: dict[str, Tensor]


def outcome(scenario: Scenario, model_dir: Path, together: int = 1, where: Rendezvous | None = None) -> Outcome:
    where = where or Rendezvous()
    model = model_config(model_dir, scenario.lora_rank)
    config = LearnerConfig(**{"dtype": "float32", "sequence_parallel": together, **scenario.settings})
    encoder, attention_loss = PromptEncoder.of(model), scenario.attention_loss
    learner = Learner(model, config, OptimizerConfig(eps=1e-4), encoder, where, 0.8, attention_loss)
    groups = where.world_size // together
    share = balance(scenario.batch(encoder), groups, config.tokens_per_micro_batch, config.layout)[where.rank // together]
    logprobs = learner.logprobs(share)
    metrics = [learner.update(share, scenario.objective(), lr=1e-3) for _ in range(2)]
    weights = {name: tensor.clone() for name, tensor in learner.full_weights()}
    learner.close()
    return Outcome(logprobs, metrics, weights)


def _rank(
    rank: int, world: int, together: int, port: int, model_dir: Path, out: Path, names: list[str], families: bool
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found: dict[Any, Any] = {}
    for name in names:
        found[name] = outcome((SCENARIOS | ZERO)[name], model_dir, together, Rendezvous(rank, world))
    if families:
        for family in FAMILIES:
            for masked in (True, False):
                found[family, masked] = hidden_and_gradients(family, masked, together)
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def on_ranks(
    world: int, together: int, model_dir: Path, out: Path, names: Iterable[str], families: bool = False
) -> dict[Any, Any]:
    """The scenarios called `names` (and every family) by `world` processes, groups of which compute sequences `together`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(world, together, port, model_dir, out, list(names), families), nprocs=world)
    found: dict[Any, Any] = torch.load(out, weights_only=False)
    return found
