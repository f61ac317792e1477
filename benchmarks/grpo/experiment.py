"""One seed: a policy, a reward model from few noisy labels, and the policy trained against it by GRPO."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.integrations.penalised import GROUP
from bayesrm_fast.integrations.trl import reward_function
from bayesrm_fast.select.penalties import Penalty
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.grpo.policy import LONGEST, log_probabilities, read_the_chain, samples
from demo.task import Task, vocabulary

COMPLETIONS = 8
"""Of a prompt in a step."""

REFERENCE = "reference"
"""The column that holds a sample of the policy as it was at the start."""

ADAPTED = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]

FEWEST_WORDS = 10
LONG = 8


@dataclass(frozen=True)
class Scale:
    """How much there is of everything."""

    texts_a_prompt: int = 4
    reading_epochs: int = 4
    pairs: int = 600
    noise: float = 0.25
    epochs: int = 3
    prompts_a_step: int = 4
    steps: int = 200
    every: int = 20
    looked_at: int = 64
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class Arm:
    """How rewards become what GRPO maximises."""

    penalty: Penalty = "none"
    k: float = 0.0
    relative_to: str | None = GROUP
    kl_weight: float = 0.0


@dataclass(frozen=True)
class Look:
    """Means over samples of the policy for prompts it is trained on.

    Attributes:
        step: of GRPO.
        gold: what the samples are worth.
        reward: what the reward model says.
        kl: of a sample, from the policy to where it started, in nats.
        words: of a sample, with its end.
        std: the reward's posterior std.
        std_to_group: of its difference to the mean of the prompt's samples.
        std_to_start: of its difference to the reward of a sample of the policy at the start.
    """

    step: int
    gold: float
    reward: float
    kl: float
    words: float
    std: float
    std_to_group: float
    std_to_start: float


def worth(text: str) -> float:
    """The gold: different words of eight letters or more, over all words or ten."""
    return sum(len(word) >= LONG for word in vocabulary([text])) / max(len(text.split()), FEWEST_WORDS)


def prepared(seed: int, scale: Scale, folder: Path) -> BayesianRewardModel:
    """Policy and adapter into `folder`, and the fitted reward model."""
    task = Task(seed)
    if not (folder / "policy").exists():
        read_the_chain(task, scale.texts_a_prompt, scale.reading_epochs, folder / "policy")
    pairs = noisy_pairs(task, scale, folder)
    options = TrainOptions(target_modules=ADAPTED, epochs=scale.epochs, learning_rate=3e-3, max_length=64, seed=seed)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    train_adapter(str(folder / "policy"), pairs, folder / "adapter", options)
    return BayesianRewardModel.from_pretrained(folder / "adapter", max_length=64).fit(pairs)


def noisy_pairs(task: Task, scale: Scale, folder: Path) -> list[dict[str, str]]:
    """Two samples of the policy each, of different gold; a share of the labels is wrong."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy").eval()
    lot = random.Random(task.seed)
    torch.manual_seed(task.seed)
    prompts = [lot.choice(task.training).text for _ in range(2 * scale.pairs)]
    texts = samples(policy, tokenizer, [prompt for prompt in prompts for _ in range(2)]).texts
    found = []
    for i, prompt in enumerate(prompts):
        first, second = texts[2 * i : 2 * i + 2]
        if worth(first) != worth(second):
            wrong = lot.random() < scale.noise
            better, worse = (first, second) if (worth(first) > worth(second)) != wrong else (second, first)
            found.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return found[: scale.pairs]


def trained(rm: BayesianRewardModel, seed: int, scale: Scale, arm: Arm, folder: Path) -> list[Look]:
    """What the policy was worth on the way."""
    task = Task(seed)
    prompts = [prompt.text for prompt in task.held_out]
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    start = AutoModelForCausalLM.from_pretrained(folder / "policy").eval()
    torch.manual_seed(seed)
    looks: list[Look] = []

    def look(step: int) -> None:
        looks.append(looked_at(policy, start, tokenizer, rm, task, step, scale.looked_at))

    class Looking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % scale.every == 0:
                look(state.global_step)

    options = GRPOConfig(
        str(folder / "grpo"), use_cpu=True, bf16=False, max_steps=scale.steps, num_generations=COMPLETIONS,
        per_device_train_batch_size=COMPLETIONS * scale.prompts_a_step, max_completion_length=LONGEST, report_to=[],
        beta=arm.kl_weight, save_strategy="no", seed=seed, learning_rate=scale.learning_rate, logging_steps=scale.every,
        lr_scheduler_type="constant", disable_tqdm=True, gradient_checkpointing=False, scale_rewards="none",
    )  # fmt: skip
    trainer = GRPOTrainer(
        policy,
        reward_funcs=reward_function(rm, arm.penalty, arm.k, arm.relative_to),
        args=options,
        train_dataset=Dataset.from_dict({"prompt": prompts, REFERENCE: samples(start, tokenizer, prompts).texts}),
        processing_class=tokenizer,
        callbacks=[Looking()],
    )
    look(0)
    trainer.train()
    return looks


@torch.no_grad()
def looked_at(
    policy: PreTrainedModel,
    start: PreTrainedModel,
    tokenizer: Any,
    rm: BayesianRewardModel,
    task: Task,
    step: int,
    count: int,
) -> Look:
    """With `count` samples, four of a prompt."""
    policy.eval()
    prompts = [prompt.text for prompt in task.held_out[: count // 4] for _ in range(4)]
    torch.manual_seed(step)
    found = samples(policy, tokenizer, prompts)
    ours, theirs = (log_probabilities(model, found.tokens, found.mask) for model in (policy, start))
    kl = ((ours - theirs) * found.mask[:, 1:])[:, found.width - 1 :].sum(1).mean()
    torch.manual_seed(step)
    references = samples(start, tokenizer, prompts).texts
    own, to_group, to_start = (rm.score(prompts, found.texts, relative_to=one) for one in (None, "prompt", references))
    policy.train()
    return Look(
        step,
        float(torch.tensor([worth(text) for text in found.texts]).mean()),
        float(own.mean.mean()),
        float(kl),
        float(found.mask[:, found.width :].sum(1).double().mean()),
        *(float(one.variance.sqrt().mean()) for one in (own, to_group, to_start)),
    )
