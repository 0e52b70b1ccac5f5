"""The comparison with TRL compares like with like: the same reward, the same prompts, answers of the same length, turns."""

from __future__ import annotations

import json
import os
import threading
from multiprocessing import Pipe
from pathlib import Path

import pytest

from data.box import Box, Frame
from data.prompts import locus_prompt
from data.sample import EncodedImage, Sample
from data.store import SampleStore
from data.stream import PromptStream
from rewards.locus import reward
from rewards.score import Completion
from rl.prompting import PromptEncoder
from tests.bench.trl.reward import locus_reward
from tests.bench.trl.task import Shape, write_task
from tests.bench.trl.turns import Turns

TARGET, SIZE = (14.0, 28.0, 56.0, 70.0), (112, 84)
TEXTS = (
    "<think> here </think><answer>[14, 28, 56, 70]</answer>",
    "<think></think> <answer>[10, 20.5, 60, 70]</answer>\n",
    "<answer>[14, 28, 56, 70]</answer>",
    "<think> out </think><answer>[-20, 28, 500, 70]</answer>",
    "<think> empty </think><answer>[56, 28, 14, 70]</answer>",
    "<think> outside of the image </think><answer>[200, 200, 300, 300]</answer>",
    "<think> beside </think><answer>[60, 28, 112, 70]</answer>",
    "<think> words </think><answer>the box [14, 28, 56, 70]</answer>",
    "<think> twice </think><answer>[1, 2, 3, 4]</answer><answer>[14, 28, 56, 70]</answer>",
    "<think> nested <think> </think><answer>[14, 28, 56, 70]</answer>",
    "before <think> x </think><answer>[14, 28, 56, 70]</answer>",
    "<answer>[14, 28, 56, 70]</answer><think> after </think>",
    "</think><answer>[14, 28, 56, 70]</answer>",
    "<think> open <answer>[14, 28, 56, 70]</answer>",
    f"<think> large </think><answer>[1, 2, {'9' * 400}, 4]</answer>",
    "<think> cut </think><answer>[14, 28, 56",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_its_reward_is_the_projects(text: str):
    frame = Frame.resized(*SIZE)
    image = EncodedImage(*SIZE, encoded=b"never opened")
    sample = Sample("x", "test", (image, image), locus_prompt(), Box(*TARGET, image.frame))
    assert locus_reward(text, TARGET, SIZE) == pytest.approx(reward(sample, Completion(text, frame)).total, abs=1e-12)


def test_programs_wait_for_their_turn_and_say_what_it_took():
    bench, its = Pipe()
    descriptor = os.dup(its.fileno())
    its.close()
    done: list[int] = []

    def program() -> None:
        turns = Turns(descriptor)
        for step in range(5):
            turns.before_step()
            done.append(step)
        turns.finish([0.5])

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    assert bench.recv() is None and done == []
    bench.send(2)
    assert bench.recv() >= 0.0 and done == [0, 1]
    bench.send(3)
    assert bench.recv() >= 0.0 and done == [0, 1, 2, 3, 4]
    assert bench.recv() == [0.5]
    thread.join(10)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shape]:
    folder, shape = tmp_path_factory.mktemp("task"), Shape("x", 2, 3, 5, image_side=224)
    write_task(folder, shape, steps=3, seed=4)
    return folder, shape


def test_both_get_the_same_prompts_in_the_same_order(task: tuple[Path, Shape]):
    folder, shape = task
    written = json.loads((folder / "task.json").read_text())
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    store, encoder = SampleStore(folder / "data", split="train"), PromptEncoder(str(folder / "model"))
    samples = PromptStream(store, 4).take(6)
    assert len(prompts) == 6
    for prompt, sample in zip(prompts, samples, strict=True):
        assert [(folder / name).read_bytes() for name in prompt["images"]] == [image.encoded for image in sample.images]
        assert prompt["target"] == list(sample.target.corners)  # 224 is a multiple of 28: nothing is resized
        assert prompt["size"] == [224, 224]
    assert written["first_prompt_ids"] == encoder.input_ids(samples[0])
    assert written["first_prompt_ids"].count(encoder.image_token_id) == 8 * 8 + 2 * 2 == shape.image_tokens + 4


def test_an_answer_of_fixed_length_cannot_end_early(task: tuple[Path, Shape]):
    folder, _ = task
    encoder = PromptEncoder(str(folder / "model"))
    assert set(encoder.eos_token_ids) <= set(encoder.banned_token_ids)
    assert json.loads((folder / "task.json").read_text())["fixed_length"]
    assert set(PromptEncoder("recipes/locus/tiny_model").eos_token_ids).isdisjoint(encoder.eos_token_ids)
