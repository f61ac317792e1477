"""A policy small enough for GRPO on two cores: a word-level Llama that has read the demo's Markov chain."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from demo.task import Prompt, Task

PADDING, BEGINNING, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
LONGEST = 24
"""Tokens of a completion."""

ROWS = 64
"""Of a step of training."""


def word_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word of these texts; rows begin with `<s>`."""
    words = sorted({word for text in texts for word in text.split()})
    numbers = {word: number for number, word in enumerate((PADDING, BEGINNING, END, UNKNOWN, *words))}
    tokenizer = Tokenizer(WordLevel(numbers, UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"{BEGINNING} $A", special_tokens=[(BEGINNING, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PADDING, bos_token=BEGINNING, eos_token=END, unk_token=UNKNOWN
    )


def read_the_chain(task: Task, texts_a_prompt: int, epochs: int, folder: Path) -> None:
    """Train a policy by next words on samples of the task's Markov chain, and leave it in `folder`."""
    prompts = task.training + task.held_out
    tokenizer = word_tokenizer([text for paragraphs in task.reference.values() for text in paragraphs])
    torch.manual_seed(task.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    rows = [_row(tokenizer, prompt, text) for prompt in prompts for text in task.candidates(prompt, texts_a_prompt)]
    steps = epochs * (len(rows) // ROWS)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    lot = random.Random(task.seed)
    for _ in range(epochs):
        lot.shuffle(rows)
        for first in range(0, ROWS * (len(rows) // ROWS), ROWS):
            tokens = _padded(rows[first : first + ROWS])
            labels = tokens.masked_fill(tokens == 0, -100)
            loss = model(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _row(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, text: str) -> list[int]:
    return [*tokenizer(f"{prompt.text} {text}")["input_ids"], tokenizer.eos_token_id]


def _padded(rows: Sequence[list[int]]) -> Tensor:  # shape: (rows, longest)
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


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


def log_probabilities(
    model: PreTrainedModel,
    tokens: Tensor,  # shape: (rows, length)
    mask: Tensor,  # shape: (rows, length)
) -> Tensor:  # shape: (rows, length - 1)
    """Of every token but the first, in nats."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
