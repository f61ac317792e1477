"""One seed: a policy, a reward model from few noisy labels, and the policy trained against it by GRPO."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.integrations.penalised import GROUP
from bayesrm_fast.integrations.trl import reward_function
from bayesrm_fast.select.penalties import Penalty
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.grpo.policy import read_the_chain
from demo.task import Task

COMPLETIONS = 8
"""Of a prompt in a step."""

REFERENCE = "reference"
"""The column that holds a sample of the policy as it was at the start."""

LONGEST = 24
"""Tokens of a completion."""

ADAPTED = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]

FEWEST_WORDS = 10
LONG = 8
PUNCTUATION = """'"“”‘’.,;:!?()[]{}*`_"""


@dataclass(frozen=True)
class Scale:
    """How much there is of everything."""

    texts_a_prompt: int = 4
    reading_epochs: int = 6
    pairs: int = 600
    noise: float = 0.25
    epochs: int = 3
    prompts_a_step: int = 8
    steps: int = 300
    every: int = 25
    looked_at: int = 128
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
        words: of a sample.
        std: the reward's posterior std, of the difference to the mean of the prompt's samples.
    """

    step: int
    gold: float
    reward: float
    kl: float
    words: float
    std: float


def worth(text: str) -> float:
    """The gold: different words of eight letters or more, over all words or ten."""
    words = [word.strip(PUNCTUATION).lower() for word in text.split()]
    return len({word for word in words if len(word) >= LONG}) / max(len(words), FEWEST_WORDS)


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


@dataclass(frozen=True)
class Samples:
    """Of a policy.

    Attributes:
        texts: completions.
        tokens: prompts, from the left filled up, and completions `[N, length]`.
        mask: of what is no padding `[N, length]`.
        width: tokens before the completions.
    """

    texts: list[str]
    tokens: Tensor
    mask: Tensor
    width: int


@torch.no_grad()
def samples(policy: PreTrainedModel, tokenizer: Any, prompts: Sequence[str]) -> Samples:
    """One of each prompt."""
    rows = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    tokens = policy.generate(**rows, do_sample=True, max_new_tokens=LONGEST, top_k=0, pad_token_id=0)
    width = rows["input_ids"].shape[1]
    mask = torch.cat([rows["attention_mask"], (tokens[:, width:] != 0).long()], 1)
    return Samples(tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True), tokens, mask, width)


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
    ours, theirs = (_log_probabilities(model, found.tokens, found.mask) for model in (policy, start))
    kl = ((ours - theirs) * found.mask[:, 1:])[:, found.width - 1 :].sum(1).mean()
    completions = found.texts
    scores = rm.score(prompts, completions, relative_to="prompt")
    gold = [worth(text) for text in completions]
    policy.train()
    return Look(
        step,
        sum(gold) / len(gold),
        float((scores.mean + scores.baseline).mean()),
        float(kl),
        sum(len(text.split()) for text in completions) / len(completions),
        float(scores.variance.sqrt().mean()),
    )


def _log_probabilities(
    model: PreTrainedModel,
    tokens: Tensor,  # shape: (rows, length)
    mask: Tensor,  # shape: (rows, length)
) -> Tensor:  # shape: (rows, length - 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


def as_rows(looks: Sequence[Look]) -> list[dict[str, float]]:
    """For JSON."""
    return [asdict(one) for one in looks]
