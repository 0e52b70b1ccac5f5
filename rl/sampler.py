"""The sampler: vLLM behind a plain class that validates prompts, answers with records, and takes new weights while it lives.

    samples ─► validate (decode, placeholders, length) ─► vLLM: n completions a prompt, prompt and images computed once
                   │ RolloutFailure(reason)                  │ tokens, processed logprobs
                   └──────────────► one list a sample ◄──────┘

The distribution sampled from, which a learner must reproduce, is softmax(logits / temperature) with the encoder's
`banned_token_ids` at −inf and no other change (top_p < 1 truncates it further; training recipes refuse that).
vLLM reads environment variables when it is imported: `sampler_env` (rl/sampler_config.py) must have been applied before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from vllm import LLM, RequestOutput, SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform

from data.sample import Sample
from rl.prompting import PromptEncoder
from rl.records import Rollout, RolloutFailure, Sampling, WeightsReceipt
from rl.sampler_config import LORA_RANKS, SamplerConfig
from rl.sampler_counts import PrefillWatch, SamplerCounts
from rl.sampler_weights import Loaded
from rl.sync.seats import Seat
from rl.trace import spanned
from rl.trace_engine import EngineSteps
from rl.weights import Checksummed

logger = logging.getLogger(__name__)

# vLLM raises a smaller non-zero temperature to this one without saying so.
MIN_TEMPERATURE = 0.01
# Prompt tokens a step on CPU; as many as vLLM's own default there.
CPU_BATCHED_TOKENS = 4096


class PromptMismatchError(RuntimeError):
    """vLLM and the Hugging Face processor turned one sample into different token ids: no logprob would mean anything."""


class WeightsError(RuntimeError):
    """New weights did not arrive whole. The sampler keeps its version, and samples no more until a load succeeds."""


@dataclass(frozen=True)
class PromptRequest:
    """A validated prompt, ready for vLLM."""

    place: int
    sample: Sample
    input_ids: list[int]
    prompt: Any
    params: SamplingParams


def request_seed(seed: int, prompt_id: str) -> int:
    """A seed for one prompt's draws: depends on the step's seed and the prompt, not on the actor or place in a batch."""
    digest = hashlib.blake2b(f"{seed}|{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2  # vLLM adds the completion's index and wants an int64


class VllmSampler:
    """One vLLM engine. Not thread-safe: one call at a time."""

    def __init__(self, config: SamplerConfig, encoder: PromptEncoder | None = None) -> None:
        self.config = config
        self.encoder = encoder or PromptEncoder(config.model, min_pixels=config.min_pixels, max_pixels=config.max_pixels)
        self._engine = _build_engine(config, self.encoder)
        self._steps = EngineSteps(self._engine)
        self._prefills = PrefillWatch(self._engine.llm_engine.engine_core.engine_core.scheduler)
        self._ban = dict.fromkeys(self.encoder.banned_token_ids, -math.inf)
        self._version = 0
        self._broken: str | None = None
        self._adapter: LoRARequest | None = None
        self._counts = SamplerCounts()

    @property
    def version(self) -> int:
        """The policy version that `generate` samples from; 0 is the model folder's own."""
        return self._version

    @property
    def counts(self) -> SamplerCounts:
        return self._counts + self._prefills.counts

    # ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def generate(self, samples: Sequence[Sample], sampling: Sampling) -> list[list[Rollout | RolloutFailure]]:
        """`sampling.n` completions a sample, in the samples' order; a prompt that cannot be sampled gives n failures.

        Raises ValueError for a sampling that vLLM cannot do, PromptMismatchError, and WeightsError after a failed load.
        """
        self._require_weights()
        check_sampling(sampling)
        started = time.perf_counter()
        rollouts: list[list[Rollout | RolloutFailure]] = [[] for _ in samples]
        requests = []
        for place, sample in enumerate(samples):
            try:
                requests.append(self._request(place, sample, sampling))
            except ValueError as error:
                rollouts[place] = failures_of(sample, sampling.n, str(error))
        for request, output in zip(requests, self._run(requests), strict=True):
            rollouts[request.place] = self._records(request, output, sampling.n)
        self._counts += self._count(rollouts, time.perf_counter() - started)
        return rollouts

    def _require_weights(self) -> None:
        if self._broken is not None:
            raise WeightsError(f"the sampler holds no whole set of weights ({self._broken}); load one first")

    @spanned("prepare prompt")
    def _request(self, place: int, sample: Sample, sampling: Sampling) -> PromptRequest:
        """Everything that vLLM would let pass or choke on is checked here. Raises ValueError with the reason."""
        ids = self.encoder.input_ids(sample)
        room = self.config.max_model_len - sampling.max_tokens
        if len(ids) > room:
            raise ValueError(
                f"the prompt has {len(ids)} tokens; max_model_len {self.config.max_model_len} "
                f"minus max_tokens {sampling.max_tokens} leaves {room}"
            )
        if len(sample.images) > self.config.max_images:
            raise ValueError(
                f"the prompt has {len(sample.images)} images; the sampler was built for {self.config.max_images}"
            )
        prompt: dict[str, Any] = {"prompt": self.encoder.text(sample)}
        if sample.images:
            prompt["multi_modal_data"] = {"image": [image.open() for image in sample.images]}
        return PromptRequest(place, sample, ids, prompt, self._params(sample, sampling))

    def _params(self, sample: Sample, sampling: Sampling) -> SamplingParams:
        greedy = sampling.temperature == 0.0
        return SamplingParams(
            n=1 if greedy else sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=None if sampling.seed is None else request_seed(sampling.seed, sample.id),
            stop_token_ids=list(self.encoder.eos_token_ids),
            logprobs=0,
            flat_logprobs=True,  # lists of numbers, where the default makes a dict and a record a token
            logit_bias=self._ban,
            detokenize=False,
        )

    def _run(self, requests: Sequence[PromptRequest]) -> list[RequestOutput | str]:
        """vLLM's output, or the reason there is none. A batch that fails is run again one by one: only its culprit fails."""
        if not requests:
            return []
        try:
            return list(self._engine_generate(requests))
        except Exception as error:  # whatever one request does to the engine, the others must not pay for it
            self._counts += SamplerCounts(engine_errors=1)
            reason = f"vLLM failed: {type(error).__name__}: {error}"
            if len(requests) == 1:
                return [reason]
            logger.warning("%s; its %d prompts are run again one by one", reason, len(requests))
        return [output for request in requests for output in self._run([request])]

    def _engine_generate(self, requests: Sequence[PromptRequest]) -> list[RequestOutput]:
        try:
            outputs: list[RequestOutput] = self._engine.generate(
                [request.prompt for request in requests],
                [request.params for request in requests],
                lora_request=self._adapter,
                use_tqdm=False,
            )
            return outputs
        except Exception:
            self._abort_all()
            raise

    def _abort_all(self) -> None:
        """Left in the engine, the requests of a failed batch would block the next one for ever."""
        engine = self._engine.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)

    def _records(self, request: PromptRequest, output: RequestOutput | str, n: int) -> list[Rollout | RolloutFailure]:
        sample = request.sample
        if isinstance(output, str):
            return failures_of(sample, n, output)
        if output.prompt_token_ids != request.input_ids:
            raise PromptMismatchError(
                f"sample {sample.id}: vLLM made {len(output.prompt_token_ids or ())} prompt tokens, the processor "
                f"{len(request.input_ids)}, or other ids; are both given the same model folder and pixel limits?"
            )
        rollouts: list[Rollout | RolloutFailure] = [self._rollout(request, completion) for completion in output.outputs]
        return rollouts * n if len(rollouts) == 1 else rollouts

    def _rollout(self, request: PromptRequest, completion: CompletionOutput) -> Rollout:
        tokens, logprobs = tuple(completion.token_ids), completion.logprobs
        assert isinstance(logprobs, FlatLogprobs) and completion.finish_reason is not None
        assert tuple(logprobs.token_ids) == tokens  # a step's only logprob is that of the token it sampled
        return Rollout(
            prompt_id=request.sample.id,
            tokens=tokens,
            logprobs=tuple(logprobs.logprobs),
            text=self.encoder.decode(tokens),
            finish_reason=completion.finish_reason,
            policy_version=self._version,
            prompt_tokens=len(request.input_ids),
        )

    @staticmethod
    def _count(rollouts: Sequence[Sequence[Rollout | RolloutFailure]], seconds: float) -> SamplerCounts:
        done = [group[0] for group in rollouts if group and isinstance(group[0], Rollout)]
        flat = [rollout for group in rollouts for rollout in group]
        return SamplerCounts(
            prompts=len(rollouts),
            prompt_tokens=sum(rollout.prompt_tokens for rollout in done),
            completion_tokens=sum(len(rollout.tokens) for rollout in flat if isinstance(rollout, Rollout)),
            failures=sum(isinstance(rollout, RolloutFailure) for rollout in flat),
            seconds=seconds,
        )

    # ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightsReceipt:
        """Replace all weights (Hugging Face names) and drop every cache made with the old ones; an adapter is dropped too.

        Workers of a tensor-parallel engine are other processes: for them `tensors` must be picklable (rl/sync/receiver.py).
        The receipt's checksum is over the tensors that vLLM's loader consumed. Raises WeightsError.
        """
        self._broken = f"loading version {version} was not finished"
        try:
            loaded = self._load_in_workers(tensors)
        except Exception as error:
            self._broken = f"loading version {version} failed: {error}"
            raise WeightsError(f"version {version} did not load, the sampler stays at {self._version}: {error}") from error
        if loaded.missing:
            self._broken = f"version {version} came without {len(loaded.missing)} weights"
            raise WeightsError(
                f"version {version} has {loaded.tensors} tensors but not {len(loaded.missing)} of the model's weights, "
                f"first {loaded.missing[0]!r}; send every tensor of the Hugging Face state dict"
            )
        self._reset_caches()
        self._adapter, self._broken, self._version = None, None, version
        return WeightsReceipt(version, loaded.checksum)

    def _load_in_workers(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Loaded:
        """Every worker iterates for itself, and all must have read the same."""
        answers: list[Loaded] = self._engine.collective_rpc("receive_weights", args=(tensors,))
        errors = [answer.error for answer in answers if answer.error]
        if errors:
            raise RuntimeError(errors[0])
        if len({answer.checksum for answer in answers}) != 1:
            raise RuntimeError(f"the workers read different bytes: {[answer.checksum for answer in answers]}")
        return max(answers, key=lambda answer: len(answer.missing))

    def load_adapter(
        self, tensors: Iterable[tuple[str, torch.Tensor]], adapter_config: Mapping[str, Any], version: int
    ) -> WeightsReceipt:
        """Sample from the base weights with this LoRA adapter from now on. Names and config are PEFT's.

        Raises WeightsError; the adapter before it then stays in use.
        """
        if not self.config.max_lora_rank:
            raise ValueError("this sampler takes no adapters; build it with max_lora_rank >= the adapter's rank")
        passing = Checksummed(tensors)
        try:
            with tempfile.TemporaryDirectory(prefix="sightline-adapter-") as folder:
                _write_adapter(passing, adapter_config, Path(folder))
                self._engine.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
        except Exception as error:
            raise WeightsError(f"adapter {version} did not load, the sampler stays at {self._version}: {error}") from error
        self._reset_caches()
        # The adapter stays loaded under its id, so the path is never read; it only may not be empty.
        self._adapter, self._version = LoRARequest("policy", 1, "loaded"), version
        return WeightsReceipt(version, passing.checksum)

    def seats(self) -> list[Seat]:
        """Where the engine's workers are, in rank order."""
        seats: list[Seat] = self._engine.collective_rpc("seat")
        return seats

    def _reset_caches(self) -> None:
        """Keys, values and image embeddings of the old weights."""
        if not self._engine.reset_prefix_cache():
            self._broken = "vLLM kept the old weights' prefix cache: a request was still running"
            raise WeightsError(self._broken)
        self._engine.llm_engine.reset_encoder_cache()

    # ── sharing a GPU (without one, vLLM keeps its memory; the states are the same) ──────────────────────────────────

    def sleep(self, keep_weights: bool) -> None:
        """Give up the KV cache, and the weights too: to host memory if they are kept, for good if a load is to follow."""
        self._engine.sleep(level=1 if keep_weights else 2)
        if not keep_weights:
            self._broken = "they were given up for its sleep"

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Take memory for `part` again. Weights first: new ones may be loaded before there is room for a KV cache."""
        self._engine.wake_up([part])

    def close(self) -> None:
        """Free the engine."""
        self._engine.llm_engine.engine_core.shutdown()


def _build_engine(config: SamplerConfig, encoder: PromptEncoder) -> LLM:
    logging.getLogger("vllm.logging_utils.dump_input").setLevel(logging.CRITICAL)  # a thousand lines of tensors an error
    special: dict[str, Any] = {"enable_sleep_mode": config.sleeps and not current_platform.is_cpu()}
    if config.tensor_parallel_size > 1:
        # In an actor of a placement group vLLM would start Ray actors for its ranks, and find no room for them there.
        special["distributed_executor_backend"] = "mp"
    if config.max_lora_rank:
        room = next(rank for rank in LORA_RANKS if rank >= config.max_lora_rank)
        special |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
    if current_platform.is_cpu():
        # A prompt prefilled in pieces makes vLLM rewind the request's generator, which CPU generators cannot.
        batched_tokens = max(CPU_BATCHED_TOKENS, config.max_model_len)
        special |= {"enable_chunked_prefill": False, "max_num_batched_tokens": batched_tokens}
    return LLM(
        model=config.model,
        dtype=config.dtype,  # type: ignore[arg-type]
        seed=config.seed,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel_size,
        kv_cache_memory_bytes=config.kv_cache_bytes,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enforce_eager=config.enforce_eager,
        enable_prefix_caching=config.enable_prefix_caching,
        mm_processor_cache_gb=0,  # a prompt's images are processed once for its n completions; the next step has others
        limit_mm_per_prompt={"image": config.max_images, "video": 0},
        mm_processor_kwargs=encoder.mm_processor_kwargs,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        worker_extension_cls="rl.sampler_weights.WeightReceiver",
        use_tqdm_on_load=False,
        **special,
    )


def check_sampling(sampling: Sampling) -> None:
    if sampling.n < 1 or sampling.max_tokens < 1:
        raise ValueError(
            f"a sampling needs n >= 1 and max_tokens >= 1, got n={sampling.n}, max_tokens={sampling.max_tokens}"
        )
    if sampling.temperature < 0 or 0 < sampling.temperature < MIN_TEMPERATURE:
        raise ValueError(f"temperature is 0 (greedy) or at least {MIN_TEMPERATURE}, got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p is in (0, 1], got {sampling.top_p}")


def failures_of(sample: Sample, n: int, reason: str) -> list[Rollout | RolloutFailure]:
    return [RolloutFailure(sample.id, reason) for _ in range(n)]


def _write_adapter(tensors: Iterable[tuple[str, torch.Tensor]], config: Mapping[str, Any], folder: Path) -> None:
    """The two files of a PEFT adapter."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(dict(config), default=_plain))


def _plain(value: Any) -> Any:
    """PEFT's config holds sets and enums, which JSON has not."""
    return sorted(value) if isinstance(value, set) else str(value.value if hasattr(value, "value") else value)
