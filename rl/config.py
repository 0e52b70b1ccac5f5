"""The recipe: every knob of a run, composed from one small dataclass a section, with YAML `extends:` and dotted overrides.

    load_recipe("recipes/locus/tiny.yaml", ["grpo.steps=20", "seed=7"])

Order, later wins: the dataclass defaults, the file named by `extends:` (relative to the recipe), the recipe, the
overrides. An unknown key, a wrong type or an impossible combination raises ConfigError, which names the key and the
nearest valid one. This module imports neither torch nor ray, so that `--help` and a config error answer at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cluster.config import ClusterConfig
from rewards.config import RewardConfig
from rl.config_checks import STAGES, check_recipe
from rl.config_checks import ConfigError as ConfigError
from rl.plan.config import PlanConfig
from rl.profile_config import ProfileConfig

# A section that is given one value instead of keys means this key: `profile=3-5`.
SHORT_FOR = {"profile": "steps"}


@dataclass
class LoraConfig:
    """Low-rank adapters on the language model's linear layers; `rank: 0` trains all parameters."""

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    )
    sync: str = "adapter"  # adapter: only A and B go to the rollout engines | merged: full weights


@dataclass
class ModelConfig:
    """A Hugging Face folder or hub id, and how many pixels its processor may keep (null: the processor's own)."""

    path: str = MISSING
    min_pixels: int | None = None
    max_pixels: int | None = None
    freeze_vision: bool = False
    attention: str = "sdpa"
    quantization: str | None = None  # nf4 | fp4: the base in 4 bits through bitsandbytes, under LoRA (QLoRA)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class DataConfig:
    """Dataset folders as `python -m data.build` writes them; missing ones are made where `synthetic` names a tiny set."""

    train: str = MISSING
    validation: str = MISSING
    synthetic: str | None = None


@dataclass
class RolloutConfig:
    """vLLM rollout actors and how they sample."""

    actors: int = 1
    tensor_parallel: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048
    max_model_len: int = 8192
    dtype: str = "bfloat16"
    gpu_memory_utilization: float = 0.85
    kv_cache_mib: int | None = None
    max_num_seqs: int = 256
    enforce_eager: bool = False


@dataclass
class LearnerConfig:
    """The policy learner: its engine, world size, numerics, and how a step is cut into micro-batches."""

    engine: str = "fsdp"  # fsdp | deepspeed
    zero_stage: int = 3  # of deepspeed; 2: gradients and optimizer sharded | 3: parameters too
    ranks: int = 1
    dtype: str = "bfloat16"  # compute; parameters and optimizer stay in float32
    tokens_per_micro_batch: int = 16384
    layout: str = "shared"  # shared: a group is one sequence, its prompt once | plain: one row an answer
    activation_checkpointing: bool = True
    sequence_parallel: int = 1  # ranks that compute one sequence together: they share its activations and its budget
    offload: str | None = None  # optimizer (deepspeed) | all: kept in host memory and brought to the GPU where it is used


@dataclass
class SyncConfig:
    """How new weights get from the learner to the samplers: see rl/sync/seats.py for what `auto` chooses.

    Two buckets of `bucket_mb` MiB at a time are on their way, in the memory that the medium moves. A side that is alive and
    says nothing for `timeout_s` is given up.
    """

    transport: str = "auto"  # auto | ipc | nccl | gloo | object_store
    bucket_mb: int = 256
    timeout_s: float = 600.0


@dataclass
class ReferenceConfig:
    """The frozen policy of the stage's start; there only when the KL coefficient is not 0.

    `placement: actor` gives it actors of its own, sharded over `ranks`. Under LoRA `placement: learner` computes it on the
    learner's base with the adapter that the stage began with: no second base in memory, but no more side by side with the
    learner.
    """

    placement: str = "actor"  # actor | learner
    ranks: int = 1


@dataclass
class OptimizerConfig:
    """AdamW with a linear warmup, then `schedule`."""

    lr: float = 1e-6
    weight_decay: float = 1e-2
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.0
    schedule: str = "constant"  # constant | linear | cosine


@dataclass
class AlgorithmConfig:
    """What GRPO computes; advantages, losses, KL estimators, aggregation and off-policy weights are verl's, by name."""

    advantage: str = "grpo"
    normalize_by_std: bool = True
    loss: str = "vanilla"
    loss_aggregation: str = "token-mean"
    loss_scale: int | None = None  # constant divisor of seq-mean-token-sum-norm (Dr. GRPO)
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    kl_coefficient: float = 0.0
    kl_estimator: str = "low_var_kl"
    entropy_coefficient: float = 0.0
    old_logprobs: str = "learner"  # learner: recomputed before the update | rollout: the sampler's own
    rollout_is: str | None = None  # token | sequence
    rollout_is_threshold: float = 2.0
    rollout_rejection: str | None = None
    rollout_rejection_threshold: str | None = None
    dynamic_sampling: bool = False  # drop groups whose rewards are all equal and sample further prompts
    max_sampling_rounds: int = 4


@dataclass
class GrpoConfig:
    """The GRPO stage. One step samples `prompts_per_step` × `num_generations`, then updates once a `prompts_per_update`.

    With `max_staleness` k > 0 the samplers work while the learner does, up to k steps ahead of it: no token is learnt that
    is older than k policy versions. A step waits for groups that would grow older; with `drop_stale` it goes on without
    them, and their prompts are sampled again, which favours short answers.
    """

    steps: int = MISSING
    prompts_per_step: int = 512
    prompts_per_update: int = 128
    num_generations: int = 8
    max_staleness: int = 0  # policy versions; 0: sample, learn, sample, …
    drop_stale: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class AttentionLossConfig:
    """FOCUS's L = L_LM + β·L_bbox (eqs. 5–10): query-image tokens are to attend to the supports' box tokens.

    `weight` is β (0: no attention loss), `margin` is μ. `layers`: all | first5 | last5 | a list as "0,1,2". `denominator`:
    which tokens p⁻ counts, all of the sample (the paper's) or those visible to the row.
    """

    weight: float = 0.0
    margin: float = 0.025
    layers: str = "all"
    reduction: str = "mean"  # mean: attention per box token, the paper's | sum: attention on the boxes altogether
    denominator: str = "all"  # all | visible


@dataclass
class SftConfig:
    """The SFT stage: language-model loss on the answer only, with an attention loss beside it if that has a weight.

    With `stop_at` it ends when greedy validation's `stop_metric` reaches that value: a gate on what was learnt, not on time.
    """

    steps: int = MISSING
    batch_size: int = 16
    teacher: str = "locus"  # who writes the answers: see rl/teachers.py
    stop_metric: str = "mean_iou"
    stop_at: float | None = None
    attention_loss: AttentionLossConfig = field(default_factory=AttentionLossConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2e-4, warmup_ratio=0.03))


@dataclass
class ValidationConfig:
    """Held-out evaluation before the first step, every `every` steps (0: never between) and after the last.

    Always greedy; with `sampled` also at the paper's temperature 0.6, top-p 0.95, n = 1, at the start and the end.
    """

    every: int = 50
    samples: int | None = None
    sampled: bool = True
    temperature: float = 0.6
    top_p: float = 0.95


@dataclass
class CheckpointConfig:
    """Sharded checkpoints every `every` steps (0: only at the end); the last `keep` stay."""

    every: int = 50
    keep: int = 2


@dataclass
class TrackingConfig:
    """Where metrics go: console, jsonl, tensorboard, and verl's trackers by name (wandb, mlflow, …)."""

    sinks: list[str] = field(default_factory=lambda: ["console", "jsonl", "tensorboard"])
    project: str = "sightline"


@dataclass
class Recipe:
    """One run. `stages` are run in order, each from the policy that the one before it left."""

    name: str = MISSING
    stages: list[str] = field(default_factory=lambda: ["grpo"])
    seed: int = 0
    runs: str = "runs"
    start_from: str | None = None  # a run, or a checkpoint of one: the first stage begins with that policy
    resume: str | None = None
    mismatch_bound: float = 0.5  # gate at step 0: the largest |rollout logprob − learner logprob| of a token
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    for item in fields(schema):
        yield f"{prefix}{item.name}"
        default = item.default_factory() if callable(item.default_factory) else None  # type: ignore[misc]
        if is_dataclass(default):
            yield from _keys(type(default), f"{prefix}{item.name}.")


def _check_keys(node: Any, source: str, prefix: str = "") -> None:
    """Refuse a key the schema has not, with the nearest one it has."""
    known = list(_keys(Recipe))
    free_form = ("reward.kwargs",)
    for key, value in node.items() if isinstance(node, DictConfig) else ():
        path = f"{prefix}{key!s}"
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f"; did you mean `{near[0]}`?" if near else f"; sections are {', '.join(f.name for f in fields(Recipe))}"
            raise ConfigError(f"{source}: there is no key `{path}`{hint}")
        if isinstance(value, DictConfig) and path not in free_form:
            _check_keys(value, source, f"{path}.")


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"there is no recipe {path}; see recipes/ for those that ship")
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, this is a {type(node).__name__}")
    return _written_out(node)


def _written_out(node: DictConfig) -> DictConfig:
    for section, key in SHORT_FOR.items():
        if section in node and not isinstance(node[section], DictConfig):
            node[section] = {key: node[section]}
    return node


def _chain(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """The recipe's ancestors, then itself."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"`extends:` goes in a circle: {' → '.join(p.name for p in (*seen, path))}")
    node = _read_yaml(path)
    parent = node.pop("extends", None)
    _check_keys(node, path.name)
    before = _chain(path.parent / parent, (*seen, path)) if parent else []
    return [*before, (path.name, node)]


def _overrides(items: Sequence[str]) -> DictConfig:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"an override is key=value, got `{item}`")
    parted = [item.partition("=") for item in items]
    short = [f"{key}.{SHORT_FOR[key]}={value}" if key in SHORT_FOR else f"{key}={value}" for key, _, value in parted]
    node = OmegaConf.from_dotlist(short)
    _check_keys(node, "override")
    return node


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, compose and check a recipe. Raises ConfigError with the key, what was wrong and what would be right."""
    merged = OmegaConf.structured(Recipe)
    for source, node in (*_chain(Path(path)), ("override", _overrides(overrides))):
        try:
            merged = OmegaConf.merge(merged, node)
        except OmegaConfBaseException as error:
            key, reason = str(error.full_key or ""), str(error.msg or error).splitlines()[0]
            raise ConfigError(f"{source}: `{key}`: {reason}") from error
    recipe = OmegaConf.to_object(_resolve_missing(merged))
    assert isinstance(recipe, Recipe)
    check_recipe(recipe)
    return recipe


def _resolve_missing(node: Any) -> Any:
    """A stage that does not run needs no steps; anything else missing is an error."""
    for stage in STAGES:
        if stage not in node.stages and OmegaConf.is_missing(node[stage], "steps"):
            node[stage].steps = 0
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise ConfigError(f"the recipe leaves `{missing[0]}` open; set it in the YAML or as {missing[0]}=…")
    return node


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, as it is saved with the run."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def to_container(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as nested plain values."""
    container = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
