"""What a recipe may not be: unknown choices and combinations that cannot run, told with the key and the remedy.

Imports neither torch nor ray, so that a mistake answers at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rl.config_paths import explain, relative_paths
from rl.engines import ENGINES
from rl.tracking import check_sinks

if TYPE_CHECKING:
    from rl.config import AlgorithmConfig, AttentionLossConfig, GrpoConfig, Recipe

STAGES = ("sft", "grpo")
MAX_LORA_RANK = 512  # vLLM's largest
# verl's names, for the algorithms that need one reward an answer and no critic.
ADVANTAGES = ("grpo", "rloo", "opo", "reinforce_plus_plus_baseline", "grpo_passk", "rloo_vectorized", "grpo_vectorized")
LOSSES = ("vanilla", "gspo", "dppo_tv", "dppo_kl", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "cispo")
LOSSES_WITHOUT_RATIO = ("gpg",)
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
TRANSPORTS = ("auto", "ipc", "nccl", "gloo", "object_store")
KL_ESTIMATORS = ("k1", "k2", "k3", "kl", "abs", "mse", "low_var_kl", "k1+", "k3+", "low_var_kl+")


class ConfigError(ValueError):
    """A recipe or an override that cannot run, with the key and the remedy."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse combinations that cannot run."""
    _check_choices(recipe)
    _check_sizes(recipe)
    _check_model(recipe)
    _check_deepspeed(recipe)
    _check_offload(recipe)
    _check_sequence_parallel(recipe)
    _check_reference(recipe)
    _check_colocated(recipe)
    _check_sync(recipe)
    _check_attention_loss(recipe.sft.attention_loss)
    if found := relative_paths(recipe):
        raise ConfigError(explain(found))
    try:
        recipe.reward.validate()
        recipe.cluster.validate()
        recipe.plan.validate()
        planned = {"sft": recipe.sft.steps, "grpo": recipe.grpo.steps}
        recipe.profile.validate({stage: planned[stage] for stage in recipe.stages})
        check_sinks(recipe.tracking.sinks)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if "grpo" in recipe.stages:
        _check_grpo(recipe)


def _check_choices(recipe: Recipe) -> None:
    algorithm = recipe.algorithm
    _choose("stages", recipe.stages, STAGES)
    if not recipe.stages:
        raise ConfigError(f"`stages` is empty; choose from {', '.join(STAGES)}")
    _choose("learner.layout", [recipe.learner.layout], ("shared", "plain"))
    _choose("learner.engine", [recipe.learner.engine], tuple(ENGINES))
    _choose("learner.dtype", [recipe.learner.dtype], ("float32", "bfloat16"))
    _choose("rollout.dtype", [recipe.rollout.dtype], ("float32", "bfloat16"))
    _choose("algorithm.advantage", [algorithm.advantage], ADVANTAGES)
    _choose("algorithm.loss", [algorithm.loss], LOSSES)
    _choose("algorithm.loss_aggregation", [algorithm.loss_aggregation], AGGREGATIONS)
    _choose("algorithm.kl_estimator", [algorithm.kl_estimator], KL_ESTIMATORS)
    _choose("algorithm.rollout_is", [algorithm.rollout_is or "token"], ("token", "sequence"))
    _choose("algorithm.old_logprobs", [algorithm.old_logprobs], ("learner", "rollout"))
    _choose("grpo.optimizer.schedule", [recipe.grpo.optimizer.schedule], ("constant", "linear", "cosine"))
    _choose("sft.optimizer.schedule", [recipe.sft.optimizer.schedule], ("constant", "linear", "cosine"))
    _choose("sft.stop_metric", [recipe.sft.stop_metric], ("mean_iou", "acc@0.5", "acc@0.75", "picks_target", "reward"))
    _choose("sft.teacher", [recipe.sft.teacher], ("locus", "focus", "locus_imprecise"))
    _choose("data.synthetic", [recipe.data.synthetic or "locus"], ("locus", "focus"))


def _check_sizes(recipe: Recipe) -> None:
    for key, value in (
        ("rollout.actors", recipe.rollout.actors),
        ("learner.ranks", recipe.learner.ranks),
        ("reference.ranks", recipe.reference.ranks),
        ("grpo.prompts_per_step", recipe.grpo.prompts_per_step),
        ("grpo.prompts_per_update", recipe.grpo.prompts_per_update),
        ("sft.batch_size", recipe.sft.batch_size),
        ("rollout.max_tokens", recipe.rollout.max_tokens),
    ):
        if value < 1:
            raise ConfigError(f"`{key}` must be at least 1, got {value}")


def _check_model(recipe: Recipe) -> None:
    model = recipe.model
    _choose("model.lora.sync", [model.lora.sync], ("adapter", "merged"))
    if not 0 <= model.lora.rank <= MAX_LORA_RANK:
        raise ConfigError(f"`model.lora.rank` is {model.lora.rank}; 0 (no LoRA) to {MAX_LORA_RANK}")
    _choose("model.attention", [model.attention], ("sdpa", "flash_attention_2"))
    _choose("model.quantization", [model.quantization or "nf4"], ("nf4", "fp4"))
    if model.quantization and not model.lora.rank:
        raise ConfigError("`model.quantization` freezes the base, which leaves nothing to train; set `model.lora.rank`")


def _check_deepspeed(recipe: Recipe) -> None:
    stage = recipe.learner.zero_stage
    if stage not in (2, 3):
        raise ConfigError(f"`learner.zero_stage` is {stage}; 2 (gradients and optimizer sharded) or 3 (parameters too)")
    if recipe.learner.engine != "deepspeed":
        return
    if stage == 2 and recipe.learner.offload == "all":
        raise ConfigError(
            "`learner.offload=all`: ZeRO-2 computes with whole parameters, which stay on the GPU; use "
            "`learner.offload=optimizer`, or `learner.zero_stage=3`"
        )
    if stage == 3 and recipe.model.quantization:
        raise ConfigError(
            f"`model.quantization={recipe.model.quantization}`: ZeRO-3 slices parameters, and packed ones cannot be cut; "
            "use `learner.zero_stage=2`, or `learner.engine=fsdp`"
        )


def _check_offload(recipe: Recipe) -> None:
    offload = recipe.learner.offload
    _choose("learner.offload", [offload or "all"], ("optimizer", "all"))
    if offload == "optimizer" and recipe.learner.engine == "fsdp":
        raise ConfigError(
            "`learner.offload=optimizer`: FSDP2 steps where the parameters are, so it keeps both in host memory or neither; "
            "use `learner.offload=all`, or `learner.engine=deepspeed`"
        )
    if offload and recipe.model.quantization:
        raise ConfigError(
            f"`learner.offload={offload}`: a quantized base cannot leave the GPU, and without it there is little to move; "
            "drop `learner.offload` or `model.quantization`"
        )


def _check_sequence_parallel(recipe: Recipe) -> None:
    together, ranks = recipe.learner.sequence_parallel, recipe.learner.ranks
    if together < 1 or ranks % together:
        raise ConfigError(
            f"`learner.sequence_parallel` is {together}: `learner.ranks` ({ranks}) cannot be cut into groups of so many; "
            "use a divisor of them, or 1 for every sequence on one rank"
        )


def _check_reference(recipe: Recipe) -> None:
    _choose("reference.placement", [recipe.reference.placement], ("actor", "learner"))
    if recipe.reference.placement == "learner" and not recipe.model.lora.rank:
        raise ConfigError(
            "`reference.placement=learner` computes the reference on the learner's base, which without LoRA is itself "
            "trained; set `model.lora.rank`, or `reference.placement=actor`"
        )


def _check_colocated(recipe: Recipe) -> None:
    if recipe.cluster.placement != "colocated":
        return
    rollout, ranks, reference = recipe.rollout, recipe.learner.ranks, recipe.reference.ranks
    places = rollout.actors * rollout.tensor_parallel
    if ranks != places:
        raise ConfigError(
            f"`cluster.placement=colocated` puts learner and rollouts on the same GPUs: `learner.ranks` ({ranks}) must be "
            f"`rollout.actors` × `rollout.tensor_parallel` ({rollout.actors} × {rollout.tensor_parallel}); "
            f"set learner.ranks={places}"
        )
    if reference > ranks:
        raise ConfigError(f"`reference.ranks` is {reference}: colocated it may be `learner.ranks` ({ranks}) at most")
    if recipe.model.quantization:
        raise ConfigError(
            f"`model.quantization={recipe.model.quantization}`: a quantized base cannot leave the GPU to the samplers; "
            "use `cluster.placement=disaggregated`, or drop the quantization"
        )


def _check_sync(recipe: Recipe) -> None:
    sync = recipe.sync
    _choose("sync.transport", [sync.transport], TRANSPORTS)
    if sync.bucket_mb < 1:
        raise ConfigError(f"`sync.bucket_mb` is {sync.bucket_mb}; at least 1, and 256 fills any medium")
    if not sync.timeout_s > 0:
        raise ConfigError(f"`sync.timeout_s` must be positive, got {sync.timeout_s}")
    if sync.transport == "object_store" and recipe.rollout.tensor_parallel > 1:
        raise ConfigError(
            f"`sync.transport=object_store` reaches one process a sampler, and `rollout.tensor_parallel` is "
            f"{recipe.rollout.tensor_parallel}: vLLM's other workers are none of Ray's; use `sync.transport=auto`"
        )


def _check_attention_loss(config: AttentionLossConfig) -> None:
    _choose("sft.attention_loss.reduction", [config.reduction], ("mean", "sum"))
    _choose("sft.attention_loss.denominator", [config.denominator], ("all", "visible"))
    if config.weight < 0:
        raise ConfigError(f"`sft.attention_loss.weight` is {config.weight}; 0 for none, or more")
    if not re.fullmatch(r"all|(first|last)[1-9]\d*|\d+(\s*,\s*\d+)*", config.layers):
        raise ConfigError(f"`sft.attention_loss.layers` is `{config.layers}`; all, first5, last5, or a list as 0,1,2")


def _check_grpo(recipe: Recipe) -> None:
    grpo, rollout, algorithm = recipe.grpo, recipe.rollout, recipe.algorithm
    if grpo.num_generations < 2:
        raise ConfigError(f"`grpo.num_generations` is {grpo.num_generations}: a group under two members has no advantage")
    if grpo.prompts_per_step % grpo.prompts_per_update:
        raise ConfigError(
            f"`grpo.prompts_per_update` ({grpo.prompts_per_update}) must divide "
            f"`grpo.prompts_per_step` ({grpo.prompts_per_step})"
        )
    if rollout.temperature <= 0:
        raise ConfigError(f"`rollout.temperature` is {rollout.temperature}: greedy answers are all alike and teach nothing")
    if rollout.top_p < 1.0:
        raise ConfigError(
            f"`rollout.top_p` is {rollout.top_p}: a truncated sampler has other logprobs than the learner; use 1.0"
        )
    if rollout.max_tokens >= rollout.max_model_len:
        raise ConfigError(
            f"`rollout.max_tokens` ({rollout.max_tokens}) leaves no room for a prompt in "
            f"`rollout.max_model_len` ({rollout.max_model_len})"
        )
    if algorithm.loss_aggregation == "seq-mean-token-sum-norm" and algorithm.loss_scale is None:
        raise ConfigError("`algorithm.loss_aggregation=seq-mean-token-sum-norm` needs a constant `algorithm.loss_scale`")
    lora = recipe.model.lora
    if lora.rank and lora.dropout > 0:
        raise ConfigError(
            f"`model.lora.dropout` is {lora.dropout}: old, reference and new logprobs would each drop other activations, "
            "and their ratios be noise; set `model.lora.dropout=0`, or train `stages=[sft]` alone"
        )
    _check_staleness(grpo, algorithm)
    if grpo.max_staleness and recipe.cluster.placement == "colocated":
        raise ConfigError(
            f"`grpo.max_staleness` is {grpo.max_staleness}: samplers that work beside the learner need GPUs of their own; "
            "set `cluster.placement=disaggregated`, or `grpo.max_staleness=0`"
        )


def _check_staleness(grpo: GrpoConfig, algorithm: AlgorithmConfig) -> None:
    """Tokens of older policies must be weighed by what the learner makes of them now, or clipped against those policies."""
    if grpo.max_staleness < 0:
        raise ConfigError(f"`grpo.max_staleness` is {grpo.max_staleness}; 0 (synchronous) or more policy versions")
    if grpo.max_staleness == 0:
        if grpo.drop_stale:
            raise ConfigError("`grpo.drop_stale` drops what `grpo.max_staleness` > 0 lets grow old; set that, or not this")
        return
    if algorithm.rollout_is is None and algorithm.old_logprobs == "learner":
        raise ConfigError(
            f"`grpo.max_staleness` is {grpo.max_staleness}, but with `algorithm.old_logprobs=learner` the tokens of older "
            "policies are learnt as if the learner had sampled them; set algorithm.rollout_is=token (or sequence), which "
            "weighs them by learner / sampler, or algorithm.old_logprobs=rollout, which clips against who sampled them"
        )
    if algorithm.old_logprobs == "rollout" and algorithm.loss in LOSSES_WITHOUT_RATIO:
        raise ConfigError(
            f"`algorithm.loss={algorithm.loss}` has no ratio that `algorithm.old_logprobs=rollout` could correct by; with "
            "`grpo.max_staleness` it needs algorithm.old_logprobs=learner and algorithm.rollout_is=token (or sequence)"
        )


def _choose(key: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    for value in values:
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            raise ConfigError(
                f"`{key}` is `{value}`; {f'did you mean `{near[0]}`? ' if near else ''}one of {', '.join(allowed)}"
            )
