"""One policy forward and backward over a long group, by one rank and by ranks that compute it together, on a CPU.

    python -m tests.bench.bench_sequence_parallel [--prompt 1792] [--ranks 1 2] [--json]

A stack of a 3B's proportions in float32 (hidden 512, 4 layers, 8 heads, 4 key heads, 8k words), weights frozen as under
LoRA; a prompt and four answers of 64 tokens in one row, under the learner's mask. For each number of ranks: the bytes of
tensors that live at once on rank 0, above weights and inputs: kept at the end of the forward, and at most; what rank 0
sends to others, as its collectives say; and how far its logprobs are from one rank's. Gloo's seconds on shared cores say
nothing and are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import multiprocessing as mp
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rl.layout import ModelInputs, lay_out
from rl.policy import Policy
from rl.prompting import EncodedPrompt
from rl.sequence_parallel import SequenceParallel
from tests.rl.plan.live_bytes import LiveBytes

ANSWERS, ANSWER_TOKENS, WORDS = 4, 64, 8192
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 512,
    "intermediate_size": 2752,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"depth": 1, "num_heads": 2, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 512}
# Bytes that a rank sends to others for each byte that its operator takes in, by n ranks.
SENT = {
    "_c10d_functional::all_to_all_single": lambda n: (n - 1) / n,
    "_c10d_functional::all_gather_into_tensor": lambda n: n - 1,
    "_c10d_functional::reduce_scatter_tensor": lambda n: (n - 1) / n,
    "_c10d_functional::all_reduce": lambda n: 2 * (n - 1) / n,
}


class Step(LiveBytes):
    """Live bytes, and bytes sent by collectives."""

    def __init__(self, held: list[torch.Tensor], ranks: int) -> None:
        super().__init__(held)
        self.ranks, self.sent = ranks, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        share = SENT.get(func.name().partition(".")[0])
        if share is not None:
            self.sent += args[0].numel() * args[0].element_size() * share(self.ranks)
        return super().__torch_dispatch__(func, types, args, kwargs)


def build_policy(checkpointing: bool) -> Policy:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=5, video_token_id=6)
    policy = Policy(Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").train(), ())
    policy.requires_grad_(False)
    policy.base.get_input_embeddings().requires_grad_(True)  # below all layers, as an adapter in the first one is
    if checkpointing:
        policy.base.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def build_inputs(policy: Policy, prompt_tokens: int, multiple: int) -> ModelInputs:
    tokens = torch.randint(10, WORDS, (prompt_tokens,))
    prompt = EncodedPrompt(tokens, torch.zeros(prompt_tokens, dtype=torch.int16), torch.zeros_like(tokens), {})
    responses = torch.randint(10, WORDS, (1, ANSWERS, ANSWER_TOKENS))
    return lay_out([prompt], responses, torch.ones(responses.shape), policy.rope_index, "shared", multiple)


def measure(ranks: int, prompt_tokens: int, checkpointing: bool) -> dict[str, Any]:
    policy = build_policy(checkpointing)
    inputs = build_inputs(policy, prompt_tokens, ranks)
    if ranks > 1:
        policy.sequence = SequenceParallel(policy.base, ranks)
    held = [*policy.parameters(), *policy.buffers(), *(value for value in vars(inputs).values() if torch.is_tensor(value))]
    step = Step(held, ranks)
    before = step.now
    with step:
        logprobs, _ = policy(inputs, 1.0)
        kept = step.now - before
        logprobs.sum().backward()
    return {"peak": step.peak - before, "kept": kept, "sent": step.sent, "logprobs": logprobs.detach()}


def _rank(rank: int, world: int, port: int, counts: list[int], prompt_tokens: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = {
        (ranks, checkpointing): measure(ranks, prompt_tokens, checkpointing)
        for checkpointing in (False, True)
        for ranks in counts
    }
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def rows_of(counts: list[int], prompt_tokens: int) -> list[dict[str, Any]]:
    """Each of `counts`, without and with checkpointing, in one process group; smaller groups do the same side by side."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        out, world = Path(folder) / "found.pt", max(counts)
        mp.spawn(_rank, args=(world, port, counts, prompt_tokens, out), nprocs=world)
        found: dict[tuple[int, bool], dict[str, Any]] = torch.load(out)
    rows = []
    for (ranks, checkpointing), seen in found.items():
        alone = found[counts[0], checkpointing]
        gap = float((seen["logprobs"] - alone["logprobs"]).abs().max())
        figures = {name: seen[name] for name in ("kept", "peak", "sent")}
        rows.append({"ranks": ranks, "checkpointing": checkpointing, **figures, "gap": gap, "of": alone["peak"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="one sequence on several ranks")
    parser.add_argument("--prompt", type=int, default=1792, help="prompt tokens")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = rows_of(arguments.ranks, arguments.prompt)
    if arguments.json:
        print(json.dumps(rows))
        return
    length = arguments.prompt + ANSWERS * ANSWER_TOKENS
    table = Table(title=f"One row of {length} tokens, forward and backward, bytes of one rank")
    for column in ("checkpoints", "ranks", "kept, MB", "peak, MB", "of one", "sent, MB", "|Δ logprob|"):
        table.add_column(column, justify="right")
    for row in rows:
        sizes = [f"{row[name] / 1e6:.1f}" for name in ("kept", "peak")]
        share, sent = f"{row['peak'] / row['of']:.2f}", f"{row['sent'] / 1e6:.1f}"
        table.add_row("yes" if row["checkpointing"] else "no", str(row["ranks"]), *sizes, share, sent, f"{row['gap']:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
