"""SFT, one step at a time: the language-model loss on given answers, with the engines, batches and prompts of GRPO."""

from __future__ import annotations

from collections.abc import Callable

from data.sample import Sample
from data.stream import PromptStream
from rl.batch import answer_batch
from rl.clock import PhaseClock
from rl.config import SftConfig
from rl.loop import StepReport, hand_over
from rl.prompting import PromptEncoder
from rl.protocols import PolicyLearner, Rollouts
from rl.schedule import learning_rate


class SftLoop:
    """The SFT stage. `teach` writes the answer that a sample should get."""

    def __init__(
        self,
        learner: PolicyLearner,
        rollouts: Rollouts,
        prompts: PromptStream,
        encoder: PromptEncoder,
        teach: Callable[[Sample], str],
        config: SftConfig,
    ) -> None:
        self.learner, self.rollouts, self.prompts, self.encoder = learner, rollouts, prompts, encoder
        self.teach, self.config = teach, config
        self.version = 0
        self.clock = PhaseClock()

    def step(self, step: int) -> StepReport:
        """One optimizer step, `step` counting from 0."""
        self.clock.lap()
        with self.clock.phase("data"):
            samples = self.prompts.take(self.config.batch_size)
            answers = [self.encoder.answer_tokens(self.teach(sample)) for sample in samples]
            batch = answer_batch(samples, answers, [self.encoder.prompt_length(sample) for sample in samples])
        with self.clock.phase("update"):
            metrics = self.learner.update(batch, learning_rate(self.config.optimizer, step, self.config.steps))
        times = self.clock.lap()
        tokens = sum(len(answer) for answer in answers)
        throughput = {"throughput/samples_per_s": len(samples) / times["time/step"]}
        throughput["throughput/tokens_per_s"] = tokens / times["time/step"]
        return StepReport(metrics | times | throughput | {"data/epoch": float(self.prompts.epoch)})

    def publish(self) -> None:
        """Hand the weights to the samplers, which only validation uses here."""
        self.version += 1
        hand_over(self.learner, self.rollouts, self.version)
