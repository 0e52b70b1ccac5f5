"""A plan for people (plain text, at most 100 columns, pastes into a README) and for machines (JSON)."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rl.plan import roofline
from rl.plan.advice import Advice
from rl.plan.config import PlanConfig
from rl.plan.hardware import Hardware
from rl.plan.memory import MemoryItem, RoleMemory
from rl.plan.plan import TIGHT, Plan, StagePlan, gib, usable

WIDTH = 100
GIB = 1 << 30


def to_text(plan: Plan, config: PlanConfig, advice: Advice | None, explain: bool = False) -> str:
    """The whole report. `advice`: what would fit, where the plan does not. `explain`: every memory item's arithmetic."""
    lines = [*_heading(plan), ""]
    for stage in plan.stages:
        lines += [*_memory(plan, stage, explain), "", *_time(stage), ""]
    lines += [*_whole(plan), "", *_verdict(plan, advice)]
    if plan.hardware:
        lines += ["", *_assumptions(plan, config)]
    return "\n".join(lines)


def verdict(role: str, total: int, capacity: int) -> str:
    """`tight` is within the arithmetic's own error."""
    return "NO" if total > usable(role, capacity) else "tight" if total > TIGHT * capacity else "ok"


def _heading(plan: Plan) -> Iterator[str]:
    yield f"{plan.name}: {machines(plan.hardware)}"
    shape, workload = plan.shape, plan.workload
    trained = shape.numel_trainable
    yield f"  model   {shape.name}: {_count(shape.numel)} parameters, {_count(trained)} of them train"
    yield (
        f"  prompt  {workload.prompt_tokens:.0f} tokens, at most {workload.prompt_tokens_max}; {workload.images:.3g} images "
        f"of {workload.patches:.0f} patches in all"
    )
    yield f"  answer  {workload.answer_tokens:.0f} tokens, at most {workload.answer_tokens_max}"
    for name, source, how in workload.sources:
        yield from _wrapped(f"{name}: {source}, {how}", "          ")


def machines(hardware: Hardware | None) -> str:
    if hardware is None:
        return "no GPU: this recipe runs on CPU"
    return f"{hardware.nodes} × {hardware.gpus_per_node} {hardware.gpu.name}"


def _memory(plan: Plan, stage: StagePlan, explain: bool) -> Iterator[str]:
    assert plan.hardware is not None
    capacity = plan.hardware.gpu.memory_bytes
    names = list(dict.fromkeys(item.name for role in stage.roles for item in role.items))
    rows = [["GiB a GPU", *(role.role for role in stage.roles)]]
    rows += [["GPUs", *(_gpus(role) for role in stage.roles)]]
    rows += [[name, *(_cell(_of(role, name)) for role in stage.roles)] for name in names]
    rows += [["total", *(_cell(role.total) for role in stage.roles)]]
    rows += [["capacity", *(_cell(capacity) for _ in stage.roles)]]
    rows += [["headroom", *(_cell(capacity - role.total) for role in stage.roles)]]
    rows += [["fits", *(verdict(role.role, role.total, capacity) for role in stage.roles)]]
    yield f"{stage.stage}: memory"
    yield from _table(rows)
    if explain:
        for role in stage.roles:
            for item in role.items:
                yield from _wrapped(f"{role.role} {item.name}: {item.how}", "  ")


def _gpus(role: RoleMemory) -> str:
    return str(role.actors) if role.gpus_per_actor == 1 else f"{role.actors} × {role.gpus_per_actor}"


def _of(role: RoleMemory, name: str) -> int | None:
    sizes = [item.bytes for item in role.items if item.name == name]
    return sum(sizes) if sizes else None


def _cell(size: int | None) -> str:
    return "–" if size is None else f"{size / GIB:.1f}"


def _time(stage: StagePlan) -> Iterator[str]:
    whole = max(stage.step_seconds, 1e-12)
    rows = [["phase", "seconds", "of it hidden", "share", "bound"]]
    for phase in stage.phases:
        hidden = f"{phase.hidden:.2f}" if phase.hidden else "–"
        share = f"{100 * phase.exposed / whole:.0f} %"
        rows.append([phase.name, f"{phase.seconds:.2f}", hidden, share, phase.bound])
    rows.append(["step", f"{stage.step_seconds:.2f}", "", "", ""])
    yield f"{stage.stage}: time of a step of {stage.answers} answers"
    yield from _table(rows)
    yield (
        f"  {stage.answers / whole:.3g} samples/s, {stage.answer_tokens / whole:,.0f} answer tokens/s; "
        f"{stage.steps} steps take {stage.seconds / 3600:.3g} h"
    )
    for phase in stage.phases:
        yield from _wrapped(f"{phase.name}: {phase.how}", "  ")


def _whole(plan: Plan) -> Iterator[str]:
    if plan.hardware:
        used = f"{plan.gpus_used} of {plan.hardware.gpus} GPUs used, all paid for"
        yield f"whole recipe: {plan.hours:.3g} h, {plan.gpu_hours:,.0f} GPU-hours ({used})"
        yield from _wrapped(f"cost:         {cost_words(plan)}", "", " " * 14)
        yield f"disk:         {plan.disk_bytes / 1e9:,.0f} GB of checkpoints and export, where runs are kept"
    host = f"{gib(plan.host.total)} of {gib(plan.host_bytes)} a node: {_largest(plan.host.items)}"
    yield from _wrapped(f"host memory:  {host}", "", " " * 14)


def cost_words(plan: Plan) -> str:
    assert plan.hardware is not None
    if plan.usd is None:
        return f"no list price of {plan.hardware.gpu.name} is known here; give price=, dollars a GPU-hour"
    price = f"${plan.hardware.usd_per_gpu_hour:.2f} a GPU-hour ({plan.hardware.price_source})"
    return f"about ${plan.usd:,.0f} at {price}: an estimate"


def _largest(items: Sequence[MemoryItem]) -> str:
    ordered = sorted(items, key=lambda item: -item.bytes)[:3]
    return ", ".join(f"{item.name} {gib(item.bytes)}" for item in ordered) or "nothing"


def _verdict(plan: Plan, advice: Advice | None) -> Iterator[str]:
    if plan.fits:
        yield "it fits"
        return
    yield "it does NOT fit:"
    for problem in plan.problems:
        yield from _wrapped(problem.what, "  - ", "    ")
        yield from _wrapped(f"knobs: {problem.remedy}", "    ", "    ")
    yield from advice_lines(advice)


def advice_lines(advice: Advice | None) -> Iterator[str]:
    if advice is None:
        yield "no knob that was tried makes it fit; take more or larger GPUs"
        return
    yield "this fits, planned again with it:"
    yield from _wrapped(advice.overrides, "  ", "  ")
    if advice.plan.hardware:
        capacity = advice.plan.hardware.gpu.memory_bytes
        fullest: dict[str, int] = {}
        for stage in advice.plan.stages:
            for role in stage.roles:
                fullest[role.role] = max(role.total, fullest.get(role.role, 0))
        each = ", ".join(f"{role} {gib(total)} ({verdict(role, total, capacity)})" for role, total in fullest.items())
        steps = ", ".join(f"{stage.stage} {stage.step_seconds:.1f} s a step" for stage in advice.plan.stages)
        yield from _wrapped(f"{machines(advice.plan.hardware)}: {each} of {gib(capacity)}; {steps}", "  ", "  ")


def assumptions(plan: Plan, config: PlanConfig) -> list[str]:
    """What the times rest on; each is a key of section `plan`, or a constant of rl/plan/roofline.py."""
    assert plan.hardware is not None
    gpu = plan.hardware.gpu
    link = f"NVLink {gpu.nvlink_bytes_per_s / 1e9:.0f}" if gpu.nvlink_bytes_per_s else "no NVLink"
    return [
        f"{config.compute_efficiency:g} of {gpu.bf16_flops / 1e12:.0f} TFLOP/s bfloat16 (compute_efficiency), "
        f"{config.hbm_efficiency:g} of {gpu.hbm_bytes_per_s / 1e9:.0f} GB/s memory (hbm_efficiency)",
        f"{config.link_efficiency:g} of {link}, PCIe {gpu.pcie_bytes_per_s / 1e9:.0f}, "
        f"NICs {plan.hardware.nic_bytes_per_s / 1e9:.0f} GB/s a node and direction (link_efficiency, nic_gbit)",
        f"a sampler's own work {roofline.TOKEN_STEP_S * 1e3:g} ms a token step; {roofline.COLLECTIVE_S * 1e6:g} µs to start "
        f"a collective; AdamW on the host {roofline.HOST_BYTES_PER_S / 1e9:.0f} GB/s a node",
        f"a step's longest answer is {config.longest_answer:g} × the mean (longest_answer); prompts are alike",
        f"{plan.validation_samples} validation samples; reading images and starting up are not counted",
    ]


def _assumptions(plan: Plan, config: PlanConfig) -> Iterator[str]:
    yield "assumed (set them as plan.KEY=VALUE):"
    for line in assumptions(plan, config):
        yield from _wrapped(line, "  - ", "    ")


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Names to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield f"  {'  '.join(cells)}".rstrip()


def _wrapped(text: str, first: str, later: str | None = None) -> list[str]:
    rest = first + "  " if later is None else later
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def to_json(plan: Plan, config: PlanConfig, advice: Advice | None) -> str:
    """Everything of the text, in bytes, seconds and dollars."""
    return json.dumps(_record(plan, config) | {"advice": dict(advice.changes) if advice else None}, indent=2)


def _record(plan: Plan, config: PlanConfig) -> dict[str, Any]:
    return {
        "recipe": plan.name,
        "fits": plan.fits,
        "hardware": asdict(plan.hardware) if plan.hardware else None,
        "model": {"name": plan.shape.name, "parameters": plan.shape.numel, "trainable": plan.shape.numel_trainable},
        "workload": asdict(plan.workload),
        "stages": {stage.stage: _stage_record(plan, stage) for stage in plan.stages},
        "kv_cache": asdict(plan.kv) if plan.kv else None,
        "host_memory": {
            "bytes": plan.host.total,
            "of": plan.host_bytes,
            "items": [asdict(item) for item in plan.host.items],
        },
        "disk_bytes": plan.disk_bytes,
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "usd": plan.usd,
        "problems": [asdict(problem) for problem in plan.problems],
        "assumptions": assumptions(plan, config) if plan.hardware else [],
    }


def _stage_record(plan: Plan, stage: StagePlan) -> dict[str, Any]:
    assert plan.hardware is not None
    capacity = plan.hardware.gpu.memory_bytes
    return {
        "steps": stage.steps,
        "step_seconds": stage.step_seconds,
        "samples_per_s": stage.answers / stage.step_seconds,
        "tokens_per_s": stage.answer_tokens / stage.step_seconds,
        "roles": [
            asdict(role) | {"total": role.total, "capacity": capacity, "fits": verdict(role.role, role.total, capacity)}
            for role in stage.roles
        ],
        "phases": [asdict(phase) for phase in stage.phases],
    }
