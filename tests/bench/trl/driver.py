"""TRL's GRPOTrainer on a task that `task.py` wrote, a turn at a time; in TRL's environment, without the project.

    .venv-trl/bin/python tests/bench/trl/driver.py TASK_FOLDER DESCRIPTOR

The trainer as its documentation uses it on images, on a CPU: one process on all cores, generation by
transformers, no gradient checkpointing, a whole batch a forward where `rows_per_forward` allows it. The loss is what the
project's recipe computes, in TRL's words: token-mean over the batch (`dapo`), clipped at 0.2 and 0.3, KL weighted by `kl`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from reward import locus_reward
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from turns import Turns


class TakeTurns(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.before_step()


def read_dataset(folder: Path) -> Dataset:
    """A row a prompt: the chat message, the image files as they are, what the reward needs."""
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    columns = {
        "prompt": [[{"role": "user", "content": prompt["text"]}] for prompt in prompts],
        "images": [[str(folder / name) for name in prompt["images"]] for prompt in prompts],
        "target": [prompt["target"] for prompt in prompts],
        "size": [prompt["size"] for prompt in prompts],
    }
    features = Features(
        {
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "images": List(Image()),
            "target": List(Value("float64")),
            "size": List(Value("int64")),
        }
    )
    return Dataset.from_dict(columns, features=features)


def locus(completions: list[Any], target: list[Any], size: list[Any], **_: Any) -> list[float]:
    texts = [completion[0]["content"] for completion in completions]
    return [locus_reward(*each) for each in zip(texts, target, size, strict=True)]


def config_of(task: dict[str, Any], folder: Path) -> GRPOConfig:
    rows = task["prompts_per_step"] * task["generations"]
    per_forward = min(rows, task["rows_per_forward"])
    fixed = {"min_new_tokens": task["answer_tokens"]} if task["fixed_length"] else {}
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=task["device"] == "cpu",
        bf16=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        gradient_checkpointing=False,
        per_device_train_batch_size=per_forward,
        gradient_accumulation_steps=rows // per_forward,
        num_generations=task["generations"],
        max_completion_length=task["answer_tokens"],
        generation_kwargs={"suppress_tokens": task["banned_token_ids"], **fixed},
        max_steps=task["steps"],
        shuffle_dataset=False,
        beta=task["kl"],
        epsilon=0.2,
        epsilon_high=0.3,
        loss_type="dapo",
        temperature=1.0,
        learning_rate=task["lr"],
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(0.05 * task["steps"]),
        seed=task["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def check_prompt(trainer: GRPOTrainer, dataset: Dataset, wanted: list[int]) -> None:
    """Both programs must see the same tokens: else nothing is compared."""
    content = [{"type": "image", "image": image} for image in dataset[0]["images"]]
    content.append({"type": "text", "text": dataset[0]["prompt"][0]["content"]})
    ids, _, _ = trainer._tokenize_prompts([[{"role": "user", "content": content}]])
    if list(ids[0]) != wanted:
        raise SystemExit(f"TRL makes {len(ids[0])} tokens of the first prompt, the project {len(wanted)}, or other ones")


def main() -> None:
    folder, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    task = json.loads((folder / "task.json").read_text())
    turns, dataset = Turns(descriptor), read_dataset(folder)
    trainer = GRPOTrainer(
        model=task["model"],
        reward_funcs=locus,
        args=config_of(task, folder),
        train_dataset=dataset,
        callbacks=[TakeTurns(turns)],
    )
    check_prompt(trainer, dataset, task["first_prompt_ids"])
    trainer.train()
    turns.finish([record["reward"] for record in trainer.state.log_history if "reward" in record])


if __name__ == "__main__":
    main()
