"""One decoder layer of Qwen2-VL-7B's shape, forward and backward: plain, with the attention loss, and with whole maps.

    python -m tests.bench.bench_attention_loss [--tokens 4096 8192] [--repeats 1] [--threads 2] [--json]

The layer is whole (attention, MLP, norms) and its weights are frozen, as under LoRA; the mask is the learner's, [1, 1, L, L]
bool. 1,024 query-image tokens look at four boxes of twenty tokens. On a CPU: float32, seconds of processor time, and the
peak of what tensors hold above what they held before, as torch's profiler counts it; some minutes. With CUDA: bfloat16,
also five layers, device time and the allocator's peak. The variants take turns in one process; ratios are of medians.
"The loss alone" runs its own operations on tensors of the layer's shape, because a busy machine's noise on a layer of a
minute hides them. Whole maps that would not fit in half of the free memory are left out by name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2VLTextConfig, Qwen2VLTextModel

from rl.attention_hook import BoxRecord, install
from rl.attention_loss import BoxTargets, box_loss
from tests.bench.rows import Row

NAME = "Attention loss"
ROWS, BOXES, BOX_TOKENS = 1024, 4, 20
HEADS, LAYERS_7B, CHOSEN_7B = 28, 28, 5
MARGIN, BETA = 0.025, 0.25


@dataclass(frozen=True)
class Step:
    """A model of some layers and a batch of one sequence on it."""

    model: Qwen2VLTextModel
    hidden: Tensor
    mask: Tensor
    targets: BoxTargets

    @classmethod
    def of(cls, layers: int, length: int, device: torch.device, dtype: torch.dtype) -> Step:
        config = Qwen2VLTextConfig(
            vocab_size=8,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        )
        with device:
            model = Qwen2VLTextModel._from_config(config, dtype=dtype, attn_implementation="sdpa").requires_grad_(False)
            hidden = torch.randn(1, length, config.hidden_size, dtype=dtype).requires_grad_()
            mask = torch.ones(length, length, dtype=torch.bool).tril_()[None, None]
        install(model)
        rows, columns = (torch.zeros(1, length, dtype=torch.bool) for _ in range(2))
        rows[:, -ROWS - 64 : -64] = True
        for box in range(BOXES):
            start = (box + 1) * (length - ROWS - 200) // BOXES
            columns[:, start : start + BOX_TOKENS] = True
        return cls(model, hidden, mask, BoxTargets.padded(rows, columns, torch.ones_like(rows)))

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.model.config.num_hidden_layers))

    def plain(self) -> Tensor:
        return self._forward("box_mass_sdpa").last_hidden_state.float().mean()

    def with_loss(self) -> Tensor:
        record = BoxRecord(self.targets, self.layers)
        output = self._forward("box_mass_sdpa", box_record=record)
        return output.last_hidden_state.float().mean() + BETA * box_loss(record.mass(), self.targets, MARGIN).mean()

    def with_maps(self) -> Tensor:
        """The paper's way: the mean of the whole maps, then rows and columns of it."""
        output = self._forward("eager", output_attentions=True)
        map_LL = torch.stack([whole[0].float().mean(0) for whole in output.attentions]).mean(0)
        mass = map_LL[self.targets.rows_BL[0]][:, self.targets.columns_BL[0]].sum(-1)
        return output.last_hidden_state.float().mean() + BETA * box_loss(mass, self.targets, MARGIN).mean()

    def alone(self) -> Tensor:
        """The loss on queries and keys of the layers' shape, without the layers."""
        length, config = self.hidden.shape[1], self.model.config
        record, mask = BoxRecord(self.targets, self.layers), self.mask
        for layer in self.layers:
            query, key = (
                torch.randn(1, length, heads, 128, dtype=self.hidden.dtype, device=self.hidden.device, requires_grad=True)
                for heads in (config.num_attention_heads, config.num_key_value_heads)
            )
            record.add(layer, query.transpose(1, 2), key.transpose(1, 2), mask, 128**-0.5)
        return box_loss(record.mass(), self.targets, MARGIN).mean()

    def _forward(self, attention: str, **kwargs: object):  # type: ignore[no-untyped-def]
        self.model.config._attn_implementation = attention
        mask = self.mask
        if attention == "eager":
            mask = torch.zeros_like(mask, dtype=self.hidden.dtype).masked_fill_(~mask, torch.finfo(self.hidden.dtype).min)
        return self.model(inputs_embeds=self.hidden, attention_mask=mask, use_cache=False, **kwargs)

    def map_bytes(self) -> int:
        """What the maps alone need: scores, shares, and their gradients."""
        return 4 * len(self.layers) * HEADS * self.hidden.shape[1] ** 2 * self.hidden.dtype.itemsize


def measure_cpu(step: Callable[[], Tensor]) -> tuple[float, int]:
    """(seconds of processor time, bytes of extra peak memory) of a forward and backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        began = time.process_time()
        step().backward()
        seconds = time.process_time() - began
    records = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    deltas = [event.nbytes() for event in sorted(records, key=lambda event: event.start_ns())]
    return seconds, max(itertools.accumulate(deltas))


def measure_cuda(step: Callable[[], Tensor]) -> tuple[float, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    step().backward()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / 1000, torch.cuda.max_memory_allocated() - before


def free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available


def measure(layers: int, length: int, repeats: int, device: torch.device) -> list[dict[str, float | str]]:
    """A row a variant: medians over the repeats, on CUDA after one round to warm up."""
    step = Step.of(layers, length, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    variants = {"plain SDPA": step.plain, "with the loss": step.with_loss, "the loss alone": step.alone}
    if step.map_bytes() < free_memory(device) // 2:
        variants["whole maps"] = step.with_maps
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in variants}
    warm_up = 1 if device.type == "cuda" else 0
    for round_ in range(warm_up + repeats):
        for name, variant in variants.items():
            result = (measure_cuda if device.type == "cuda" else measure_cpu)(variant)
            step.hidden.grad = None
            print(
                f"{layers} × {length} {name}: {result[0]:.2f} s, {result[1] / 2**20:,.0f} MiB", file=sys.stderr, flush=True
            )
            if round_ >= warm_up:
                taken[name].append(result)
    rows: list[dict[str, float | str]] = []
    for name, results in taken.items():
        seconds, peak = (statistics.median(values) for values in zip(*results, strict=True))
        rows.append({"layers": layers, "tokens": length, "variant": name, "seconds": seconds, "extra_peak_bytes": peak})
    if "whole maps" not in variants:
        rows.append({"layers": layers, "tokens": length, "variant": f"whole maps, {step.map_bytes() / 1e9:.0f} GB: not run"})
    return rows


def rows(quick: bool) -> list[Row]:
    """Row of `make bench`: a layer's time beside the layer's and the loss's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length, dtype = 2048, torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    step = Step.of(1, length, device, dtype)
    taken = measure_cuda if device.type == "cuda" else measure_cpu
    repeats = 1 if quick else 3
    layer = statistics.median(taken(step.plain)[0] for _ in range(repeats))
    alone = statistics.median(taken(step.alone)[0] for _ in range(3 * repeats))
    return [
        Row(
            name=f"a 7B layer of {length} tokens with the loss",
            value=layer + alone,
            unit="s",
            floor=f"the layer alone {layer:.3g} s",
            ratio=layer / (layer + alone),
            how=f"forward and backward, {'device' if device.type == 'cuda' else 'processor'} time",
        )
    ]


def show(rows: list[dict[str, float | str]], threads: int) -> None:
    cuda = torch.cuda.is_available()
    title = torch.cuda.get_device_name() + ", bfloat16" if cuda else f"CPU, float32, {threads} threads"
    table = Table(title=f"Qwen2-VL-7B decoder layers, {ROWS} rows × {BOXES * BOX_TOKENS} box tokens; {title}")
    for column in ("layers", "tokens", "variant", "seconds", "× plain", "peak, MiB", "× plain"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    plain: dict[str, float | str] = {}
    for row in rows:
        plain = row if row["variant"] == "plain SDPA" else plain
        cells = [str(row["layers"]), str(row["tokens"]), str(row["variant"])]
        if "seconds" in row:
            seconds, peak = float(row["seconds"]), float(row["extra_peak_bytes"])
            cells += [f"{seconds:.3f}", f"{seconds / float(plain['seconds']):.3f}×"]
            cells += [f"{peak / 2**20:,.0f}", f"{peak / float(plain['extra_peak_bytes']):.3f}×"]
        table.add_row(*cells)
    Console(width=100).print(table)
    for layer, alone in zip(rows, rows[2:], strict=False):
        if alone["variant"] == "the loss alone" and layer["layers"] == 1:
            share = float(alone["seconds"]) / float(layer["seconds"]) * CHOSEN_7B / LAYERS_7B
            print(f"{alone['tokens']} tokens: the loss in {CHOSEN_7B} of {LAYERS_7B} layers adds {share:.2%} of their time")


def main() -> None:
    parser = argparse.ArgumentParser(description="time and memory of the attention loss")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for layers in (1, CHOSEN_7B) if device.type == "cuda" else (1,):
        for length in arguments.tokens:
            rows += measure(layers, length, arguments.repeats, device)
    print(json.dumps(rows)) if arguments.json else show(rows, arguments.threads)


if __name__ == "__main__":
    main()
