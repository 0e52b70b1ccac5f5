"""A run: its folder, its stages in order, and what happens between steps (validation, checkpoints, metrics, the report).

for each stage:   start actors ─► publish v0 ─► validate ─► step, log, every k: validate, checkpoint ─► checkpoint
at the end:       export ─► summary.json ─► report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from omegaconf import OmegaConf

from cluster.session import ray_session
from data.sample import Sample
from data.store import SampleStore
from data.stream import PromptStream
from rl import environment
from rl.actors.tracing import Tracing
from rl.checkpoint import STAGE_FILE, Checkpoint, latest_checkpoint, save_checkpoint, saved_policy
from rl.clock import PhaseClock
from rl.config import ConfigError, Recipe, to_container, to_yaml
from rl.crew import Crew
from rl.evaluation import evaluate
from rl.loop import GrpoLoop, Roles, StepReport, hand_over
from rl.loop_async import AsyncGrpoLoop
from rl.loop_sft import SftLoop
from rl.prompt_ledger import PromptLedger
from rl.prompting import PromptEncoder
from rl.records import Sampling
from rl.runlog import ValidationRecord, cut_after, write_atomically
from rl.teachers import TEACHERS
from rl.trace_steps import StepTrace
from rl.tracking import RunContext, Tracker, open_tracker


class StageLoop(Protocol):
    """What a stage's loop offers its run."""

    prompts: PromptStream
    version: int

    def step(self, step: int) -> StepReport: ...


def open_run_dir(recipe: Recipe) -> Path:
    """`runs/<name>/<time>`, or the folder that is resumed."""
    if recipe.resume is not None:
        run_dir = Path(recipe.resume)
        if not (run_dir / "config.yaml").exists():
            raise ConfigError(f"resume={run_dir}: there is no config.yaml; give the folder of a run, runs/<name>/<time>")
        _check_same_start(run_dir, recipe)
        return run_dir
    if recipe.start_from is not None:
        saved_policy(Path(recipe.start_from), recipe.model)  # refused before there is a folder
    run_dir = Path(recipe.runs) / recipe.name / time.strftime("%Y%m%d-%H%M%S")
    run_dir.mkdir(parents=True)
    return run_dir


def _check_same_start(run_dir: Path, recipe: Recipe) -> None:
    """What a run began from is what its reference is: resumed with another, the KL would be to another policy."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    for key, wanted in (("stages", recipe.stages), ("start_from", recipe.start_from), ("model.path", recipe.model.path)):
        found = OmegaConf.select(saved, key)
        if found != wanted:
            saved_as = "null" if found is None else found
            raise ConfigError(
                f"resume={run_dir} began with `{key}` {found}, this is {wanted}; give {key}={saved_as} as well"
            )


class Run:
    """One recipe being run."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self.recipe, self.run_dir = recipe, run_dir.resolve()
        self.train = SampleStore(recipe.data.train, split="train")
        self.held_out = SampleStore(recipe.data.validation, split="validation")
        self.encoder = PromptEncoder.of(recipe.model)
        self.clock = PhaseClock()
        self.trace = StepTrace(recipe.profile, self.run_dir)

    def execute(self) -> None:
        """All stages; raises what went wrong, after everything it started has ended."""
        recipe = self.recipe
        resumed = latest_checkpoint(self.run_dir, recipe.stages) if recipe.resume is not None else None
        if resumed is not None:
            cut_after(self.run_dir, resumed.stage, resumed.step)
        write_atomically(self.run_dir / "config.yaml", to_yaml(recipe))
        environment.record(self.run_dir)
        steps = {"sft": recipe.sft.steps, "grpo": recipe.grpo.steps}
        planned = {stage: steps[stage] for stage in recipe.stages}
        context = RunContext(self.run_dir, recipe.name, recipe.tracking.project, planned, to_container(recipe))
        with open_tracker(recipe.tracking.sinks, context) as tracker, ray_session(recipe.cluster) as session:
            crew = Crew(session, recipe, max(self.train.most_images(), self.held_out.most_images()))
            first = recipe.stages.index(resumed.stage) if resumed is not None else 0
            for stage in recipe.stages[first:]:
                Stage(self, stage, crew, tracker).run(resumed if resumed is not None and resumed.stage == stage else None)

    def validation_samples(self) -> list[Sample]:
        wanted = self.recipe.validation.samples or len(self.held_out)
        return [self.held_out[index] for index in range(min(wanted, len(self.held_out)))]

    def stage_start(self, stage: str) -> Path | None:
        """The policy that the stage before left, or `start_from`'s, or None for the model of the recipe."""
        place = self.recipe.stages.index(stage)
        if place == 0:
            start = self.recipe.start_from
            return None if start is None else saved_policy(Path(start), self.recipe.model)
        before = self.recipe.stages[place - 1]
        return latest_checkpoint(self.run_dir, [before]).learner


class Stage:
    """One stage of a run."""

    def __init__(self, run: Run, stage: str, crew: Crew, tracker: Tracker) -> None:
        self.run_, self.stage, self.crew, self.tracker = run, stage, crew, tracker
        self.recipe = run.recipe
        self.policy = crew.start_stage(stage, run.stage_start(stage))
        self.loop = self._loop()
        self.samples = run.validation_samples()
        self.tracing = Tracing(lambda: crew.actor_groups(self.policy))

    def _loop(self) -> GrpoLoop | SftLoop:
        return self._grpo() if self.stage == "grpo" else self._sft()

    def _grpo(self) -> GrpoLoop:
        recipe, crew = self.recipe, self.crew
        rollout = recipe.rollout
        loop = AsyncGrpoLoop if recipe.grpo.max_staleness else GrpoLoop
        made = loop(
            roles=Roles(crew.rollouts, crew.rewards, self.policy.learner, self.policy.reference, self.policy.reference_fits),
            prompts=PromptLedger(self.run_.train, recipe.seed),
            complete=self.run_.encoder.completion,
            grpo=recipe.grpo,
            algorithm=recipe.algorithm,
            sampling=Sampling(
                recipe.grpo.num_generations, rollout.temperature, rollout.top_p, rollout.max_tokens, recipe.seed
            ),
            mismatch_bound=recipe.mismatch_bound,
        )
        return crew.session.own(made)

    def _sft(self) -> SftLoop:
        encoder, teach = self.run_.encoder, TEACHERS[self.recipe.sft.teacher]
        return SftLoop(
            learner=self.policy.learner,
            rollouts=self.crew.rollouts,
            prompts=PromptStream(self.run_.train, self.recipe.seed),
            encoder=encoder,
            teach=lambda sample: teach(sample, encoder.family, encoder.limits),
            config=self.recipe.sft,
        )

    @property
    def steps(self) -> int:
        return self.recipe.grpo.steps if self.stage == "grpo" else self.recipe.sft.steps

    def run(self, resumed: Checkpoint | None) -> None:
        """From the start, or from `resumed`, to the last step."""
        done = 0
        if resumed is not None:
            self.policy.learner.load(resumed.learner)
            self.loop.prompts.load_state_dict(resumed.state["prompts"])
            self.loop.version, done = resumed.state["version"], resumed.step
        hand_over(self.policy.learner, self.crew.rollouts, self.loop.version)
        if resumed is None:
            self.tracker.log(self.stage, 0, self.validate(0))
        ended = resumed is not None and resumed.state.get("ended", False)
        while done < self.steps and not ended:
            with self.run_.trace.step(self.stage, done + 1, self.tracing):
                report = self.loop.step(done)
            ended = self._finish_step(done + 1, report)
            done += 1
        self.run_.trace.finish()
        export = self.run_.run_dir / "export"
        self.policy.learner.export(export)
        write_atomically(export / STAGE_FILE, json.dumps({"stage": self.stage, "step": done}))
        self.policy.shutdown()

    def _finish_step(self, done: int, report: StepReport) -> bool:
        """Log a step, validate and save when it is time; True when the stage may end early."""
        metrics = report.metrics
        last = done == self.steps
        reached = False
        if last or _due(done, self.recipe.validation.every):
            if isinstance(self.loop, SftLoop):
                self.loop.publish()
            metrics = metrics | self.validate(done)
            reached = self._reached(metrics)
        if last or reached or _due(done, self.recipe.checkpoint.every):
            metrics = metrics | self._save(done, reached)
        self.tracker.log(self.stage, done, metrics, report.failures)
        return reached

    def _reached(self, metrics: Mapping[str, float]) -> bool:
        goal = self.recipe.sft.stop_at
        return (
            self.stage == "sft" and goal is not None and metrics[f"validation/greedy/{self.recipe.sft.stop_metric}"] >= goal
        )

    def _save(self, done: int, ended: bool) -> dict[str, float]:
        state = {"prompts": self.loop.prompts.state_dict(), "version": self.loop.version, "ended": ended}
        with self.run_.clock.phase("checkpoint"):
            save_checkpoint(self.run_.run_dir, self.stage, done, self.policy.learner, state, self.recipe.checkpoint.keep)
        return {"time/checkpoint": self.run_.clock.lap()["time/checkpoint"]}

    def validate(self, done: int) -> dict[str, float]:
        """Greedy metrics always, the paper's sampling at the two ends; records for the report."""
        config = self.recipe.validation
        greedy = Sampling(1, 0.0, 1.0, self.recipe.rollout.max_tokens, self.recipe.seed)
        modes = {"greedy": greedy}
        if config.sampled and done in (0, self.steps):
            modes["sampled"] = replace(greedy, temperature=config.temperature, top_p=config.top_p)
        metrics: dict[str, float] = {}
        records: list[ValidationRecord] = []
        self.run_.clock.lap()
        with self.run_.clock.phase("validate"):
            for mode, sampling in modes.items():
                complete = self.run_.encoder.completion
                result = evaluate(self.crew.rollouts, self.crew.rewards, self.samples, complete, sampling, mode)
                metrics |= {f"validation/{mode}/{name}": value for name, value in result.metrics.items()}
                records += result.records
        self.tracker.validation(self.stage, done, records)
        memory = {f"memory/{actor}_peak_mib": mib for actor, mib in self.crew.peak_memory(self.policy).items()}
        return metrics | memory | {"time/validate": self.run_.clock.lap()["time/validate"]}


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
